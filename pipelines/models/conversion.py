"""GGUF files converted to a folder of safetensors, once: by transformers, held against what llama.cpp computes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout

from pipelines.models import copies, gguf_once, header, light
from pipelines.models.digest import content_digest
from pipelines.models.gguf_files import MODEL_TYPES, header_config, read_header, with_scaling
from pipelines.models.header import Header
from pipelines.records.phases import timed
from pipelines.records.places import cache_folder
from pipelines.records.refusal import Refusal, first_line
from rope.config import geometry_of
from rope.llama_cpp_rules import rules_of

CONVERSION = 2
"""Of GGUF files, in the name of the folder they are converted into: up with whatever a conversion does otherwise."""

MANIFEST = "conversion.json"
"""Beside a conversion: the digest of its files, so that a damaged one is noticed and made anew."""

PART = ".part"
"""Behind the name of a conversion's folder while it is made."""

GEMMA_27B = {"gemma2": 46, "gemma3": 62}
"""Layers by which llama.cpp knows the largest Gemma of a generation."""


def read_config(path: Path, fingerprint: str) -> dict[str, Any]:
    """The config of a GGUF file: of its conversion where there is one, else what its header says.

    Raises:
        Refusal: the file is no GGUF file of a model, or its scaling is none that llama.cpp takes.
    """
    folder = converted_folder(fingerprint)
    if _is_whole(folder):
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config
    gguf = read_header(path)
    return with_scaling(header_config(gguf), gguf, path.name)


def converted_folder(fingerprint: str) -> Path:
    """Where the conversion of the GGUF file with this fingerprint belongs: in the user's cache."""
    if not fingerprint:
        raise ValueError("a conversion is found by what the file holds: its fingerprint is missing")
    return cache_folder() / f"gguf-{fingerprint}-{CONVERSION}"


def convert_once(path: Path, fingerprint: str) -> Path:
    """The folder of safetensors made of a GGUF file, which is converted where it was not before, or is damaged.

    Raises:
        Refusal: transformers does not load this architecture, or not as llama.cpp runs it.
    """
    folder = converted_folder(fingerprint)
    if not _is_whole(folder):
        gguf = read_header(path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear(folder.parent)
        with _alone(folder):
            if not _is_whole(folder):  # another process may just have made it
                again = " again, as the files are not those that were written" if folder.is_dir() else ", once"
                print(f"converting {path.name} to safetensors{again} ...", file=sys.stderr, flush=True)
                _convert(path, gguf, folder)
    return folder


def _alone(folder: Path, timeout: float = -1) -> FileLock:
    """Held by the one process that makes a conversion; the system lets go of it when the process ends in any way."""
    return FileLock(folder.with_name(f"{folder.name}.lock"), timeout=timeout)


def _clear(cache: Path) -> None:
    """Remove what conversions that were killed have left."""
    for part in cache.glob(f"gguf-*{PART}"):
        with contextlib.suppress(Timeout), _alone(part.with_suffix(""), timeout=0):
            shutil.rmtree(part, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether a conversion is there, with the files that were written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        there = {file.name for file in folder.iterdir()} - {MANIFEST}
        return there == {*manifest["files"]} and bool(manifest["digest"] == _digest(folder, manifest["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(folder: Path, files: list[str]) -> str:
    return content_digest((name, folder / name) for name in files)


@timed("GGUF converted")
def _convert(path: Path, gguf: Header, folder: Path) -> None:
    """Write a GGUF file's tokenizer, weights and config, with its scaling, to a folder that transformers loads."""
    from transformers import AutoTokenizer, modeling_gguf_pytorch_utils
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
    from transformers.utils import logging

    known = [name for name in GGUF_SUPPORTED_ARCHITECTURES if (rules := rules_of(name)) and rules.rope != "none"]
    if not {*known} & {gguf.architecture, MODEL_TYPES.get(gguf.architecture)}:
        raise Refusal(
            f"{path.name} is of a {gguf.architecture}, and transformers converts GGUF files of {', '.join(known)}; "
            "give the folder that it was made from"
        )
    by_layer = [
        key
        for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
        if isinstance(gguf.value(key), list) and len(set(gguf.value(key))) > 1
    ]
    if by_layer and gguf.architecture != "lfm2":
        raise Refusal(
            f"{path.name} gives {', '.join(by_layer)} layer by layer, and transformers' loader takes one number for "
            "all; give the folder that it was made from"
        )
    logging.disable_progress_bar()
    temporary = folder.with_name(f"{folder.name}{PART}")
    temporary.mkdir()
    try:
        files = header.parts(path)
        whole = path
        if len(files) > 1:  # transformers reads one file
            whole = temporary / "whole.gguf"
            copies.copy_gguf(files, whole, {}, ())
        try:
            with (
                open(os.devnull, "w") as nowhere,
                contextlib.redirect_stderr(nowhere),  # a bar that no option turns off
                gguf_once.read_once(modeling_gguf_pytorch_utils, _reader()),
                light.without_compiler(),
            ):
                _save_weights(whole, temporary, path.name, unread(gguf))
                AutoTokenizer.from_pretrained(whole.parent, gguf_file=whole.name).save_pretrained(temporary)
        except Refusal:
            raise
        except Exception as error:  # whatever a file makes transformers and tokenizers raise
            reason = f"transformers cannot convert it ({first_line(error)})"
            raise Refusal(f"{path.name}: {reason}; give the folder that it was made from") from error
        if whole != path:
            whole.unlink()
        written = temporary / "config.json"
        config = _as_llama_cpp(json.loads(written.read_text(encoding="utf-8")), gguf, path.name)
        written.write_text(json.dumps(config, indent=2), encoding="utf-8")
        names = sorted(file.name for file in temporary.iterdir())
        manifest = {"digest": _digest(temporary, names), "files": names}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reader() -> ModuleType | None:
    """transformers' own reader of GGUF files, where its version has one."""
    try:
        from transformers.integrations.gguf import reader
    except ImportError:
        return None
    return reader  # type: ignore[no-any-return]


def unread(gguf: Header) -> dict[str, Any]:
    """What llama.cpp computes with and transformers' loader leaves at the default of a model class.

    Gemma's queries are scaled by the size of a head, in the 27B ones by hidden size / heads (src/models/gemma3.cpp).
    """
    config = header_config(gguf)
    values = {
        "head_dim": config.get("head_dim"),
        "moe_intermediate_size": gguf.value("expert_feed_forward_length"),
        "shared_expert_intermediate_size": gguf.value("expert_shared_feed_forward_length"),
    }
    if gguf.architecture in GEMMA_27B:
        large = config["num_hidden_layers"] == GEMMA_27B[gguf.architecture]
        size = config["hidden_size"] // config["num_attention_heads"] if large else config["head_dim"]
        values["query_pre_attn_scalar"] = size
    return {name: value for name, value in values.items() if value is not None}


@timed("GGUF weights")
def _save_weights(whole: Path, folder: Path, file: str, values: Mapping[str, Any]) -> None:
    light.load()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(whole.parent, gguf_file=whole.name)
    for name, value in values.items():
        if getattr(config, name, value) != value:
            setattr(config, name, value)
    model, loaded = AutoModelForCausalLM.from_pretrained(
        whole.parent, gguf_file=whole.name, config=config, output_loading_info=True, ignore_mismatched_sizes=True
    )
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = sorted(set(loaded["missing_keys"]) - tied)
    if missing or loaded["mismatched_keys"]:
        names = missing or sorted(str(key[0]) for key in loaded["mismatched_keys"])
        raise Refusal(
            f"{file}: of the weights that transformers wants, {len(names)} are not there or of another shape "
            f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); give the folder that it was made from"
        )
    # A dequantised model refuses to be saved while its config still speaks of the quantised file.
    plain = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    with torch.device("meta"):
        fresh = type(model)(type(model.config)(**plain))
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.save_pretrained(folder)


def _as_llama_cpp(theirs: dict[str, Any], gguf: Header, file: str) -> dict[str, Any]:
    """The config that transformers made of a GGUF file, rotating as llama.cpp does: some keys it does not read.

    Raises:
        Refusal: it cannot.
    """
    read = header_config(gguf)
    ours = with_scaling(read, gguf, file)
    nested = any(isinstance(block, dict) for block in read.get("rope_parameters", {}).values())
    scaled = theirs if nested else with_scaling(theirs, gguf, file)
    if geometry_of(scaled) == geometry_of(ours):
        return scaled
    replaced = ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor", "rotary_dim")
    kept = {key: value for key, value in theirs.items() if key not in (*replaced, "rope_parameters")}
    taken = ("rope_parameters", "rope_theta", "partial_rotary_factor", "max_position_embeddings")
    windows = ("layer_types", "sliding_window") if "rope_parameters" in read else ()
    mended = {
        **kept,
        **{key: ours[key] for key in (*taken, *windows, "original_max_position_embeddings") if key in ours},
    }
    if geometry_of(mended) != geometry_of(ours):
        raise Refusal(
            f"{file}: what transformers makes of it rotates otherwise than llama.cpp ({geometry_of(mended)} for "
            f"{geometry_of(ours)}); give the folder it was made from"
        )
    return mended
