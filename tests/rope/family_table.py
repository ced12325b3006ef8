"""Writes rope/families.json: what each config class of the installed transformers assumes where a config is silent.

    uv run python tests/rope/family_table.py

Every line is measured: the class is given single keys, and what its config object and its rotary module then hold is
compared. What a family's code decides otherwise is in CODE, with where it was read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from importlib import import_module
from itertools import groupby, product
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto as auto

from rope.families import TABLE
from rope.rotary import rotary_slots

SIZES = ("hidden_size", "num_attention_heads", "head_dim", "num_hidden_layers", "max_position_embeddings")
"""Defaults that every line has, where the class has them."""

READ = (
    *("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "attention_head_dim", "global_head_dim", "swa_head_dim"),
    *("sliding_window", "attention_chunk_size", "use_sliding_window", "max_window_layers", "sliding_window_size"),
    *("no_rope_layer_interval", "attn_layer_period", "attn_layer_offset", "attn_layer_indices", "block_types"),
    *("position_embedding_type", "alibi", "use_mem_rope", "original_max_position_embeddings", "full_attn_idxs"),
    *("local_attention", "attention_window_size", "full_attention_interval", "sliding_window_pattern"),
    *("global_attn_every_n_layers", "layer_group_size", "prefix_dense_sliding_window_pattern"),
)
"""Other keys that decide what rotates, how, and how far it sees."""

BUILDS = {
    "chameleon": {"vocabulary_map": {"<image>": 1}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl_text": {"head_dim": 128},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "zamba2": {"use_mem_rope": True},
    "granitemoehybrid": {"position_embedding_type": "rope"},
}
"""What the class needs, beyond its own defaults, to be built or to rotate."""

THETAS = (
    *("rope_theta", "rotary_emb_base", "rope_local_base_freq", "global_rope_theta", "local_rope_theta"),
    *("swa_rope_theta", "compress_rope_theta"),
)
SHARES = ("partial_rotary_factor", "rotary_pct", "rotary_dim")
INTERVALS = (
    *("sliding_window_pattern", "full_attention_interval", "global_attn_every_n_layers", "no_rope_layer_interval"),
    *("layer_group_size", "attn_layer_period"),
)
NESTS = ("text_config", "thinker_config", "llm_config", "language_config", "vlm_config", "decoder", "decoder_config")
ODD = 54_321.0
"""A theta that no class has."""


def _quotient(base: Mapping[str, Any], keys: Mapping[str, Any]) -> int:
    full = {**base, **keys}
    return int(full["hidden_size"] // full["num_attention_heads"])


def _own(base: Mapping[str, Any], keys: Mapping[str, Any]) -> int:
    return keys["head_dim"] or _quotient(base, keys)


HEADS: dict[str, Any] = {
    "head_dim": lambda b, k: (b | k).get("head_dim") or _quotient(b, k),
    "hidden": _quotient,
    "qk_rope_head_dim": lambda b, k: (b | k)["qk_rope_head_dim"],
    "qk_rope_head_dim?": lambda b, k: _own(b, k) if "head_dim" in k else (b | k)["qk_rope_head_dim"],
    "qk_head_dim?": lambda b, k: _own(b, k) if "head_dim" in k else (b | k)["qk_rope_head_dim"] + b["qk_nope_head_dim"],
    "twice?": lambda b, k: _own(b, k) if "head_dim" in k else 2 * _quotient(b, k),
}
"""How many dimensions of a head the rotary module takes, before the rotated share; see rope.families.head_dim."""


def outer_types() -> list[str]:
    """The model types that transformers generates text with, alone or beside images and sound."""
    names = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    return sorted({name for mapping in names for name in mapping})


class Decoder:
    """The config class of one language model of model_type `kind`, which transformers builds as, or within, `outer`."""

    def __init__(self, kind: str, config: Any, outer: str) -> None:
        self.kind, self.config, self.outer = kind, config, outer

    @cached_property
    def rotary(self) -> Any:
        """The class of its rotary module, None where it has none: from the built model, or by name in its file."""
        can_be_built = False
        for keys in ({"num_hidden_layers": 2}, {}):  # two layers are quick, and may be too few to have attention
            with contextlib.suppress(Exception):
                model = built(self.make(**keys))
                can_be_built = True
                modules = [slot.module for slot in rotary_slots(model)]
                return next(type(m) for m in modules if isinstance(getattr(m, "config", None), self.config))
        if can_be_built:
            return None
        file = vars(import_module(self.config.__module__.replace("configuration_", "modeling_")))
        named = [n for n in file if n.endswith("RotaryEmbedding") and "Vision" not in n and "Audio" not in n]
        return file[named[0]] if named else None

    def make(self, **keys: Any) -> Any:
        """A config object of these keys."""
        return self.config(**json.loads(json.dumps(BUILDS.get(self.kind, {}) | keys)))

    def held(self, config: Any) -> dict[str, tuple[tuple[float, ...], float]]:
        """Inverse frequencies and attention factor by layer type, as the rotary module computes them."""
        module = self.rotary(config)
        slots = [n.removesuffix("inv_freq") for n in module._buffers if n.endswith("inv_freq") and "original" not in n]
        return {
            slot.removesuffix("_") or "all": (
                tuple(getattr(module, f"{slot}inv_freq").double().tolist()),
                float(getattr(module, f"{slot}attention_scaling", 1.0)),
            )
            for slot in slots
        }


def built(config: Any) -> Any:
    """The model of a config object on the meta device."""
    mappings = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_MAPPING,
    )
    chosen = next(mapping[type(config)] for mapping in mappings if type(config) in mapping)
    with torch.device("meta"):
        return chosen._from_config(config, dtype=torch.float32)


def text_of(config: Any) -> tuple[list[str], Any]:
    """The path to the language model in a config object, and that part."""
    for key in NESTS:
        inner = getattr(config, key, None)
        if hasattr(inner, "model_type"):
            path, text = text_of(inner)
            return [key, *path], text
    return [], config


@lru_cache(maxsize=1)
def decoders() -> dict[str, Decoder]:
    """Every language model of transformers by the model_type of its config."""
    found: dict[str, Decoder] = {}
    for outer in outer_types():
        with contextlib.suppress(Exception):
            _, text = text_of(CONFIG_MAPPING[outer](**BUILDS.get(outer, {})))
            found.setdefault(text.model_type, Decoder(text.model_type, type(text), outer))
    return found


LAYER_RULES = {
    "qwen2": "late window",
    "qwen3": "late window",
    "qwen2_vl_text": "late window",
    "qwen2_5_vl_text": "late window",
    "qwen2_5_omni_text": "late window",
    "dots1": "late window",
    "qwen2_moe": "early window",
    "ministral": "window",
    "unlimited_ocr_text": "reference window",
    "bamba": "attn_layer_indices",
    "lfm2": "full_attn_idxs",
    "llama4_text": "no_rope_layers",
    "smollm3": "no_rope_layers, window",
    "recurrent_gemma": "block_types",
    "mllama_text_model": "cross_attention_layers",
}
"""Of families whose layer types follow from other keys than a count: their __post_init__, or layers_block_type."""

STILL = {
    **dict.fromkeys(("afmoe", "cohere2", "cohere2_moe", "flint"), "full_attention"),
    **dict.fromkeys(("exaone4", "exaone_moe", "kolibri1"), "full_attention beside windows"),
    **dict.fromkeys(("smollm3", "llama4_text", "mistral_large4_text"), "no_rope_layers"),
    **dict.fromkeys(("granite_swa", "granitemoe_swa"), "layer_rope_theta"),
    **dict.fromkeys(("muse_glimmer_text", "muse_spark_text"), "layer_rope_theta, from end"),
}
"""What decides that a layer does not rotate: the forward of its attention, which tests/rope/test_families.py runs."""

ROTATES = {
    "zamba2": {"use_mem_rope": True},
    "granitemoehybrid": {"position_embedding_type": "rope"},
    "falcon": {"alibi": False},
}
"""Keys without which the model rotates nothing: __init__ of its class."""

OWN_TYPES = {
    "hunyuan_vl_text": {"xdrope": "dynamic"},
    "phi3": {"su": "longrope", "yarn": "longrope"},
    "phi4_multimodal": {"su": "longrope", "yarn": "longrope"},
}
"""Names of a rope_type that a class turns into others: its convert_rope_params_to_dict."""

CODE: dict[str, dict[str, Any]] = {
    **{
        kind: {"head": "head_dim", "heads": {"full_attention": ["global_head_dim", 512]}}
        for kind in ("gemma4_text", "gemma4_unified_text")
    },
    "diffusion_gemma_text": {
        "head": "head_dim",
        "heads": {"full_attention": ["global_head_dim", 512]},
        "partial_keys": ["partial_rotary_factor"],
    },
    **{
        kind: {"partial_keys": ["partial_rotary_factor"]}  # into the blocks at the rotary module, for scaled types
        for kind in ("gemma3_text", "gemma3n_text", "modernbert-decoder", "olmo3", "t5gemma2_decoder")
    },
    "cohere2_moe": {"ignored": ["rope_scaling", "partial_rotary_factor"]},
    "dots3_note_text": {
        "spread": True,
        "theta": 80_000_000.0,
        "head": "qk_rope_head_dim",
        "heads": {"sliding_attention": ["swa_qk_rope_head_dim", 64]},
        "scaled": [],
    },
    "deepseek_v4": {
        "head": "head_dim",
        "types": {
            "sliding_attention": "main",
            "compressed_sparse_attention": "compress",
            "heavily_compressed_attention": "compress",
        },
        "by_type": {
            "main": {"rope_type": "default", "rope_theta": 10_000.0},
            "compress": {"rope_type": "default", "rope_theta": 160_000.0},
        },
        "partial": 0.125,
        "partial_keys": ["partial_rotary_factor", "qk_rope_head_dim"],
        "scaled_defaults": {"yarn": {"attention_factor": 1.0}},
    },
    "step3p5": {
        "by_type": {
            kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in ("full_attention", "sliding_attention")
        },
        "theta_keys": {kind: ["rope_theta"] for kind in ("full_attention", "sliding_attention")},
        "listed_share": "partial_rotary_factors",
    },
    "minimax": {"windowed": "full_attention"},
    "moshi": {"window": None},  # its mask has no window
    "kyutai_speech_to_text": {"window": None},
}
"""What is read in a class's __post_init__ or forward, where single keys do not show it."""

REMOTE: dict[str, dict[str, Any]] = {
    "chatglm": {
        "defaults": {
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "head_dim": 128,
            "num_hidden_layers": 28,
            "max_position_embeddings": 2048,
        },
        "names": {
            "kv_channels": "head_dim",
            "num_layers": "num_hidden_layers",
            "seq_length": "max_position_embeddings",
        },
        "rotates": {"position_encoding_2d": None},
        "model": "the code of ChatGLM-6B, which rotates along two axes,",
        "theta_keys": [],
        "theta_times": "rope_ratio",
        "partial": 0.5,
        "partial_keys": [],
        "source": "modeling_chatglm.py of GLM-4 (XuRui314/GLM4v-Finetune @513b75d): half a head, base * rope_ratio",
    },
    "qwen": {
        "defaults": {"head_dim": 128, "max_position_embeddings": 8192},
        "names": {"kv_channels": "head_dim", "seq_length": "max_position_embeddings"},
        "theta_keys": ["rotary_emb_base"],
        "partial": 1.0,
        "partial_keys": ["rotary_pct"],
        "source": "modeling_qwen.py of Qwen 1 (alibaba/MNN transformers/llm/export/llm_models/Qwen-1_8B)",
    },
    "baichuan": {
        "defaults": {"max_position_embeddings": 4096},
        "names": {"model_max_length": "max_position_embeddings"},
        "rotates": {"hidden_size": 4096},
        "model": "the code of Baichuan, whose 13B models have ALiBi,",
        "theta_keys": [],
        "source": "vllm/model_executor/models/baichuan.py: rotary where hidden_size is 4096, else ALiBi",
    },
    "openelm": {
        "names": {"max_context_length": "max_position_embeddings", "num_transformer_layers": "num_hidden_layers"},
        "theta_keys": ["rope_freq_constant"],
        "source": "modeling_openelm.py: OpenELMRotaryEmbedding(head_dim, max_context_length, rope_freq_constant)",
    },
    "hunyuan": {"alpha": True, "source": "modeling_hunyuan.py: base * alpha ** (head_dim / (head_dim - 2))"},
    "stablelm_epoch": {
        "partial": 1.0,
        "partial_keys": ["rope_pct"],
        "source": "modeling_stablelm_epoch.py: rotary_ndims = int(head_dim * rope_pct)",
    },
    "phi3small": {
        "theta_keys": ["rope_embedding_base"],
        "source": "modeling_phi3_small.py: RotaryEmbedding(dim=head_dim, base=rope_embedding_base)",
    },
    "deepseek_vl_v2": {"inside": ["language_config", "deepseek_vl_v2_text"]},
    "deepseek_vl_v2_text": {
        "defaults": {"qk_rope_head_dim": 64, "max_position_embeddings": 2048},
        "head": "qk_rope_head_dim",
        "source": "modeling_deepseek.py of DeepSeek-VL2: multi-head attention over whole heads where use_mla is false",
    },
    **{
        kind: {"source": "its code takes a base of 10000 where the config has none"}
        for kind in ("code_llama", "RefinedWeb", "RefinedWebModel", "internlm", "minicpm")
    },
}
"""Families that come with code of their own, which transformers does not have: facts and where they were read."""

BLOCKS = ["rope_parameters", "rope_scaling"]

SINUSOIDAL: dict[str, dict[str, Any]] = {
    **{
        kind: {"theta_keys": [], "partial": 1.0, "partial_keys": ["rotary_dim"], "head": "hidden", "ignored": BLOCKS}
        for kind in ("gptj", "codegen")
    },
    "roformer": {"theta_keys": [], "head": "hidden", "ignored": BLOCKS},
}
"""Families that rotate by a table of sines with base 10000 in their code, without a rotary module."""


def measured(decoder: Decoder) -> dict[str, Any]:
    """The line of one language model."""
    line: dict[str, Any] = {"defaults": dict(defaults(decoder))}
    names = {
        real: name for name, real in decoder.config.attribute_map.items() if name in (*SIZES, *READ, "layer_types")
    }
    if names:
        line["names"] = names
    if decoder.kind in SINUSOIDAL:
        return line | SINUSOIDAL[decoder.kind]
    if decoder.rotary is None:
        return {"rotates": False, "model": model_name(decoder)}
    if decoder.kind in ROTATES:
        line |= {"rotates": ROTATES[decoder.kind], "model": model_name(decoder)}
    by_type = any(isinstance(entry, Mapping) for entry in decoder.make().rope_parameters.values())
    line |= by_layer_type(decoder) if by_type else flat(decoder)
    if decoder.kind in LAYER_RULES:
        line["layers"] = {"rule": LAYER_RULES[decoder.kind]}
    elif pattern := layer_pattern(decoder):
        line["layers"] = pattern
    if decoder.kind in STILL:
        line["still"] = STILL[decoder.kind]
    if "sliding_window" in decoder.config.__dataclass_fields__:
        line["window"] = "sliding_window"
    if decoder.kind in OWN_TYPES:
        line["types_of_rope"] = OWN_TYPES[decoder.kind]
    if hasattr(decoder.rotary, "compute_ntk_alpha_rope_parameters"):
        line["alpha"] = True
    line |= CODE.get(decoder.kind, {})
    return {key: value for key, value in line.items() if value is not None}


def model_name(decoder: Decoder) -> str:
    names = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        auto.MODEL_MAPPING_NAMES,
    )
    found = next(m[kind] for kind in (decoder.kind, decoder.outer) for m in names if kind in m)
    return found if isinstance(found, str) else found[0]


def layer_pattern(decoder: Decoder) -> dict[str, Any] | None:
    """The layer types of a config that gives none: some first, a cycle, a last one; counted from the end or the start.

    None where the class has no layer types, or those of one number of layers only.
    """

    def types(count: int, **keys: Any) -> list[str]:
        config = decoder.make(num_hidden_layers=count, **keys)
        return list(getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or [])

    try:
        found = [types(40), types(41)]
    except Exception:
        return None
    if not found[0]:
        return None
    for from_end, length, start, end in product((False, True), range(1, 9), range(3), (0, 1)):
        rows = [row[::-1] if from_end else row for row in found]
        aligned = length * -(-start // length)
        cycle = rows[0][aligned : aligned + length]
        if all(row[n] == cycle[n % length] for row in rows for n in range(start, len(row) - end)):
            pattern: dict[str, Any] = {"cycle": counted(cycle[::-1] if from_end else cycle)}
            pattern |= {"first": counted(rows[0][:start])} if start else {}
            pattern |= {"last": counted(rows[0][-1:])} if end else {}
            pattern |= {"from_end": True} if from_end else {}
            for key in INTERVALS:
                with contextlib.suppress(Exception):
                    if types(40, **{key: 5}) != types(40, **{key: 7}):
                        pattern["every"] = key
            return pattern
    raise ValueError(f"{decoder.kind}: no pattern in {found[0]}")


def counted(names: list[str]) -> list[str]:
    return [f"{len(list(same))} {name}" for name, same in groupby(names)]


def defaults(decoder: Decoder) -> Iterator[tuple[str, Any]]:
    """What the class has for a key that a config does not give."""
    fields, names = decoder.config.__dataclass_fields__, decoder.config.attribute_map
    for name in (*SIZES, *READ):
        field = fields.get(names.get(name, name))
        if field is not None and isinstance(field.default, (int, float, str)):
            yield name, field.default
        elif name == "max_position_embeddings" and isinstance(getattr(decoder.make(), name, None), int):
            yield name, getattr(decoder.make(), name)


def thetas(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Theta by layer type; under "all" where they are one."""
    if any(isinstance(entry, Mapping) for entry in parameters.values()):
        return {kind: (entry or {}).get("rope_theta") for kind, entry in parameters.items()}
    return {"all": parameters.get("rope_theta")}


def read_by(decoder: Decoder, keys: tuple[str, ...], wanted: str, value: float, **others: Any) -> dict[str, list[str]]:
    """By layer type, the keys beside the rope parameters whose value arrives in them."""
    found: dict[str, list[str]] = {}
    for key in keys:
        with contextlib.suppress(Exception):
            parameters = decoder.make(**{key: value}, **others).rope_parameters
            blocks = {k: v for k, v in parameters.items() if isinstance(v, Mapping)} or {"all": parameters}
            for kind, block in blocks.items():
                if block.get(wanted) == value:
                    found.setdefault(kind, []).append(key)
    return found


def shares(decoder: Decoder) -> list[str]:
    """The keys beside the rope parameters that the rotated share is read from."""
    found = read_by(decoder, SHARES[:2], "partial_rotary_factor", 0.375).get("all", [])
    with contextlib.suppress(Exception):
        config = decoder.make(rotary_dim=24, head_dim=96)
        if (
            config.rope_parameters.get("partial_rotary_factor")
            == 0.25
            != decoder.make(head_dim=96).rope_parameters.get("partial_rotary_factor")
        ):
            found.append("rotary_dim")
    return found


def flat(decoder: Decoder) -> dict[str, Any]:
    """One block of parameters for all layers."""
    line: dict[str, Any] = {}
    own = dict(decoder.make().rope_parameters)
    bare = own
    with contextlib.suppress(Exception):
        bare = decoder.make(rope_parameters={"rope_type": "linear", "factor": 2.0}).rope_parameters
        bare["rope_theta"]
    bare = bare if "rope_theta" in bare else own
    if bare["rope_theta"] != 10_000.0:
        line["theta"] = bare["rope_theta"]
    beside = read_by(decoder, THETAS, "rope_theta", ODD).get("all", [])
    others = set(own) - {"rope_theta", "rope_type", "partial_rotary_factor"}
    if others or own["rope_type"] != "default" or own["rope_theta"] != bare["rope_theta"]:
        line["rope"] = {key: value for key, value in own.items() if key != "rope_theta" or not beside}
    block = {key: value for key, value in own.items() if key != "rope_theta"}
    inside = read_by(decoder, THETAS, "rope_theta", ODD, rope_parameters=block).get("all", [])
    keys = list(dict.fromkeys([*inside, *beside]))
    if keys != ["rope_theta"]:
        line["theta_keys"] = keys
    head, share = head_rule(decoder)
    if head != "head_dim":
        line["head"] = head
    if share:  # else its plain rotation takes whole heads, whatever the config says
        line["partial"] = bare.get("partial_rotary_factor", 1.0)
        keys = shares(decoder)
        if keys != ["partial_rotary_factor"]:
            line["partial_keys"] = keys
    return line


def by_layer_type(decoder: Decoder) -> dict[str, Any]:
    """A block of parameters for every layer type."""
    own = decoder.make().rope_parameters
    line: dict[str, Any] = {"by_type": {kind: block for kind, block in own.items()}}
    line["theta_keys"] = read_by(decoder, THETAS, "rope_theta", ODD)
    scaled: list[str] = []
    with contextlib.suppress(Exception):
        parameters = decoder.make(rope_scaling={"rope_type": "linear", "factor": 3.0}).rope_parameters
        scaled = [k for k, block in parameters.items() if isinstance(block, Mapping) and block.get("factor") == 3.0]
    line["scaled"] = scaled
    line["partial_keys"] = []
    head, share = head_rule(decoder)
    if head != "head_dim":
        line["head"] = head
    if share:
        line["partial"] = 0.334 if decoder.kind == "mimo_v2_flash" else 1.0  # of a block without one
    return line


def head_rule(decoder: Decoder) -> tuple[str, bool]:
    """How many dimensions rotate: the rule that holds for all sizes tried, and whether plain rotation takes a share."""

    def pairs(**keys: Any) -> dict[str, int]:
        return {kind: len(inv_freq) for kind, (inv_freq, _) in decoder.held(decoder.make(**keys)).items()}

    base: dict[str, Any] = dict(defaults(decoder)) | BUILDS.get(decoder.kind, {})
    plain = decoder.make().rope_parameters
    nested = any(isinstance(block, Mapping) for block in plain.values())

    def with_share(share: float) -> dict[str, Any]:
        block = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": share}
        return {k: v and {**v, **block} for k, v in plain.items()} if nested else block

    share = False
    with contextlib.suppress(Exception):
        share = pairs(rope_parameters=with_share(0.5)) != pairs(rope_parameters=with_share(1.0))
    tried = []
    sizes = {"hidden_size": 1024, "num_attention_heads": 8}
    for keys in ({}, sizes, {"head_dim": 96}, sizes | {"head_dim": None}, {"qk_rope_head_dim": 48}):
        with contextlib.suppress(Exception):
            tried.append((base, keys, max(pairs(rope_parameters=with_share(1.0), **keys).values())))
    for name, rule in HEADS.items():
        with contextlib.suppress(Exception):
            if all((rule(all_, keys) + 1) // 2 == count for all_, keys, count in tried):
                return name, share
    return f"? {[(k, n) for _, k, n in tried]}", share


def takes_one(outer: str, key: str) -> bool:
    """Whether the class has one class for its language model, whatever model_type the config gives that."""
    with contextlib.suppress(Exception):
        given = BUILDS.get(outer, {}) | {key: {"model_type": "of no class"}}
        return hasattr(getattr(CONFIG_MAPPING[outer](**given), key), "model_type")
    return False


def assumed_within(outer: str, key: str) -> dict[str, Any]:
    """What the class takes for its language model where a config leaves that out, other than the defaults of its class.

    filled: whether it takes them also where the config gives it without those keys.
    """
    make, names = CONFIG_MAPPING[outer], sorted({*SIZES, *READ, "rope_parameters"})

    def assumed(given: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(Exception):
            inner = getattr(make(**BUILDS.get(outer, {}) | given), key)
            own = type(inner)(vocab_size=1000)
            found = {n: getattr(inner, n) for n in names if getattr(inner, n, None) != getattr(own, n, None)}
            head = getattr(inner, "head_dim", None)
            return found | (
                {"head_dim": head} if found and head != inner.hidden_size // inner.num_attention_heads else {}
            )
        return {}

    silent, given = assumed({}), assumed({key: {"vocab_size": 1000}})
    return {"silent": silent, **({"filled": True} if given else {})} if silent else {}


def wrappers() -> dict[str, dict[str, Any]]:
    """The configs that hold a language model: under which key, of which type, and what is in it if it is left out."""
    lines = {}
    for outer in outer_types():
        with contextlib.suppress(Exception):
            config = CONFIG_MAPPING[outer](**BUILDS.get(outer, {}))
            key = next((key for key in NESTS if hasattr(getattr(config, key, None), "model_type")), None)
            if key is not None:
                inner = getattr(config, key)
                lines[outer] = {"inside": [key, inner.model_type]} | ({"only": True} if takes_one(outer, key) else {})
                lines[outer] |= assumed_within(outer, key)
                if inner.model_type not in (*outer_types(), *decoders()):
                    _, text = text_of(inner)
                    inside = next(k for k in NESTS if hasattr(getattr(inner, k, None), "model_type"))
                    lines[inner.model_type] = {"inside": [inside, text.model_type]}
    return lines


def table() -> dict[str, Any]:
    """All of families.json."""
    lines = wrappers() | {kind: measured(decoder) for kind, decoder in decoders().items()}
    lines["exaone4_5_text"] = lines["exaone4"]  # the name in the first release: Exaone4_5_Config.__post_init__
    return {"transformers": transformers.__version__, "families": dict(sorted((REMOTE | lines).items()))}


def written(content: Mapping[str, Any]) -> str:
    """families.json as text: a line a family."""
    lines = ",\n".join(f"  {json.dumps(kind)}: {json.dumps(line)}" for kind, line in content["families"].items())
    return f'{{\n "transformers": {json.dumps(content["transformers"])},\n "families": {{\n{lines}\n }}\n}}\n'


def main() -> None:
    logging.disable()
    warnings.simplefilter("ignore")
    TABLE.write_text(written(table()), encoding="utf-8")
    print(TABLE)


if __name__ == "__main__":
    main()
