"""Whether a folder's weight files are all there and whole, by its index and the headers of its files.

Imports no torch: a second for 100 GB. What the model's class makes of the weights is checked where they are loaded.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.models.find import adapter_sentence, config_of, locate
from pipelines.records import inputs
from pipelines.records.cells import Model, Refusal
from pipelines.records.refusal import first_line
from rope.config import text_config

SINGLE = ("model.safetensors", "pytorch_model.bin")
"""Weights in one file, or with `.index.json` behind the name in several. transformers takes the first that is there."""

VOCABULARIES = ("tokenizer.json", "tokenizer.model")
"""Files of a tokenizer that are large enough for git-lfs."""

FOREIGN = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5", ".msgpack", ".npz", ".onnx"})
"""Suffixes of what may be weights, but under a name that transformers does not look for."""

POINTER = b"version https://git-lfs"
"""What the text begins with that git leaves in the place of a large file until git-lfs fetches it."""

PICKLES = (
    "and a pickle can hold code that runs when it is read; give safetensors, which hold numbers alone, or "
    "model.allow_pickle=true if you trust where they come from: torch then reads plain tensors and nothing else"
)
"""What is said of weights in torch's older format."""

LARGEST_HEADER = 100_000_000
"""Bytes; safetensors itself reads none that is longer."""

BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS |= {"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file. end: the byte behind it."""

    kind: str
    shape: tuple[int, ...]
    end: int


@dataclass(frozen=True)
class WeightFiles:
    """The files that transformers reads a folder's weights from. index: tensor -> file; {} where there is none."""

    files: tuple[Path, ...]
    index: Mapping[str, str]

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        """By name; {} of files that are not safetensors.

        Raises:
            Refusal: a file is damaged.
        """
        return {
            name: stored
            for file in self.files
            if file.suffix == ".safetensors"
            for name, stored in header(file).items()
        }


def check(model: Model, *, needed: bool = True) -> None:
    """Refuse a folder whose weights cannot be those that its config promises. Files of other kinds pass.

    needed: whether there must be any; a config alone is enough for what only plans.

    Raises:
        Refusal: files are missing, damaged or not there yet; layers are missing; an adapter lies beside the weights.
    """
    folder = locate(model).folder
    if folder is None:
        return
    try:
        _check(folder, config_of(model), needed, model.allow_pickle)
    except Refusal as reason:
        raise Refusal(f"model {model.name}: {reason}") from reason


def _check(folder: Path, config: Mapping[str, Any], needed: bool, allow_pickle: bool) -> None:
    found = weight_files(folder, config)
    if (folder / "adapter_config.json").is_file():
        if not found.files:
            raise Refusal(adapter_sentence(folder))
        raise Refusal(
            f"{folder} holds a whole model and an adapter (adapter_config.json), and transformers would put the "
            "adapter on the model without a word; move the adapter's files out of the folder to measure the model "
            "without it, or merge it (peft: PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(FOLDER))"
        )
    if not found.files:
        if needed:
            raise Refusal(_nothing(folder))
        return
    if (pickles := [file.name for file in found.files if file.suffix != ".safetensors"]) and not allow_pickle:
        raise Refusal(f"its weights are pickles ({some(pickles)}), {PICKLES}")
    if absent := sorted(file.name for file in found.files if not file.is_file()):
        raise Refusal(
            f"{len(absent)} of the {len(found.files)} files of weights that the index of {folder} names are not there "
            f"({some(absent)}); fetch them, or the whole model, again"
        )
    vocabularies = [folder / name for name in VOCABULARIES if (folder / name).is_file()]
    for file in (*found.files, *vocabularies):
        _whole(file)
    held = found.tensors
    if held and (lost := sorted(set(found.index) - set(held))):
        raise Refusal(
            f"{len(lost)} of the {len(found.index)} tensors that the index of {folder} names are in none of its files "
            f"({some(lost)}); index and files are not of one model: fetch it again"
        )
    if held:
        _check_layers(held, text_config(config))


def weight_files(folder: Path, config: Mapping[str, Any]) -> WeightFiles:
    """The files that transformers would read, whether they are there or not.

    Raises:
        Refusal: the index cannot be read.
    """
    named = config.get("transformers_weights")
    for name in [named] if isinstance(named, str) else [n for one in SINGLE for n in (one, f"{one}.index.json")]:
        file = _inside(folder, name)
        if not file.is_file() and name != named:
            continue
        if not name.endswith(".index.json"):
            return WeightFiles((file,), {})
        index = inputs.json_object(file).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(part, str) for part in index.values()):
            raise Refusal(f"{file} has no weight_map from tensors to files; fetch the model again")
        return WeightFiles(tuple(_inside(folder, part) for part in sorted(set(index.values()))), index)
    return WeightFiles((), {})


def _inside(folder: Path, name: str) -> Path:
    """A file that a config or an index names, which lies in its own folder."""
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise Refusal(f"{folder} names {name!r} as a file of its weights, which lies elsewhere; fetch the model again")
    return folder / name


def header(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, without their numbers: huggingface.co/docs/safetensors, "Format".

    Raises:
        Refusal: the file is damaged or cut off.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = struct.unpack("<Q", start)[0] if len(start := stream.read(8)) == 8 else 0
        try:
            if not 2 <= length <= min(size, LARGEST_HEADER):
                raise ValueError("no header")
            entries = json.loads(stream.read(length))
            entries.pop("__metadata__", None)
            tensors = {name: _stored(8 + length, entry) for name, entry in entries.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Refusal(
                f"{file} is damaged: its header cannot be read ({first_line(error)}); fetch it again"
            ) from error
    if (end := max((stored.end for stored in tensors.values()), default=8 + length)) != size:
        state = f"{end - size:,} bytes are missing at its end" if end > size else f"{size - end:,} bytes too many"
        raise Refusal(f"{file} is damaged: {state} ({size:,} for {end:,} bytes); fetch it again")
    return tensors


def counted(count: int, noun: str) -> str:
    """`1 weight`, `1,024 weights`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def some(names: Iterable[str], count: int = 3) -> str:
    """The first few names, and how many there are besides."""
    listed = list(names)
    return ", ".join(listed[:count]) + (f" and {len(listed) - count:,} more" if len(listed) > count else "")


def _stored(start: int, entry: Mapping[str, Any]) -> Stored:
    begin, end = entry["data_offsets"]
    kind, shape = entry["dtype"], tuple(entry["shape"])
    if kind in BITS and (end - begin) * 8 != math.prod(shape) * BITS[kind]:
        raise ValueError(f"a tensor of {kind} {list(shape)} in {end - begin} bytes")
    return Stored(kind, shape, start + end)


def _whole(file: Path) -> None:
    """Refuse a file that is empty, a pointer of git-lfs, or cut off."""
    with file.open("rb") as stream:
        start = stream.read(len(POINTER))
    if not start:
        raise Refusal(f"{file} is empty; fetch it again")
    if start == POINTER:
        raise Refusal(
            f"{file} is a pointer that git-lfs has not replaced by the file; run `git lfs pull` in its folder"
        )
    if file.suffix == ".safetensors":
        header(file)
    elif start[:2] == b"PK" and not zipfile.is_zipfile(file):  # torch writes zip archives, whose directory is their end
        raise Refusal(f"{file} is damaged: it is cut off; fetch it again")


def _nothing(folder: Path) -> str:
    others = sorted(file.name for file in folder.iterdir() if file.suffix in FOREIGN)
    there = f"it has {some(others)}, and transformers reads none of these" if others else "it has no weights at all"
    ggufs = any(name.endswith(".gguf") for name in others)
    other = "give the .gguf file itself" if ggufs else "fetch them, or convert what there is to safetensors"
    return f"{folder} has neither {SINGLE[0]} nor {SINGLE[1]} nor an index of several such: {there}; {other}"


def _check_layers(names: Iterable[str], text: Mapping[str, Any]) -> None:
    """Refuse files with fewer layers than the config says. More are the class's to judge: it may leave some out."""
    wanted = text.get("num_hidden_layers", text.get("n_layer"))
    stacks: dict[str, set[int]] = {}
    for name in names:
        if numbered := re.match(r"(.*?)\.(\d+)\.", f".{name}"):
            stacks.setdefault(numbered[1].removeprefix("."), set()).add(int(numbered[2]))
    if not isinstance(wanted, int) or not stacks or any(held >= set(range(wanted)) for held in stacks.values()):
        return
    stack, held = max(stacks.items(), key=lambda item: len(item[1]))
    absent = sorted(set(range(wanted)) - held)
    raise Refusal(
        f"config.json says num_hidden_layers {wanted}, and {len(absent)} of these layers have no weights in the files "
        f"({some(f'{stack}.{number}' for number in absent)}); transformers would fill them with random numbers: fetch "
        "the model again, or give the config.json that belongs to these weights"
    )
