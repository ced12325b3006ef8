"""A plan in the words of transformers v4: `rope_theta` and `rope_scaling` in config.json; and back.

transformers v5 reads these too, so a file in these words serves both; v4 takes rope_parameters for nothing and goes on
with a theta of 10000 and no scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rope.config import Declared, declared_in, text_config
from rope.dialects.transformers_v5 import LEGACY_KEYS, as_deployment, config_with, words_of
from rope.dialects.words import Case, Deployment, Unsayable, Words, cases_of
from rope.geometry import ALL_LAYERS, Geometry

ENGINE = "transformers-v4"

FLAT = frozenset({"gemma3_text", "olmo3"})
"""model_type of families whose v4 config gives the scaling of full-attention layers flat, the others having none."""

UNKNOWN = frozenset({"proportional"})
"""Values of rope_type that came with v5."""


def to_transformers_v4(
    config: Any, strategy: str, options: Mapping[str, Any], geometries: Mapping[str, Geometry], length: int
) -> Words:
    """config.json with which transformers v4 (and v5) runs a strategy: rope_theta, rope_scaling, no rope_parameters.

    Everything else is as rope.dialects.to_transformers has it.

    Raises:
        ValueError: what to_transformers refuses, a rope_type that v4 does not know, or layer types of which v4 has no
            notion.
    """
    return _patched(config, *cases_of(ENGINE, config, strategy, options, geometries, length))


def deploy(
    config: Any, strategy: str, options: Mapping[str, Any], geometries: Mapping[str, Geometry], length: int
) -> Deployment:
    """to_transformers_v4 as a deployment: config.json is all that is needed."""
    cases, own = cases_of(ENGINE, config, strategy, options, geometries, length)
    return as_deployment(ENGINE, _patched(config, cases, own), cases)


def _patched(config: Any, cases: Mapping[str, Case], own: Mapping[str, Words | None]) -> Words:
    result = config_with(config, cases, own, words_of)
    text: Any = text_config(result)
    declared = text.pop("rope_parameters")
    if ALL_LAYERS not in own:
        local, declared = _by_layer_type(cases, declared)
        if text.get("model_type") == "gemma3_text":
            text["rope_local_base_freq"] = local["rope_theta"]
    if declared["rope_type"] in UNKNOWN:
        raise Unsayable(
            f"{ENGINE} does not know rope_type {declared['rope_type']!r}, which came with v5; the nearest is --to "
            "transformers"
        )
    if declared["rope_type"] == "longrope":
        # v4 looks for the original length beside rope_scaling, and takes an attention factor from it and the new one
        plan = cases.get(ALL_LAYERS, cases.get("full_attention", next(iter(cases.values())))).plan
        text["original_max_position_embeddings"] = declared["original_max_position_embeddings"]
        declared["attention_factor"] = plan.attention_factor
    text["rope_theta"] = declared.pop("rope_theta")
    if (share := declared.pop("partial_rotary_factor", None)) is not None:
        text["partial_rotary_factor"] = share
    text["rope_scaling"] = declared if declared != {"rope_type": "default"} else None
    return result


def declared(config: Any) -> dict[str, Declared]:
    """The strategy that a v4 config.json names, by layer type; rope_parameters are not looked at."""
    text = text_config(config)
    known = {key: value for key, value in text.items() if key != "rope_parameters"}
    return declared_in(known | ({} if any(key in known for key in LEGACY_KEYS) else {"rope_theta": 10_000.0}))


def _by_layer_type(cases: Mapping[str, Case], declared: Words) -> tuple[Words, Words]:
    """The parameters of the sliding layers, which v4 takes for plain, and of the full ones."""
    text = next(iter(cases.values())).text
    flat = text.get("model_type") in FLAT and set(declared) == {"sliding_attention", "full_attention"}
    local = declared["sliding_attention"] if flat else {}
    if local.get("rope_type") != "default":
        raise Unsayable(
            f"{ENGINE} has no words for layer types ({', '.join(declared)}) in a {text.get('model_type', 'model')}; "
            "the nearest is --to transformers"
        )
    return local, dict(declared["full_attention"])
