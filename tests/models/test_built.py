"""What transformers builds from a config without weights: the truth that reading is held against, and its cache."""

from __future__ import annotations

import json

import pytest

from pipelines.models import built
from pipelines.records.cells import Refusal
from rope.config import geometry_of

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 6, "max_position_embeddings": 4096}
CONFIGS = [
    SIZES | {"model_type": "glm", "head_dim": 16},
    SIZES | {"model_type": "gpt_oss", "head_dim": 64, "rope_theta": 150000},
    SIZES | {"model_type": "smollm3", "vocab_size": 300},
    {"model_type": "llava", "text_config": {"max_position_embeddings": 4096}, "vision_config": {"hidden_size": 1024}},
    {
        "model_type": "gemma3",
        "text_config": SIZES | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "head_dim": 16},
    },
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["model_type"])
def test_what_is_built_is_what_is_read(config):
    held = {rotary.layer_type: rotary for rotary in built.describe(config).rotary}
    read = geometry_of(config)
    assert held.keys() == read.keys()
    for kind, geometry in read.items():
        plan = geometry.native(2)
        assert plan.inv_freq == pytest.approx(held[kind].inv_freq, rel=4e-6)
        assert plan.attention_factor == pytest.approx(held[kind].attention_factor)


def test_an_answer_is_kept_and_a_damaged_one_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path))
    first = built.built(CONFIGS[0])
    (kept,) = (tmp_path / "built").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(built, "describe", lambda config: pytest.fail("built twice"))
        assert built.built(CONFIGS[0]) == first
    whole = kept.read_text()
    other_length = whole.replace('"trained_length": ', '"trained_length": 1')
    assert other_length != whole
    for damage in ("{", "[]", json.dumps({"name": "X", "rotary": [{}], "trained_length": 1}), other_length):
        kept.write_text(damage)
        assert built.built(CONFIGS[0]) == first
        assert kept.read_text() == whole


@pytest.mark.parametrize(
    "config, says",
    [
        ({"model_type": "chatglm", "auto_map": {"AutoConfig": "x.Y"}}, "has no class for model_type 'chatglm'"),
        (SIZES | {"model_type": "llama", "num_attention_heads": "four"}, "cannot build this llama"),
    ],
)
def test_what_transformers_does_not_build_is_refused(config, says):
    with pytest.raises(Refusal, match=r".") as refusal:
        built.describe(config)
    assert says in str(refusal.value)
