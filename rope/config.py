"""A Hugging Face config, of any version, read as geometry.

Separate from geometry.py, as a declared scaling becomes a native plan by the formulas of the strategies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rope import families, strategies
from rope.blocks import DEFAULT_THETA as DEFAULT_THETA
from rope.blocks import declared_blocks, family_blocks, first
from rope.config_types import check_types, of_config
from rope.families import Family
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

LENGTH_KEYS = ("max_position_embeddings", *families.SYNONYMS["max_position_embeddings"])
"""Keys of the number of tokens that the model was trained for; the first with a value counts."""

SYNONYMS = {"su": "longrope", "mrope": "default"}
RUNTIME = frozenset({"dynamic", "ntk"})
"""Declared scalings that act at run time on a checkpoint that was trained without them."""


@dataclass(frozen=True)
class DeclaredScaling:
    """The strategy that rotary parameters amount to, with its options, and the geometry that it acts on."""

    strategy: str
    options: Mapping[str, Any] = field(hash=False)
    geometry: Geometry

    def plan(self, length: int) -> Plan:
        """The plan for this many tokens."""
        return strategies.plan(self.strategy, self.geometry, length, **self.options)


@of_config
def geometry_of(config: Any, trained_length: int | None = None) -> dict[str, Geometry]:
    """What a checkpoint was trained with, by layer type: {"all": ...} where its layers share one rotary embedding.

    Args:
        config: config.json as a mapping, or an object with to_dict(); transformers v4 keys (rope_theta, rope_scaling)
            and v5 keys (rope_parameters), flat or by layer type, nested in text_config or not. A config without theta
            gets DEFAULT_THETA.
        trained_length: tokens; None for max_position_embeddings.

    Returns:
        A geometry for every layer type that rotates. Declared linear, yarn, llama3, longrope and proportional scalings
        become its `natives`; a declared dynamic scaling, which acts at run time, its `running`.

    Raises:
        ValueError: no rotary embedding, no length, no head dimension, or a declared scaling that is not known.
    """
    return {
        layer_type: replace(
            plain, natives=_natives(parameters, plain, limit), running=_running(parameters, plain, limit)
        )
        for layer_type, (parameters, plain, limit) in _rotating_layers(config, trained_length).items()
    }


@of_config
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
    full, known = _completed(config)
    declared = _rope_parameters(full, known)
    limit = first(full, *LENGTH_KEYS)
    trained = limit if trained_length is None else trained_length
    if trained is None:
        raise ValueError("the config has no max_position_embeddings: give trained_length, in tokens")
    check_integer("max_position_embeddings" if trained_length is None else "trained_length", trained, least=2)
    layers = {}
    for layer_type, parameters in declared.items():
        if parameters is not None:
            head_dim, partial = _head(full, known, layer_type, parameters)
            base = float(parameters["rope_theta"])
            if known is not None and known.theta_times and full.get(known.theta_times):
                base *= full[known.theta_times]
            if known is not None and known.alpha and parameters["rope_type"] == "dynamic" and parameters.get("alpha"):
                # HunYuan's dynamic is a fixed, larger base
                base *= parameters["alpha"] ** (head_dim / (head_dim - 2))
                parameters = {"rope_type": "default", "rope_theta": base}
            plain = Geometry(head_dim, base, int(trained), partial)
            layers[layer_type] = (parameters, plain, int(limit or trained))
    if not layers:
        raise ValueError("every layer type of the config is without a rotary embedding; give a model that has one")
    return layers


@of_config
def text_config(config: Any) -> Mapping[str, Any]:
    """The part of a config that describes the language model, as a mapping."""
    return families.language_model(_mapping(config))[0]


def scaled_queries(config: Any) -> str | None:
    """What a config says by which its own attention scales queries by their position, as `key=value`; None: nothing.

    Source:
        transformers 5.23: llama_4_scaling_beta of Ministral 3 and Mistral 4; attn_temperature_tuning of Llama 4's
        layers without rotation. use_logn_attn: Qwen's own code (modeling_qwen.py on the hub).
    """
    full, known = _completed(config)
    for block in (full, *_rope_parameters(full, known).values()):
        for key in ("llama_4_scaling_beta", "llama_4_scaling", "attn_temperature_tuning", "use_logn_attn"):
            if block and block.get(key):
                return f"{key}={block[key]}"
    return None


@of_config
def with_defaults(config: Any) -> dict[str, Any]:
    """The same part, under canonical names and with what the family's class assumes where the config is silent.

    layer_types has the type of every layer where the family has any; rope_parameters stay as the config has them.
    """
    return _completed(config)[0]


def _completed(config: Any) -> tuple[dict[str, Any], Family | None]:
    text, known = families.language_model(_mapping(config))
    return families.completed(text, known), known


def _mapping(config: Any) -> Mapping[str, Any]:
    if not isinstance(config, Mapping) and not hasattr(config, "to_dict"):
        raise ValueError(f"{config!r} is not a config; give config.json as a mapping, or a config object")
    mapping: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    check_types(mapping)
    return mapping


@of_config
def length_key(config: Any) -> str:
    """The key under which a config's language model has its length; max_position_embeddings where it has none."""
    text, known = families.language_model(_mapping(config))
    own = [name for name, canonical in (known.names if known else {}).items() if canonical == LENGTH_KEYS[0]]
    return next((key for key in (*own, *LENGTH_KEYS) if text.get(key) is not None), LENGTH_KEYS[0])


@dataclass(frozen=True)
class AttentionLayer:
    """A decoder layer that attends.

    number: from 0. layer_type: its key in geometry_of's mapping. rotates: whether its queries and keys are rotated.
    window: tokens that it sees, its own included; None for all of them.
    """

    number: int
    layer_type: str
    rotates: bool
    window: int | None


@of_config
def attention_layers(config: Any) -> tuple[AttentionLayer, ...]:
    """Every decoder layer that attends; () where the config does not say how many there are.

    Raises:
        ValueError: the config describes no rotary embedding.
    """
    full, known = _completed(config)
    parameters = _rope_parameters(full, known)
    count = int(full.get("num_hidden_layers") or 0)
    types = full.get("layer_types")
    flat = ALL_LAYERS in parameters
    rotating = families.rotating(full, known, count)
    layers = []
    for number, window in enumerate(families.windows(full, known, count)):
        kind = types[number] if types else ALL_LAYERS
        if kind not in families.NO_ATTENTION:
            key = ALL_LAYERS if flat else (known.types or {}).get(kind, kind) if known else kind
            rotates = rotating[number] and parameters.get(key) is not None
            layers.append(AttentionLayer(number, key, rotates, window))
    return tuple(layers)


@of_config
def rope_parameters(config: Any) -> dict[str, dict[str, Any] | None]:
    """The declared rotary parameters as transformers v5 names them, by layer type; None for layers without rotation.

    rope_type and rope_theta are always there, and factor and original_max_position_embeddings wherever the type needs
    them: filled in from the rest of the config as transformers would, so that they stay valid when the rest changes.

    Raises:
        ValueError: the config describes no rotary embedding.
    """
    return _rope_parameters(*_completed(config))


def _rope_parameters(full: Mapping[str, Any], known: Family | None) -> dict[str, dict[str, Any] | None]:
    """The same of a completed config."""
    _check_rotary(full, known)
    blocks = declared_blocks(full) if known is None else family_blocks(full, known)
    outside = full.get("original_max_position_embeddings") if ALL_LAYERS in blocks else None
    return {
        layer_type: None if block is None else _standard(block, full, known, outside)
        for layer_type, block in blocks.items()
    }


def _standard(
    declared: Mapping[str, Any], full: Mapping[str, Any], known: Family | None, outside: int | None
) -> dict[str, Any]:
    """`outside`: an original length beside the rope parameters, as in Phi-3; to transformers it takes precedence."""
    parameters = {key: value for key, value in declared.items() if key != "type"}
    rope_type = declared.get("rope_type") or declared.get("type") or "default"
    parameters["rope_type"] = ((known.types_of_rope or {}) if known else {}).get(
        rope_type, SYNONYMS.get(rope_type, rope_type)
    )
    partial = _share(full, known)
    if partial is not None:
        parameters.setdefault("partial_rotary_factor", partial)
    if known is not None and known.partial is None and parameters["rope_type"] == "default":
        parameters.pop("partial_rotary_factor", None)  # its plain rotation takes whole heads
    if known is not None and known.by_type is not None:
        parameters.pop("truncate", None)  # which transformers reads beside nested blocks only
    if parameters["rope_type"] in ("yarn", "llama3", "longrope"):
        limit = first(full, *LENGTH_KEYS)
        original = outside or parameters.get("original_max_position_embeddings") or limit
        if original is not None:
            parameters["original_max_position_embeddings"] = original
            if limit is not None:
                parameters.setdefault("factor", limit / original)
    return parameters


def _share(full: Mapping[str, Any], known: Family | None) -> float | None:
    """The rotated share of a head that stands beside the rope parameters, or that the family puts into them."""
    if known is None:
        return None if full.get("qk_rope_head_dim") else first(full, "partial_rotary_factor", "rotary_pct")
    size = families.head_dim(full, known)
    if known.head == "qk_head_dim?" and size:
        return float(full["qk_rope_head_dim"] / size)
    for key in known.partial_keys:
        if full.get(key) is not None and size:
            return float(full[key] / size if key.endswith("_dim") else full[key])
    return known.partial if known.partial_keys or known.by_type is None else None


def _head(
    full: Mapping[str, Any], known: Family | None, layer_type: str, parameters: Mapping[str, Any]
) -> tuple[int, float]:
    """Dimensions per head, and the share of them that is rotated."""
    if full.get("num_attention_heads") == 0:
        raise ValueError("num_attention_heads=0: layers that rotate have at least one head; give their number")
    head_dim = _head_of_layer(full, known, layer_type) or families.head_dim(full, known)
    if not head_dim:
        raise ValueError(
            "the config has neither head_dim nor hidden_size and num_attention_heads: add them, or give the config "
            "object that transformers makes of it (it knows the family's defaults)"
        )
    # the other pairs of a proportional rotation have zero frequency, and count as rotated; multi-head latent attention
    # rotates a part of its heads, whose size has its own key
    whole = parameters["rope_type"] == "proportional" or (
        full.get("qk_rope_head_dim") if known is None else known.head == "qk_rope_head_dim" and known.by_type
    )
    partial = None if whole else parameters.get("partial_rotary_factor")
    if partial is None and known is not None and parameters["rope_type"] == "default":
        partial = known.partial
    if partial is None:
        partial = full["rotary_dim"] / head_dim if known is None and full.get("rotary_dim") and not whole else 1.0
    return int(head_dim), float(partial)


def _head_of_layer(full: Mapping[str, Any], known: Family | None, layer_type: str) -> Any:
    """Dimensions per head where they differ by layer, as in Gemma 4."""
    by_layer = {str(layer): sizes for layer, sizes in (full.get("per_layer_config") or {}).items()}
    name = "qk_rope_head_dim" if known and known.head == "qk_rope_head_dim" else "head_dim"
    for layer, kind in enumerate(full.get("layer_types") or ()):
        if kind == layer_type and by_layer.get(str(layer), {}).get(name):
            return by_layer[str(layer)][name]
    if known is None:
        return full.get("global_head_dim") if layer_type == "full_attention" else None
    if layer_type in known.heads and "per_layer_config" not in full:
        key, default = known.heads[layer_type]
        return full.get(key) or default
    return None


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


def _running(parameters: Mapping[str, Any], plain: Geometry, limit: int) -> DeclaredScaling | None:
    """The declared scaling that transformers applies at run time, beyond the length that the config says."""
    dynamic = parameters["rope_type"] in RUNTIME
    return _declared(parameters, replace(plain, trained_length=limit), limit) if dynamic else None


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


def _check_rotary(full: Mapping[str, Any], known: Family | None) -> None:
    name = full.get("model_type") or (known.name if known else "model")
    if known is not None:
        reason = families.unrotated(full, known)
    else:
        kind = full.get("position_embedding_type")
        other = "alibi" if full.get("alibi") else kind if kind and not kind.startswith(("rope", "rotary")) else None
        rotary = any(full.get(key) for key in ROTARY_KEYS)
        reason = f"its positions are {other}" if other else None
        reason = reason or (None if rotary else f"it has none of {', '.join(ROTARY_KEYS[:3])}")
    if reason:
        raise ValueError(
            f"the config of a {name} describes no rotary embedding ({reason}); give a rotary model"
            + ("" if known else ", or add rope_theta if it is one")
        )
