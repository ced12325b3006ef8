"""No error on a clean config: those of every family of transformers as its class writes them, and published ones."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import warnings
from functools import lru_cache

import pytest
import rope_keys
from planted import of
from published import PUBLISHED

from pipelines.doctor import examine, keys, rules
from rope.config import text_config

EXCEPTIONS = {
    "R01": {
        "glm4_moe": "the class's own heads, 42 x 0.5 dimensions, rotate in no pairs",
        "glm4v_moe": "the same",
        "qwen3_omni_moe_thinker": "the class's own heads of 73 dimensions rotate in no pairs",
        "cohere_compass": "the class has no rope parameters of its own, and builds no model without them",
        "cohere_compass_text": "the same",
        "recurrent_gemma": "neither config nor class has a length",
    },
    "S10": {"fast_vlm": "the class's own sizes are those of Qwen2 7B, whose theta is 1e6; its own theta is 10,000"},
    "S18": {
        "hunyuan_v1_dense": "the class leaves head_dim null, and its own default config cannot be built",
        "hunyuan_v1_moe": "the same",
        "hunyuan_vl": "the same",
        "ministral": "the same",
    },
}
"""Rule -> model types of which the class's own default config has that error, and why it is one."""


@lru_cache(maxsize=1)
def written():
    """What every class that writes text saves of its default config, by model_type."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as auto

    names = {*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    configs = {}
    for name in sorted(names):
        with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
            configs[name] = json.loads(json.dumps(CONFIG_MAPPING[name]().to_dict(), default=str))
    return configs


def as_v4(config):
    """The same in the keys of v4, where there is one block of parameters; None elsewhere."""
    config = copy.deepcopy(config)
    text = text_config(config)
    block = text.pop("rope_parameters", None) or {}
    if "rope_parameters" in config or not block or any(isinstance(value, dict) for value in block.values()):
        return None
    text["rope_theta"] = block.pop("rope_theta", 10_000.0)
    if (share := block.pop("partial_rotary_factor", None)) is not None:
        text["partial_rotary_factor"] = share
    text["rope_scaling"] = block if block.get("rope_type", "default") != "default" else None
    return config


def judged(config, **more):
    """The verdict of the files stage, in which no rule fails."""
    assert examine.MEASURING  # whose import registers the rules
    verdict = rules.judge("static", of(config, **more))
    assert not verdict.unjudged, verdict.unjudged
    return verdict


def errors(config):
    return {finding.id for finding in judged(config).findings if finding.level == "error"}


def excepted(name):
    return {id for id, names in EXCEPTIONS.items() if name in names}


@pytest.mark.slow
def test_the_default_config_of_every_family_has_no_error():
    assert len(written()) > 250
    found = {name: errors(config) - {"R02"} for name, config in written().items()}
    assert {name: ids for name, ids in found.items() if ids} == {
        name: excepted(name) for name in found if excepted(name)
    }


@pytest.mark.slow
def test_the_same_in_the_keys_of_v4_has_none_either():
    old = {name: as_v4(config) for name, config in written().items()}
    found = {name: errors(config) - {"R02"} - excepted(name) for name, config in old.items() if config is not None}
    assert len(found) > 120 and not {name: ids for name, ids in found.items() if ids}


@pytest.mark.slow
def test_a_family_rotates_unless_its_source_knows_no_rotation():
    """The modeling file of a family that is said to rotate nothing calls no rotary function."""
    from transformers import CONFIG_MAPPING

    still = [name for name, config in written().items() if "R02" in errors(config)]
    assert len(still) > 60
    rotating = set()
    for name in still:
        text = CONFIG_MAPPING[name]().get_text_config(decoder=True)
        folder = rope_keys.SOURCE.joinpath(*type(text).__module__.split(".")[1:-1])
        source = "".join(file.read_text(encoding="utf-8") for file in folder.glob("modeling_*.py"))
        if re.search(r"(?<!def )\bapply_rotary_pos_emb\(", source):
            rotating.add(name)
    assert rotating == ROTATION_IS_AN_OPTION


ROTATION_IS_AN_OPTION = {"granite4_vision", "granitemoehybrid", "zamba2"}
"""Families that rotate where a key says so, which their classes' defaults do not."""


@pytest.mark.slow
def test_the_known_keys_are_those_of_transformers_source():
    assert rope_keys.table() == keys.TABLE


@pytest.mark.slow
def test_every_key_that_a_family_writes_itself_is_known():
    for name, config in written().items():
        assert "S06" not in {finding.id for finding in judged(config).findings}, name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_no_error(name):
    config, expected = PUBLISHED[name]
    found = {finding.id for finding in judged(config, name=name).findings if finding.level != "info"}
    assert found == set(expected)
