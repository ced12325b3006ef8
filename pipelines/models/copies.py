"""Copies of a checkpoint that say another scaling: a GGUF file with other keys, a folder without its config.json."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rope.llama_cpp_rules import FREQS, LONG, SHORT, rules_of

SCALING = "rope.scaling."
"""What the keys of a scaling begin with, after the architecture."""

OLD_FACTOR = "rope.scale_linear"
"""The key of a factor in older files."""

LISTS = frozenset({FREQS, LONG, SHORT})
"""Tensors of a GGUF file that divide frequencies."""

WEIGHTS = frozenset({".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack"})
"""Suffixes of files that are linked rather than copied, where the disk allows it."""


def copy_folder(source: Path, target: Path) -> None:
    """A folder with everything of another but its config.json. Weights take no room where hard links are possible.

    Raises:
        OSError: the target cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name != "config.json":
            place = target / file.name
            place.unlink(missing_ok=True)
            if file.suffix in WEIGHTS:
                _link(file.resolve(), place)  # resolved: the hub's cache has links where the files should be
            else:
                shutil.copyfile(file, place)


def _link(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(file, place)


def copy_gguf(
    sources: Sequence[Path],
    target: Path,
    keys: Mapping[str, int | float | str],
    divisors: Sequence[float],
    *,
    plain: bool = False,
) -> None:
    """A GGUF file that says one scaling, and nothing of an earlier one: neither its keys nor its lists are taken over.

    Args:
        sources: the file, or all parts of one that is split, the first one first; the copy is whole.
        keys: new values by name, without the architecture in front; the file's other keys stay.
        divisors: (pairs,), of the frequencies, for the tensors that the architecture reads; empty: none.
        plain: write every tensor in float32, for comparisons that a coarse format would blur.

    Raises:
        OSError: the target cannot be written.
    """
    import gguf

    readers = [gguf.GGUFReader(source) for source in sources]
    reader = readers[0]
    architecture = reader.fields["general.architecture"].contents()
    new = {f"{architecture}.{name}": value for name, value in keys.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".part")
    writer = gguf.GGUFWriter(temporary, architecture, endianess=reader.endianess)
    if "general.alignment" in reader.fields:
        writer.data_alignment = reader.fields["general.alignment"].contents()
    dropped = ("GGUF.", "split.", f"{architecture}.{SCALING}", f"{architecture}.{OLD_FACTOR}")
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith(dropped) or field.name in new:
            continue
        kinds = field.types
        writer.add_key_value(field.name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for name, value in new.items():
        kind = gguf.GGUFValueType.UINT32 if isinstance(value, int) else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(name, value, kind)
    rules = rules_of(architecture)
    for name in (rules.tensors if rules else (FREQS,)) if divisors else ():
        writer.add_tensor(name, np.array(divisors, dtype=np.float32))
    for tensor in (tensor for part in readers for tensor in part.tensors):
        if tensor.name in LISTS:
            continue
        if plain:
            writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(target)
