"""Copies of a checkpoint that say another scaling: a GGUF file with other keys, a folder without its config.json."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.models.header import ROPE_FREQS

SCALING = "rope.scaling."
"""What the keys of a scaling begin with, after the architecture."""

LISTS = frozenset({ROPE_FREQS, "rope_factors_long.weight", "rope_factors_short.weight"})
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
    source: Path,
    target: Path,
    keys: Mapping[str, int | float | str],
    rope_freqs: Sequence[float],
    *,
    plain: bool = False,
) -> None:
    """A GGUF file that says one scaling, and nothing of an earlier one: neither its keys nor its lists are taken over.

    Args:
        keys: new values by name, without the architecture in front; the file's other keys stay.
        rope_freqs: (pairs,), divisors of the frequencies for the tensor of that name; empty: none.
        plain: write every tensor in float32, for comparisons that a coarse format would blur.

    Raises:
        OSError: the target cannot be written.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    new = {f"{architecture}.{name}": value for name, value in keys.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".part")
    writer = gguf.GGUFWriter(temporary, architecture, endianess=reader.endianess)
    if "general.alignment" in reader.fields:
        writer.data_alignment = reader.fields["general.alignment"].contents()
    scaling = f"{architecture}.{SCALING}"
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith(("GGUF.", scaling)) or field.name in new:
            continue
        kinds = field.types
        writer.add_key_value(field.name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for name, value in new.items():
        kind = gguf.GGUFValueType.UINT32 if isinstance(value, int) else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(name, value, kind)
    if rope_freqs:
        writer.add_tensor(ROPE_FREQS, np.array(rope_freqs, dtype=np.float32))
    for tensor in reader.tensors:
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
