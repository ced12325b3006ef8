"""A Hugging Face config, of any version, read as geometry.

Separate from geometry.py, as a declared scaling becomes a native plan by the formulas of the strategies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rope import strategies
from rope.geometry import ALL_LAYERS, Geometry, Plan, check_integer, check_number

ROTARY_KEYS = (
    "rope_parameters",
    "rope_theta",
    "rope_scaling",
    "rope_local_base_freq",
    "rotary_emb_base",
    "rotary_pct",
    "rotary_dim",
    "partial_rotary_factor",
    "qk_rope_head_dim",
)
"""Any of these keys, with a value, means that the model rotates its queries and keys."""

LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
"""Keys of the number of tokens that the model was trained for; the first with a value counts."""

ROTARY_FAMILIES = frozenset({"llama", "code_llama", "falcon", "RefinedWeb", "RefinedWebModel"})
"""model_type of rotary models whose older configs have none of the keys above (theta was 10000 in code)."""

DEFAULT_THETA = 10_000.0
"""Base of a config without one: the default of transformers v4 for the llama family."""

SYNONYMS = {"su": "longrope", "mrope": "default"}
RUNTIME = frozenset({"dynamic", "ntk"})
"""Declared scalings that act at run time on a checkpoint that was trained without them."""


@dataclass(frozen=True)
class DeclaredScaling:
    """The strategy that rotary parameters amount to, with its options, and the geometry that it acts on."""

    strategy: str
    options: Mapping[str, Any]
    geometry: Geometry

    def plan(self, length: int) -> Plan:
        """The plan for this many tokens."""
        return strategies.plan(self.strategy, self.geometry, length, **self.options)


def geometry_of(config: Any, trained_length: int | None = None) -> dict[str, Geometry]:
    """What a checkpoint was trained with, by layer type: {"all": ...} where its layers share one rotary embedding.

    Args:
        config: config.json as a mapping, or an object with to_dict(); transformers v4 keys (rope_theta, rope_scaling)
            and v5 keys (rope_parameters), flat or by layer type, nested in text_config or not. A config without theta
            gets DEFAULT_THETA.
        trained_length: tokens; None for max_position_embeddings.

    Returns:
        A geometry for every layer type that rotates. Declared linear, yarn, llama3, longrope and proportional scalings
        become its `natives`; a declared dynamic scaling acts at run time, so it is no part of the geometry.

    Raises:
        ValueError: no rotary embedding, no length, no head dimension, or a declared scaling that is not known.
    """
    return {
        layer_type: replace(plain, natives=_natives(parameters, plain, limit))
        for layer_type, (parameters, plain, limit) in _rotating_layers(config, trained_length).items()
    }


def declared_scalings(config: Any, trained_length: int | None = None) -> dict[str, DeclaredScaling]:
    """The strategy that a config's own parameters name, by layer type; `none` where they name no scaling.

    The other interpretation of the same parameters than geometry_of: there a declared scaling is what the checkpoint
    was trained with, here it is what was applied on top of an earlier training.

    Raises:
        ValueError: what geometry_of refuses.
    """
    return {layer_type: _declared(*read) for layer_type, read in _rotating_layers(config, trained_length).items()}


def _rotating_layers(config: Any, trained_length: int | None) -> dict[str, tuple[dict[str, Any], Geometry, int]]:
    """Of every layer type that rotates: its rotary parameters, its geometry without a scaling, and its length."""
    text = text_config(config)
    limit = _first(text, *LENGTH_KEYS)
    trained = limit if trained_length is None else trained_length
    if trained is None:
        raise ValueError("the config has no max_position_embeddings: give trained_length, in tokens")
    check_integer("max_position_embeddings" if trained_length is None else "trained_length", trained, least=2)
    layers = {}
    for layer_type, parameters in rope_parameters(config).items():
        if parameters is not None:
            head_dim, partial = _head(text, layer_type, parameters)
            plain = Geometry(head_dim, float(parameters["rope_theta"]), int(trained), partial)
            layers[layer_type] = (parameters, plain, int(limit or trained))
    if not layers:
        raise ValueError("every layer type of the config is without a rotary embedding; give a model that has one")
    return layers


def text_config(config: Any) -> Mapping[str, Any]:
    """The part of a config that describes the language model, as a mapping."""
    if not isinstance(config, Mapping):
        if not hasattr(config, "to_dict"):
            raise ValueError(f"{config!r} is not a config; give config.json as a mapping, or a config object")
        config = config.to_dict()
    nested = config.get("text_config")
    return text_config(nested) if nested else config


def rope_parameters(config: Any) -> dict[str, dict[str, Any] | None]:
    """The declared rotary parameters as transformers v5 names them, by layer type; None for layers without rotation.

    rope_type and rope_theta are always there, and factor and original_max_position_embeddings wherever the type needs
    them: filled in from the rest of the config as transformers would, so that they stay valid when the rest changes.

    Raises:
        ValueError: the config describes no rotary embedding.
    """
    text = text_config(config)
    _check_rotary(text)
    # transformers prefers rope_scaling where a config has both
    declared: Mapping[str, Any] = text.get("rope_scaling") or text.get("rope_parameters") or {}
    theta = _first(text, "rope_theta", "rotary_emb_base") or DEFAULT_THETA
    local = text.get("rope_local_base_freq")
    nested: dict[str, Mapping[str, Any] | None] | None = None
    if any(isinstance(value, Mapping) for value in declared.values()):
        nested = {key: value for key, value in declared.items() if value is None or isinstance(value, Mapping)}
    elif local or text.get("model_type") == "olmo3":
        # before v5, Gemma 3 and Olmo 3 gave theta and scaling flat, for the full-attention layers
        nested = {"full_attention": declared, "sliding_attention": {"rope_theta": local or theta}}
    if nested is None:
        return {ALL_LAYERS: _standard(declared, theta, text, text.get("original_max_position_embeddings"))}
    return {key: None if value is None else _standard(value, theta, text, None) for key, value in nested.items()}


def _standard(
    declared: Mapping[str, Any], theta: float, text: Mapping[str, Any], outside: int | None
) -> dict[str, Any]:
    """`outside`: an original length beside the rope parameters, as in Phi-3; to transformers it takes precedence."""
    parameters = {key: value for key, value in declared.items() if value is not None and key != "type"}
    rope_type = declared.get("rope_type") or declared.get("type") or "default"
    parameters["rope_type"] = SYNONYMS.get(rope_type, rope_type)
    parameters.setdefault("rope_theta", theta)
    if not text.get("qk_rope_head_dim"):
        partial = _first(text, "partial_rotary_factor", "rotary_pct")
        if partial is not None:
            parameters.setdefault("partial_rotary_factor", partial)
    if parameters["rope_type"] in ("yarn", "llama3", "longrope"):
        limit = _first(text, *LENGTH_KEYS)
        original = outside or parameters.get("original_max_position_embeddings") or limit
        if original is not None:
            parameters["original_max_position_embeddings"] = original
            if limit is not None:
                parameters.setdefault("factor", limit / original)
    return parameters


def _head(text: Mapping[str, Any], layer_type: str, parameters: Mapping[str, Any]) -> tuple[int, float]:
    """Dimensions per head, and the share of them that is rotated."""
    # multi-head latent attention rotates a part of its heads, whose size has its own key
    if text.get("qk_rope_head_dim"):
        return int(text["qk_rope_head_dim"]), 1.0
    head_dim = _head_of_layer(text, layer_type) or _first(text, "head_dim", "attention_head_dim", "kv_channels")
    if not head_dim:
        hidden, heads = _first(text, "hidden_size", "n_embd"), _first(text, "num_attention_heads", "n_head")
        if not hidden or not heads:
            raise ValueError(
                "the config has neither head_dim nor hidden_size and num_attention_heads: add them, or give the config "
                "object that transformers makes of it (it knows the family's defaults)"
            )
        head_dim = hidden // heads
    if parameters["rope_type"] == "proportional":
        return int(head_dim), 1.0  # the other pairs have zero frequency, and count as rotated
    partial = parameters.get("partial_rotary_factor")
    if partial is None:
        partial = text["rotary_dim"] / head_dim if text.get("rotary_dim") else 1.0
    return int(head_dim), float(partial)


def _head_of_layer(text: Mapping[str, Any], layer_type: str) -> Any:
    """Dimensions per head where they differ by layer, as in Gemma 4."""
    by_layer = text.get("per_layer_config") or {}
    for layer, kind in enumerate(text.get("layer_types") or ()):
        if kind == layer_type and str(layer) in by_layer:
            return by_layer[str(layer)].get("head_dim")
    return text.get("global_head_dim") if layer_type == "full_attention" else None


def _natives(parameters: Mapping[str, Any], plain: Geometry, limit: int) -> tuple[tuple[int, Plan], ...]:
    """The plans of a declared scaling; `plain` is the geometry without it."""
    rope_type = parameters["rope_type"]
    if rope_type == "default" or rope_type in RUNTIME:
        return ()
    declared = _declared(parameters, plain, limit)
    original = declared.geometry.trained_length
    if rope_type != "longrope":
        return ((limit, declared.plan(original)),)
    # LongRoPE's two plans: one up to the original length, one beyond
    try:
        return tuple((reach, declared.plan(reach)) for reach in (original, max(limit, original + 1)))
    except ValueError as error:
        raise ValueError(f"the declared longrope scaling: {error}") from error


def _declared(parameters: Mapping[str, Any], plain: Geometry, limit: int) -> DeclaredScaling:
    """The scaling of one layer type's parameters; ValueError for an unknown rope_type."""
    rope_type = parameters["rope_type"]
    if rope_type == "default":
        return DeclaredScaling("none", {}, plain)
    if rope_type in RUNTIME:
        return DeclaredScaling("dynamic_ntk", {"rule": "transformers", "factor": parameters.get("factor", 1.0)}, plain)
    if rope_type not in ("linear", "yarn", "llama3", "longrope", "proportional"):
        raise ValueError(
            f"the config declares rope_type={rope_type!r}; known are default, linear, dynamic, yarn, llama3, longrope "
            "and proportional; describe the model by a Geometry whose natives hold its inverse frequencies"
        )
    original = parameters.get("original_max_position_embeddings") or plain.trained_length
    factor = parameters.get("factor") or (1.0 if rope_type == "proportional" else limit / original)
    check_number(f"factor of the declared {rope_type} scaling", factor, least=1)
    before = replace(plain, trained_length=original)
    if rope_type == "longrope":
        return _declared_longrope(parameters, before, factor)
    if rope_type == "proportional":
        share = {"p": parameters.get("partial_rotary_factor", 1.0)}
        if factor == 1:
            return DeclaredScaling("proportional", share, plain)
        rotating = strategies.plan("proportional", plain, original, **share)
        return DeclaredScaling("linear", {"factor": factor}, replace(plain, natives=((limit, rotating),)))
    options = {name: parameters[name] for name in strategies.options_of(rope_type) if parameters.get(name) is not None}
    if factor > 1:
        return DeclaredScaling(rope_type, options | {"factor": factor}, before)
    if "attention_factor" in options:
        ones = {"factors": (1.0,) * plain.pairs, "attention_factor": options["attention_factor"]}
        return DeclaredScaling("factors", ones, before)
    return DeclaredScaling("none", {}, before)


def _declared_longrope(parameters: Mapping[str, Any], before: Geometry, factor: float) -> DeclaredScaling:
    names = ("short_factor", "long_factor", "attention_factor", "short_mscale", "long_mscale")
    options = {name: parameters.get(name) for name in names}
    if factor > 1:
        options["factor"] = factor
    else:
        options["attention_factor"] = options["attention_factor"] or 1.0  # whatever the length
    for name in ("short_factor", "long_factor"):
        if options[name] is None:
            options[name] = ()  # which the strategy refuses in a sentence
    return DeclaredScaling("longrope", options, before)


def _check_rotary(text: Mapping[str, Any]) -> None:
    kind = text.get("position_embedding_type")
    other = "alibi" if text.get("alibi") else kind if kind not in (None, "rope", "rotary") else None
    rotary = any(text.get(key) for key in ROTARY_KEYS) or text.get("model_type") in ROTARY_FAMILIES
    if other is not None or not rotary:
        raise ValueError(
            f"the config of a {text.get('model_type', 'model')} describes no rotary embedding "
            f"({f'its positions are {other}' if other else 'it has none of ' + ', '.join(ROTARY_KEYS[:3])}); "
            "give a rotary model, or add rope_theta if it is one"
        )


def _first(text: Mapping[str, Any], *names: str) -> Any:
    return next((text[name] for name in names if text.get(name) is not None), None)
