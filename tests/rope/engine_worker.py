"""What vLLM, SGLang and ExLlamaV2 compute, by their own source files: run as a program, in a process of its own.

    python engine_worker.py ENGINE SOURCE requests.json answers.json

SOURCE is the folder that .ci/engines unpacks the engine's package into. A request is [config.json, arguments]; its
answer has `rotary`, every rotary embedding that the engine's model class makes (with `tables` of inverse frequencies,
attention factor and rows), the `softmax` scales of its attention layers and the `limit` of tokens; or an `error`.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import inspect
import json
import logging
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import Any

import torch
import transformers
from engine_stand_ins import MADE, Importer, Namespace, define, stand_in
from torch import nn
from transformers import AutoConfig, PretrainedConfig

TABLES: list[tuple[list[float], int]] = []
"""Inverse frequencies (by the token) and rows of every table of cosines, as it is computed."""

CALLS: list[tuple[dict[str, Any], Any, list[tuple[list[float], int]]]] = []
"""Arguments of every call of get_rope, the module that it gives, and that module's tables."""


def main(engine: str, source: str, requests: str, answers: str) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    watch_tables()
    for library in ("torchvision", "torchaudio", "cv2", "timm", "mistral_common", "librosa"):
        # remembered before there are stand-ins
        getattr(transformers.utils, f"is_{library}_available", bool)()
    run = {"vllm": vllm_engine, "sglang": sglang_engine, "exllama": exllama_engine}[engine](Path(source))
    given = json.loads(Path(requests).read_text())
    results = []
    for config, arguments in given:
        TABLES.clear()
        CALLS.clear()
        MADE.clear()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                results.append(run(config, dict(zip(arguments[::2], arguments[1::2], strict=True))))
        except Exception as error:  # an engine's own refusal is an answer
            results.append({"error": f"{type(error).__name__}: {error}"[:300], "at": _where(error)})
    Path(answers).write_text(json.dumps(results))


def _where(error: Exception) -> str:
    """The innermost lines that raised an error."""
    lines = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{Path(line.filename).name}:{line.lineno}" for line in reversed(lines))


def watch_tables() -> None:
    """Note what every table of cosines is computed from; on a CPU."""
    einsum = torch.einsum

    def watching(equation: str, *operands: Any) -> Any:
        if equation.replace(" ", "") == "i,j->ij" and len(operands) == 2:
            positions, inv_freq = operands
            step = (positions[1] - positions[0]).double() if len(positions) > 1 else 1.0
            TABLES.append(((inv_freq.double() * step).tolist(), len(positions)))
        return einsum(equation, *operands)

    torch.einsum = watching
    torch.Tensor.cuda = lambda self, *_, **__: self


def watched(get_rope: Any) -> Any:
    """get_rope that also notes its arguments and its tables; one module for the same arguments, as in the engine."""

    def noting(*given: Any, **named: Any) -> Any:
        before = len(TABLES)
        module = get_rope(*given, **named)
        tables = module.__dict__.setdefault("tables_watched", TABLES[before:])
        CALLS.append((dict(inspect.signature(get_rope).bind(*given, **named).arguments), module, tables))
        return module

    return noting


def rotary_of(arguments: dict[str, Any], module: Any, tables: list[tuple[list[float], int]]) -> dict[str, Any]:
    """One rotary embedding: with LongRoPE two tables, else one."""
    buffers = dict(module.named_buffers())  # of the module alone: a stand-in has any attribute
    cache = buffers.get("long_short_cos_sin_cache", buffers.get("cos_sin_cache"))
    pairs, start, parts = cache.shape[-1] // 2, 0, []
    for inv_freq, rows in tables:
        row = cache[start].double()
        attention = torch.sqrt(row[:pairs] ** 2 + row[pairs:] ** 2).mean()
        parts.append({"inv_freq": inv_freq, "attention": float(attention), "rows": rows})
        start += rows
    return {
        "tables": parts,
        "switches_at": vars(module).get("original_max_position_embeddings"),
        "extends": "_ensure_cos_sin_cache_length" in dir(type(module)),  # while serving, in SGLang
        "neox": arguments.get("is_neox_style", True),
        "uses_long": bool(vars(module).get("use_long_rope", False)),
    }


def distinct(values: list[Any]) -> list[Any]:
    texts = {json.dumps(value, sort_keys=True): value for value in values}
    return list(texts.values())


def softmax_scales() -> list[float]:
    """Of every stand-in for an attention layer, in the order in which they were made."""
    scales = []
    for made in MADE:
        given, named = made.given
        scale = named.get("scaling", named.get("scale"))
        if type(made).__name__ == "MultiHeadLatentAttentionWrapper":
            scale = given[2]
        if scale is None and type(made).__name__ in ("RadixAttention", "Attention") and len(given) > 2:
            scale = given[2]
        if isinstance(scale, (int, float)) and "Attention" in type(made).__name__:
            scales.append(float(scale))
    return distinct(scales)


def saved_config(config: dict[str, Any], folder: str) -> PretrainedConfig:
    Path(folder, "config.json").write_text(json.dumps(config))
    return AutoConfig.from_pretrained(folder)


def transformers_backend(config: PretrainedConfig) -> dict[str, Any]:
    """What transformers' own rotary modules hold, where an engine runs transformers' model: on the meta device."""
    text = config.get_text_config()
    name = transformers.models.auto.modeling_auto.MODEL_MAPPING_NAMES[text.model_type]
    model_class = getattr(transformers, name if isinstance(name, str) else name[0])
    module = sys.modules[model_class.__module__]
    rotary_class = next(
        value for key, value in vars(module).items() if key.endswith("RotaryEmbedding") and "Vision" not in key
    )
    rotary = rotary_class(text)
    prefixes = [key.removesuffix("inv_freq") for key, _ in rotary.named_buffers() if key.endswith("inv_freq")]
    parts = []
    for prefix in (prefix for prefix in prefixes if "original" not in prefix):
        inv_freq = getattr(rotary, f"{prefix}inv_freq").double().tolist()
        attention = getattr(rotary, f"{prefix}attention_scaling")
        parts.append({"tables": [{"inv_freq": inv_freq, "attention": float(attention), "rows": 2**31}]})
    return {"rotary": parts, "softmax": [], "backend": "transformers"}


def one_process() -> None:
    """The layers of a model on one device."""
    group = Namespace(is_first_rank=True, is_last_rank=True, world_size=1, rank_in_group=0, rank=0)
    define(
        get_pp_group=lambda: group,
        get_tp_group=lambda: group,
        get_pp_indices=lambda layers, *_: (0, layers),
        get_offloader=lambda: Namespace(wrap_modules=list),
    )


def vllm_engine(source: Path) -> Any:
    real = [
        "vllm.model_executor.layers.rotary_embedding.*",
        "vllm.model_executor.models.*",
        "vllm.models.*",
        "vllm.transformers_utils.config",
        "vllm.transformers_utils.configs.*",
        "vllm.transformers_utils.model_arch_config_convertor",
        "vllm.config.model",
        "vllm.config.utils",
    ]
    others = [
        "cv2",
        "einops",
        "flashinfer",
        "msgspec",
        "zmq",
        "cbor2",
        "blake3",
        "xgrammar",
        "torchaudio",
        "torchvision",
    ]
    others += ["soundfile", "librosa", "mistral_common", "timm", "openai", "prometheus_client", "partial_json_parser"]
    one_process()
    define(resolve_revision=lambda model, revision, token: revision, with_retry=lambda call, _: call())
    define(is_mistral_model_repo=lambda **_: False)
    define(try_get_local_file=lambda model, file_name, **_: Path(model, file_name))
    define(file_or_path_exists=lambda model, config_name, revision: Path(model, config_name).is_file())
    define(direct_register_custom_op=lambda *_, **__: None, device=torch.device("cpu"), device_type="cpu")
    define(AttentionLayerBase=type("AttentionLayerBase", (), {}))
    define(try_get_generation_config=lambda *_, **__: {}, check_max_model_len=lambda length: length)
    define(without_trust_remote_code=lambda named: named)
    sys.meta_path.insert(0, Importer(source, "vllm", real, others))
    rotary = importlib.import_module("vllm.model_executor.layers.rotary_embedding")
    longrope = importlib.import_module("vllm.model_executor.layers.rotary_embedding.phi3_long_rope_scaled_rope")
    rotary.get_rope = watched(rotary.get_rope)
    configs = importlib.import_module("vllm.transformers_utils.config")
    model_config = importlib.import_module("vllm.config.model")
    convertors = importlib.import_module("vllm.transformers_utils.model_arch_config_convertor")
    registry = importlib.import_module("vllm.model_executor.models.registry")

    def run(config: dict[str, Any], arguments: dict[str, str]) -> dict[str, Any]:
        rotary._ROPE_DICT.clear()
        overrides = json.loads(arguments.get("--hf-overrides", "{}"))
        flat = {key: value for key, value in overrides.items() if not isinstance(value, dict)}
        nested = {key: value for key, value in overrides.items() if isinstance(value, dict)}
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(config))
            built = configs.get_config(folder, False, config_format="hf", hf_overrides_kw=flat)
        model_class = model_config.ModelConfig
        holder = model_class.__new__(model_class)
        model_class._apply_dict_overrides(holder, built, nested)
        text = configs.get_hf_text_config(built)
        derived = convertors.ModelArchConfigConvertorBase(built, text).derive_max_model_len_and_key()
        length = int(arguments["--max-model-len"]) if "--max-model-len" in arguments else None
        limit = model_config._get_and_verify_max_len(
            text, Namespace(derived_max_model_len_and_key=derived), None, length, False, None
        )
        architecture = built.architectures[0]
        models = registry._VLLM_MODELS
        if architecture not in models or models[architecture][0] == "transformers":
            return transformers_backend(built) | {"limit": limit}
        file, name = models[architecture]
        file = file if file.startswith("vllm.") else f"vllm.model_executor.models.{file}"
        holder = Namespace(
            hf_config=built,
            hf_text_config=text,
            max_model_len=limit,
            dtype=torch.float32,
            quantization=None,
            use_mla=bool(getattr(text, "kv_lora_rank", None)),
            quantization_config=None,
            is_hybrid=False,
        )
        vllm_config = Namespace(model_config=holder, quant_config=None, lora_config=None, speculative_config=None)
        vllm_config.with_hf_config = lambda hf_config, **_: Namespace(
            **{**vars(vllm_config), "model_config": Namespace(**{**vars(holder), "hf_config": hf_config})}
        )
        define(get_current_vllm_config=lambda: vllm_config)
        longrope.get_current_vllm_config = lambda: vllm_config
        getattr(importlib.import_module(file), name)(vllm_config=vllm_config, prefix="")
        return {"rotary": distinct([rotary_of(*call) for call in CALLS]), "softmax": softmax_scales(), "limit": limit}

    return run


class _Device(str):
    """A device, and what has one."""

    @property
    def device(self) -> str:
        return str(self)


def sglang_engine(source: Path) -> Any:
    real = [
        "sglang.srt.layers.rotary_embedding.*",
        "sglang.srt.models.*",
        "sglang.srt.utils.hf_transformers.common",
        "sglang.srt.utils.hf_transformers.config",
        "sglang.srt.utils.hf_transformers_patches",
        "sglang.srt.configs.model_config",
    ]
    others = [
        "sgl_kernel",
        "flashinfer",
        "aiter",
        "einops",
        "msgspec",
        "zmq",
        "orjson",
        "cv2",
        "decord",
        "pybase64",
        "vllm",
    ]
    one_process()
    group = stand_in("get_pp_group")()
    parallel = Namespace(pp_group=group, pp_rank=0, dcp_enabled=False)
    for name in ("tp", "attn_tp", "attn_cp", "dcp", "pp", "ep", "dp", "attn_dp", "moe_tp", "moe_ep", "moe_dp"):
        setattr(parallel, f"{name}_size", 1)
        setattr(parallel, f"{name}_rank", 0)

    def make_layers(
        layers: int, make: Any, *ranks: Any, prefix: str = "", return_tuple: bool = False, **named: Any
    ) -> Any:
        made = nn.ModuleList([make(idx=layer, prefix=f"{prefix}.{layer}") for layer in range(layers)])
        staged = return_tuple or ranks or named.get("pp_rank") is not None
        return (made, 0, layers) if staged else made

    define(
        register_customized_processor=lambda *_, **__: lambda decorated: decorated,
        get_num_fused_shared_experts=lambda *_: 0,
        get_device=lambda *_, **__: _Device("cpu"),
        add_prefix=lambda name, _: name,
        sparse=True,  # a layer whose experts are declared elsewhere
        append_stages=lambda *_, **__: (stand_in("stage"), stand_in("stage")),
        get_parallel=lambda *_, **__: parallel,
        make_layers=make_layers,
        make_pp_layers=lambda *given, **named: make_layers(*given, pp_rank=0, **named),
    )
    sys.meta_path.insert(0, Importer(source, "sglang", real, others))
    rotary = importlib.import_module("sglang.srt.layers.rotary_embedding")
    rotary.get_rope = watched(rotary.get_rope)
    rotary.get_rope_wrapper = lambda *given, device=None, **named: rotary.get_rope(*given, **named)
    common = importlib.import_module("sglang.srt.utils.hf_transformers.common")
    define(get_rope_config=common.get_rope_config)  # under the old name of its module
    classes = {}
    for file in sorted(glob.glob(str(source / "sglang/srt/models/*.py"))):
        try:
            entry = importlib.import_module(f"sglang.srt.models.{Path(file).stem}").EntryClass
        except Exception:  # a file for other hardware, or without a model
            continue
        classes |= {one.__name__: one for one in (entry if isinstance(entry, (list, tuple)) else [entry])}

    def run(config: dict[str, Any], arguments: dict[str, str]) -> dict[str, Any]:
        rotary.factory._ROPE_DICT.clear()
        with tempfile.TemporaryDirectory() as folder:
            built = saved_config(config, folder)
        override(built, json.loads(arguments.get("--json-model-override-args", "{}")))
        text = common.get_hf_text_config(built)
        limit = common.get_context_length(text)
        length = int(arguments.get("--context-length", limit))
        if length > limit:
            raise ValueError(f"context_length ({length}) is greater than the derived context_length ({limit})")
        architecture = built.architectures[0]
        if architecture not in classes:
            return transformers_backend(built) | {"limit": limit}
        classes[architecture](built)
        return {"rotary": distinct([rotary_of(*call) for call in CALLS]), "softmax": softmax_scales(), "limit": limit}

    def override(config: PretrainedConfig, overrides: dict[str, Any]) -> None:
        """As get_config of SGLang does, whose file imports too much."""
        for key, value in overrides.items():
            current = getattr(config, key, None)
            if isinstance(value, dict) and isinstance(current, PretrainedConfig):
                current.update(value)
            elif key in ("rope_scaling", "rope_parameters") and isinstance(value, dict) and isinstance(current, dict):
                setattr(config, key, {**current, **value})
            else:
                setattr(config, key, value)

    return run


def exllama_engine(source: Path) -> Any:
    define(has_flash_attn=False)
    real = [f"exllamav2.{name}" for name in ("config", "architecture", "rope", "device", "model_init")]
    sys.meta_path.insert(0, Importer(source, "exllamav2", real, []))
    importlib.import_module("exllamav2.rope")
    configs = importlib.import_module("exllamav2.config")
    init = importlib.import_module("exllamav2.model_init")
    device = importlib.import_module("exllamav2.device")
    prepare = configs.ExLlamaV2Config.prepare
    device._torch_device = lambda _: "cpu"
    get_rope_params = device.rope.get_rope_params
    attention: list[float] = []  # before the table is rounded to half precision

    def noting(*given: Any) -> Any:
        inv_freq, factor = get_rope_params(*given)
        attention.append(float(factor))
        return inv_freq, factor

    device.rope.get_rope_params = noting

    def run(config: dict[str, Any], arguments: dict[str, str]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(config))
            made: list[Any] = []

            class Model:
                def __init__(self, config: Any) -> None:
                    made.append(config)

            init.ExLlamaV2Config = type(
                "Config",
                (configs.ExLlamaV2Config,),
                {
                    "prepare": lambda self: prepare(self, no_tensors=True),
                    "arch_compat_overrides": lambda *_, **__: None,
                },
            )
            init.ExLlamaV2 = Model
            parser = init.argparse.ArgumentParser()
            init.add_args(parser)
            flags = [part for pair in arguments.items() for part in pair]
            with contextlib.suppress(ValueError, TypeError):  # the model itself is not loaded
                init.init(parser.parse_args(["-m", folder, *flags]), skip_load=True, quiet=True)
        (read,) = made
        attention.clear()
        context = types.SimpleNamespace(model=Namespace(config=read), device_idx=-1, archparams=read.arch.lm)
        device.ExLlamaV2DeviceContext.prepare_sincos(context)
        parts = [
            {"tables": [{"inv_freq": inv_freq, "attention": factor, "rows": rows}]}
            for (inv_freq, rows), factor in zip(TABLES, attention, strict=True)
        ]
        return {"rotary": distinct(parts), "softmax": [], "limit": read.max_seq_len}

    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
