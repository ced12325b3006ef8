"""A checkpoint's tokenizer and weights in memory; imports torch where it loads."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.models import conversion, light, weights
from pipelines.models.find import (
    BYTE_END,
    RANDOM,
    byte_backend,
    config_of,
    describe,
    locate,
    random_config,
    side_file,
    state,
)
from pipelines.records.cells import Model, Refusal
from pipelines.records.phases import timed
from pipelines.records.refusal import first_line
from rope.config import text_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def materialise(model: Model) -> str:
    """What from_pretrained takes: a folder, or a hub id. A GGUF file is converted once, into the user's cache.

    transformers takes 25 s to read SmolLM2's GGUF file and its tokenizer, and 0.3 s for the folder made of it.
    """
    source = locate(model)
    if source.gguf is None:
        return str(source.folder or source.hub)
    # Digested anew where it is not known: the files of one model never stand for those of another.
    return str(conversion.convert_once(source.gguf, model.fingerprint or describe(model)[0].fingerprint))


def tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer; of a random model one of bytes.

    Raises:
        Refusal: the model has no tokenizer that loads, or that of another model; or its files changed since it was
            described.
    """
    return _tokenizer(model, state(model))


@lru_cache(maxsize=4)
@timed("tokenizer")
def _tokenizer(model: Model, state: tuple[Any, ...]) -> PreTrainedTokenizerBase:
    """state: of the model's files; a tokenizer is kept only while they are the same."""
    light.requests()
    from transformers import AutoTokenizer

    if model.path == RANDOM:
        return byte_tokenizer()
    folder = materialise(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=model.revision, trust_remote_code=False)
    except Exception as error:  # whatever its files make transformers, tokenizers or sentencepiece raise
        if fault := _fault_of_config(folder, model.revision):
            reason = f"transformers does not take its config.json ({fault}); correct it"
            raise Refusal(f"model {model.name}: {reason}") from error
        raise Refusal(f"model {model.name}: its tokenizer does not load ({first_line(error)})") from error
    rows = text_config(config_of(model)).get("vocab_size")
    if isinstance(rows, int) and tokenizer.vocab_size > rows:
        raise Refusal(
            f"model {model.name}: its tokenizer has {tokenizer.vocab_size:,} tokens, and its config says "
            f"vocab_size {rows:,}: they are not of one model; give it the tokenizer that it was trained with"
        )
    check_unchanged(model)
    # Its own limit only makes it warn about long texts; what fits is decided by the scorer.
    tokenizer.model_max_length = sys.maxsize
    return tokenizer  # type: ignore[no-any-return]


def _fault_of_config(folder: str, revision: str | None) -> str:
    """What transformers has against a model's config, which it reads for a tokenizer too; nothing where it takes it."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)
    except Exception as error:  # whatever the file makes transformers raise
        return first_line(error.__cause__ or error)  # of a validator's error, the reason is its cause
    return ""


@lru_cache(maxsize=1)
@timed("weights")
def model(model: Model, dtype: str, device: str) -> PreTrainedModel:
    """The model in evaluation mode. The last one stays in memory: cells come a model at a time.

    Raises:
        Refusal: its weights do not load, or are not all those that the model has; or its files changed since it was
            described.
    """
    light.load()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    source, kind = locate(model), getattr(torch, dtype)
    if source.shape is not None:
        shape = {key: value for key, value in random_config(source.shape).items() if key != "model_type"}
        torch.manual_seed(int(shape.pop("seed")))
        with torch.device(device):  # drawn there: on a CPU 8 billion numbers take minutes
            built = LlamaForCausalLM(LlamaConfig(**shape))
        for parameter in built.parameters():  # and not the model, whose rotary frequencies stay in float32
            parameter.data = parameter.data.to(kind)
        return built.eval()
    # A worker that holds several GPUs was given them for a text or for a model that one does not hold.
    several = device == "cuda" and torch.cuda.device_count() > 1
    spread = {"device_map": "auto"} if several and not _fits(model, kind) else {}
    loaded = complete(model, kind, **spread)
    check_unchanged(model)
    return (loaded if spread else loaded.to(device)).eval()  # type: ignore[no-any-return]


def _fits(model: Model, dtype: torch.dtype) -> bool:
    """Whether the weights leave half of the first GPU to a text; not where their files are not here yet."""
    import torch

    folder = Path(materialise(model))
    files = weights.weight_files(folder, config_of(model)).files if folder.is_dir() else ()
    size = sum(file.stat().st_size for file in files if file.is_file()) * dtype.itemsize / 2  # files of 16 bits
    return 0 < size <= torch.cuda.get_device_properties(0).total_memory / 2


def sharing(model: PreTrainedModel) -> tuple[torch.device, ...]:
    """The devices that share a text: all GPUs that this process holds, where the model is on the first alone."""
    import torch

    if model.device.type != "cuda" or torch.cuda.device_count() < 2 or getattr(model, "hf_device_map", None):
        return ()
    return tuple(torch.device("cuda", number) for number in range(torch.cuda.device_count()))


def check_unchanged(model: Model) -> None:
    """Refuse a model that was described, and whose files are others by now: after they were read, so that what was
    read is what is known by the fingerprint. A worker on another machine may have other files under the same path."""
    if model.fingerprint and state(model) and (now := describe(model)[0].fingerprint) != model.fingerprint:
        raise Refusal(
            f"model {model.name}: its files are not those that this launch began with (digest {now}, "
            f"{model.fingerprint} then): they were changed meanwhile, or are others on this machine; launch again"
        )


def complete(model: Model, dtype: torch.dtype, config: Any = None, **options: Any) -> PreTrainedModel:
    """The model as transformers builds it from its files, with every weight from there and none left over.

    config: in the place of the files' own. options: of from_pretrained. Code that comes with a model is never run.

    Raises:
        Refusal: files are missing or damaged; weights are missing, left over, of other shapes or no numbers; the model
            is quantised in a way that nothing here reads, or is written in code of its own.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder, written = materialise(model), config_of(model)
    check(model)
    try:
        with nullcontext() if _quantized(written) else light.without_compiler():
            loaded, info = AutoModelForCausalLM.from_pretrained(
                folder,
                revision=model.revision,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=None if model.allow_pickle else True,
                weights_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported then, with both shapes, and refused here
                **({} if config is None else {"config": config}),
                **options,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever its files make transformers raise
        spoken = isinstance(error, (OSError, ValueError, ImportError, RuntimeError))
        what = first_line(error) if spoken else f"{type(error).__name__}: {first_line(error)}"
        reason = f"its weights do not load ({what})"
        if method := _quantized(written):
            reason += (
                f"; they are quantised ({method}): install what reads that, or give weights that are not quantised"
            )
        raise Refusal(f"model {model.name}: {reason}") from error
    if fault := _fault(loaded, info, written):
        raise Refusal(f"model {model.name}: {fault}")
    if _quantized(written) and loaded.dtype != dtype:
        computed, wanted = (str(kind).removeprefix("torch.") for kind in (loaded.dtype, dtype))
        raise Refusal(
            f"model {model.name}: its weights are quantised ({_quantized(written)}), and transformers computes "
            f"in {computed} here, not in {wanted}; give dtype={computed}"
        )
    return loaded  # type: ignore[no-any-return]


def check(model: Model) -> None:
    """Refuse, before it is loaded, a model that cannot be: its files are not whole, or nothing here can read them.

    Raises:
        Refusal: the files' fault (pipelines/models/weights.py); an unknown quantisation; code of its own.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    if model.path == RANDOM:
        return
    weights.check(model)
    if locate(model).hub is not None and side_file(model, "adapter_config.json"):
        raise Refusal(f"model {model.name}: {ADAPTED}")
    config = config_of(model)
    code, method = config.get("auto_map"), _quantized(config)
    if method and method not in (*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"):
        raise Refusal(
            f"model {model.name}: its weights are quantised as {method}, which transformers does not read; give "
            "weights that are not quantised"
        )
    if not isinstance(code, dict) or config.get("model_type") in CONFIG_MAPPING_NAMES:
        return
    entries = sorted({str(name[0] if isinstance(name, list) else name) for name in code.values()})
    files = ", ".join(dict.fromkeys(f"{name.rpartition('.')[0]}.py" for name in entries))
    raise Refusal(
        f"model {model.name}: model_type {config.get('model_type')!r} is written in code of its own ({files}), which "
        "transformers runs only with trust_remote_code=True, and ropewalk does not run it; read that code, load the "
        "model with that flag in Python, and measure it with ropewalk.score(model, tokenizer, ...)"
    )


def _quantized(config: Mapping[str, Any]) -> str:
    """By which method the weights are quantised; "" where they are not."""
    declared = config.get("quantization_config") or text_config(config).get("quantization_config")
    if not isinstance(declared, dict):
        return ""
    four_or_eight_bits = declared.get("load_in_4bit") or declared.get("load_in_8bit")
    return "bitsandbytes" if four_or_eight_bits else str(declared.get("quant_method", "no quant_method"))


ADAPTED = (
    "an adapter (adapter_config.json) lies beside its weights, and transformers puts it on the model without a word; "
    "give a revision or a folder without it, or merge it first"
)

OLD_BUFFERS = re.compile(
    r"(^|\.)(attn|attention|self_attn|self_attention)\.(bias|masked_bias)$|rotary_emb\.(inv_freq|\w+_cached)$"
)
"""Tables that older checkpoints hold beside their weights; every class computes them itself."""

OTHER_SENSES = re.compile(
    r"(model\.)?\w*(vision|visual|image|audio|speech|video|multi_?modal|talker|2wav|projector)\w*\."
)
"""Parts of a model that does more than read, of which the language model alone is built."""

SCALES = re.compile(r"(^|\.|_)(k|v|q|kv|input|output|activation|prob)_(scale|scale_inv|zero_point)$")
"""Of quantised activations and caches, which a model that computes in its own dtype does without."""


def _fault(loaded: PreTrainedModel, info: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What is wrong with a loaded model's weights, and what to do; "" where nothing is."""
    kind, again = type(loaded).__name__, "fetch the model again, or give the config.json that belongs to these weights"
    if getattr(loaded, "_hf_peft_config_loaded", False):
        return (
            "transformers put an adapter on it that lies beside its weights; give weights without adapter_config.json"
        )
    if missing := sorted(info["missing_keys"]):
        return (
            f"{len(missing):,} of the {len(loaded.state_dict()):,} weights of {kind} are not in its files "
            f"({weights.some(missing)}), and transformers would fill them with random numbers: {again}"
        )
    if other := sorted(info["mismatched_keys"]):
        shapes = (f"{name} {list(held)} in the file, {list(wanted)} by the config" for name, held, wanted in other)
        count = weights.counted(len(other), "weight")
        return f"{count} in its files not of the shape that {kind} has ({weights.some(shapes)}): {again}"
    if left := sorted(name for name in info["unexpected_keys"] if not _left_out(name, config)):
        named = config.get("architectures") or ["?"]
        hint = f"the files are of {named[0]}; " if named[0] not in ("?", kind) else ""
        count = weights.counted(len(left), "weight")
        return f"{count} in its files that {kind} does not have ({weights.some(left)}): {hint}{again}"
    return _untied(loaded) or _not_numbers(loaded)


def _left_out(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a weight may be in the files and not in the model without its numbers being others."""
    text = text_config(dict(config))
    if OLD_BUFFERS.search(name) or (config.get("quantization_config") and SCALES.search(name)):
        return True
    layer = re.search(r"(^|\.)layers\.(\d+)\.", name)
    further, layers = text.get("num_nextn_predict_layers"), text.get("num_hidden_layers")
    if layer and isinstance(further, int) and isinstance(layers, int):  # those that predict several tokens at once
        return layers <= int(layer[2]) < layers + further
    return bool(OTHER_SENSES.match(name))


def _untied(loaded: PreTrainedModel) -> str:
    """Two weights that differ in the files where the config has one. transformers then leaves them apart when it loads,
    lm-eval ties them again, and other programs take one or the other."""
    held = dict(loaded.named_parameters(remove_duplicate=False))
    for one, other in loaded.get_expanded_tied_weights_keys(all_submodels=True).items():
        if one in held and other in held and held[one] is not held[other]:
            return (
                f"its config ties {one} to {other} (tie_word_embeddings), and its files hold two that differ; set "
                f"tie_word_embeddings to false if it was trained untied, or remove {one} from the files"
            )
    return ""


def _not_numbers(loaded: PreTrainedModel) -> str:
    """NaN or infinity among the weights, or layers of nothing but zeros, as of files with holes."""
    import torch

    zero: dict[str, bool] = {}
    for name, weight in loaded.named_parameters():
        if weight.is_meta or not weight.is_floating_point() or weight.element_size() < 2 or not weight.numel():
            continue
        low, high = (float(bound) for bound in torch.aminmax(weight.detach()))
        if not math.isfinite(low) or not math.isfinite(high):
            return (
                f"{name} holds numbers that are not finite (in {str(weight.dtype).removeprefix('torch.')}); fetch the "
                "model again, or give dtype=float32 if its numbers are too large for this one"
            )
        if weight.dim() > 1 and (layer := re.match(r"(.*?\.\d+)\.", name)):
            zero[layer[1]] = zero.get(layer[1], True) and low == high == 0
    if empty := sorted(layer for layer, nothing in zero.items() if nothing):
        return f"every matrix of {weights.some(empty)} is zero, as in a file with holes; fetch the model again"
    return ""


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of the 256 bytes: what a model without a vocabulary of its own is fed with."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=byte_backend(), eos_token=BYTE_END)
