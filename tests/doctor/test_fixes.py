"""Every mechanical fix does what it promises, in a model that transformers builds and runs; others are withheld."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from planted import LLAMA3_BLOCK, PLAIN, STATIC, YARN, by_type, of, scaled, without
from test_doctor import findings_of

from pipelines.cli.main import run
from pipelines.doctor import corrections, verify
from pipelines.doctor.rules import Correction, RuleFinding
from rope.config import text_config

FIXES = [
    (id, faulty, clean)
    for id, pairs in STATIC.items()
    for faulty, clean in pairs
    if faulty and any(finding.correction for finding in findings_of("static", faulty, id))
]
KEEPING = {"V01", "V05", "S02", "S07", "S11"}
"""Rules whose fixes change keys that other programs read, and no frequency."""

NAMES = [f"{id}-{number}" for number, (id, _, _) in enumerate(FIXES)]


def small(config):
    """The config at a size that is quick to run, its heads and so its frequencies as they are."""
    config = copy.deepcopy(config)
    text = text_config(config)
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    tiny = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head}
    if text.get("model_type") == "phi3":  # which has no head_dim
        tiny = {"hidden_size": 2 * head, "num_attention_heads": 2, "num_key_value_heads": 2}
    if text is not config:  # a tower for images of the least size
        image = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config["vision_config"] = {"model_type": "clip_vision_model", **image}
    text.update(tiny, num_hidden_layers=2, intermediate_size=64, vocab_size=300, pad_token_id=0)
    return config


def built_and_run(config, folder):
    """Frequencies by layer type, and finite logits, of the model that transformers makes of a config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    from rope.patch import rotary_states

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(small(config)))
    own = AutoConfig.from_pretrained(folder)
    kind = AutoModelForCausalLM if own.get_text_config() is own else AutoModelForImageTextToText
    model = kind.from_config(own).eval()
    states = {state.layer_type: (np.array(state.inv_freq), state.attention_factor) for state in rotary_states(model)}
    with torch.no_grad():
        logits = model(input_ids=torch.arange(8, 40)[None]).logits
    assert torch.isfinite(logits).all()
    return states


def alike(one, other):
    return one.keys() == other.keys() and all(
        np.allclose(one[layers][0], other[layers][0], rtol=1e-5, atol=0)
        and np.isclose(one[layers][1], other[layers][1])
        for layers in one
    )


@pytest.mark.slow
@pytest.mark.parametrize(("id", "faulty", "clean"), FIXES, ids=NAMES)
def test_a_fix_is_built_and_run_with_the_frequencies_of_the_right_config(id, faulty, clean, tmp_path):
    findings = findings_of("static", faulty, id)
    assert all(not finding.withheld for finding in verify.offered(faulty, findings))
    fixed = built_and_run(corrections.corrected(faulty.config, findings), tmp_path / "fixed")
    right = (faulty if id in KEEPING else clean).config
    assert alike(fixed, built_and_run(right, tmp_path / "right"))


def finding(correction, id="S04"):
    return RuleFinding(id, "error", "s", {"m": 1}, "c", "f", "s", correction)


BROKEN = {
    "a key that nobody reads": (
        scaled(YARN),
        Correction(lambda text: text.update(rope_factor=8.0), "all", {"factor": 8.0}),
    ),
    "a block of the wrong layers": (
        by_type({**YARN, "rope_theta": 1e6}),
        replace(corrections.set_rope("sliding_attention", factor=8.0), layers="full_attention"),
    ),
    "a change where none was promised": (scaled(YARN), corrections.set_rope("all", keeps=True, factor=8.0)),
    "a config that cannot be read": (of(PLAIN), Correction(lambda text: text.update(head_dim=15))),
    "a class that does not take it": (
        of({**PLAIN, "model_type": "phi3", "pad_token_id": 0}),
        Correction(lambda text: text.update(rope_scaling={"rope_type": "linear", "factor": 2.0})),
    ),
    "a class that is not there": (of({**PLAIN, "model_type": "no_such"}), corrections.REWRITE),
    "a fault that stays": (scaled({"type": "linear", "factor": 0.25}), corrections.set_rope("all", factor=0.5)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_fix_that_does_not_do_what_it_promises_is_not_offered(name):
    files, correction = BROKEN[name]
    (shown,) = verify.offered(files, [finding(correction)])
    assert shown.correction is None and shown.withheld


def test_a_fix_is_held_against_what_transformers_builds(monkeypatch):
    files = scaled({"type": "linear", "factor": 0.25})
    found = findings_of("static", files, "S04")
    assert verify.broken(files, found) is None
    right = verify.built.built

    def wrong(config):
        answer = right(config)
        (module,) = answer.rotary
        return replace(answer, rotary=(replace(module, inv_freq=(*module.inv_freq[:-1], 1e-9)),))

    monkeypatch.setattr(verify.built, "built", wrong)
    assert "1 of 32 frequencies" in str(verify.broken(files, found))


def test_a_fix_that_is_not_offered_says_why_and_is_not_written(tmp_path, capsys):
    config = {**PLAIN, "model_type": "no_such", "rope_scaling": {"type": "linear", "factor": 0.25}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert run(["doctor", f"model={tmp_path / 'model'}", "--only", "static"]) == 1
    shown = capsys.readouterr().out
    assert "no class for model_type 'no_such'" in shown and "--fix OUT writes it" not in shown
    assert run(["doctor", f"model={tmp_path / 'model'}", "--fix", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_null_theta_stays_wrong_in_one_layer_type_alone():
    lost = by_type({"rope_type": "default", "rope_theta": None}, name="gemma-3")
    assert [found.id for found in findings_of("static", lost, "V03")] == ["V03"]


def test_the_base_of_local_layers_stays_where_the_global_one_is_set():
    text = {"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e4}}}
    corrections.set_theta(1e6).change(text)
    assert text["rope_parameters"]["sliding_attention"]["rope_theta"] == 1e4
    assert text["rope_parameters"]["full_attention"]["rope_theta"] == 1e6


def test_equal_bounds_of_llama3_are_what_transformers_computes():
    """By its own formula, with the bounds of Llama 4 Scout: a step at one turn in the original length."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from rope.config import geometry_of

    block = {**LLAMA3_BLOCK, "factor": 16.0, "high_freq_factor": 1.0}
    config = {**without(PLAIN, "model_type"), "max_position_embeddings": 131072, "rope_scaling": block}
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**copy.deepcopy(config)))
    ours = geometry_of({**config, "model_type": "llama"})["all"].natives[0][1].inv_freq
    assert np.allclose(theirs.double().numpy(), ours, rtol=1e-5, atol=0)
    assert not findings_of("static", of({**config, "model_type": "llama"}))
