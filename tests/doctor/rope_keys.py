"""Writes pipelines/doctor/rope_keys.json: which keys of the rope parameters the installed transformers reads.

    uv run python tests/doctor/rope_keys.py

All of it is read from transformers' source: by rope_type from modeling_rope_utils.py, and by model_type from the files
of every family, which read keys of their own beside those (the query temperature of Ministral 3, sections for images).
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
TABLE = PROJECT / "pipelines" / "doctor" / "rope_keys.json"

SOURCE = Path((find_spec("transformers") or Path()).submodule_search_locations[0])

PARAMETERS = re.compile(r"rope_(parameters|params|scaling|config|dict)")
"""What the expression that is indexed is called, where it holds rope parameters."""

EVERYWHERE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
"""Keys of every block: the plain rotation of a family reads them."""

LAYER_TYPES = {"full_attention", "sliding_attention", "hybrid", "hybrid_sliding"}
"""Keys that hold a block, and are no parameter."""

IGNORED = "ignore_keys_at_rope_validation"
"""Where a config class names keys of its own, for which it wants no warning."""


def texts(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def read_in(tree: ast.AST) -> Iterator[str]:
    """Every key that some code takes from rope parameters, or says that it knows."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(holder, ast.Constant(str(key))):
                pass
            case ast.Call(
                func=ast.Attribute(value=holder, attr="get" | "pop"), args=[ast.Constant(value=str(key)), *_]
            ):
                pass
            case ast.Assign(targets=[ast.Name(id=name)], value=value) | ast.keyword(arg=name, value=value):
                yield from texts(value) if name == IGNORED else ()
                continue
            case _:
                continue
        names = (getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(holder))
        if any(map(PARAMETERS.search, names)):
            yield key


def by_rope_type() -> dict[str, dict[str, list[str]]]:
    """Of every type that modeling_rope_utils.py computes: the keys that it reads, and those without which it fails."""
    tree = ast.parse((SOURCE / "modeling_rope_utils.py").read_text(encoding="utf-8"))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "ROPE_INIT_FUNCTIONS"
    )
    assert isinstance(table, ast.Dict)
    result: dict[str, dict[str, list[str]]] = {"default": {"read": [], "required": []}}
    for key, function in zip(table.keys, table.values, strict=True):
        assert isinstance(key, ast.Constant) and isinstance(function, ast.Name)
        required: set[str] = next(
            set(texts(node.value))
            for node in ast.walk(functions[f"_validate_{key.value}_rope_parameters"])
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "required_keys"
        )
        read = set(read_in(functions[function.id])) | required
        # an original length and theta are filled in before this is checked
        filled = {*EVERYWHERE, "original_max_position_embeddings"}
        result[key.value] = {"read": sorted(read - EVERYWHERE), "required": sorted(required - filled)}
    return result


def by_model_type() -> dict[str, list[str]]:
    """Keys, and the model types whose own files read them."""
    found: dict[str, set[str]] = defaultdict(set)
    for folder in sorted(path for path in (SOURCE / "models").iterdir() if path.is_dir()):
        files = [*folder.glob("configuration_*.py"), *folder.glob("modeling_*.py")]
        texts_of = [text for file in files if "rope" in (text := file.read_text(encoding="utf-8"))]
        trees = [ast.parse(text) for text in texts_of]
        types = {kind for tree in trees for kind in model_types(tree)}
        for key in {key for tree in trees for key in read_in(tree)} - EVERYWHERE - LAYER_TYPES:
            found[key] |= types
    return {key: sorted(types) for key, types in sorted(found.items())}


def model_types(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id="model_type")], value=ast.Constant(value=str(kind))):
                yield kind


def null_head_dim() -> Iterator[str]:
    """Model types of decoders whose config object has head_dim, and leaves it at None where a config is silent."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as auto

    names = {*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    for name in sorted(names):
        with contextlib.suppress(Exception):
            own = CONFIG_MAPPING[name]().get_text_config(decoder=True)
            if hasattr(own, "rope_parameters") and getattr(own, "head_dim", 0) is None:
                yield own.model_type


def table() -> dict[str, Any]:
    return {
        "rope_types": by_rope_type(),
        "model_types": by_model_type(),
        "null_head_dim": sorted(set(null_head_dim())),
    }


if __name__ == "__main__":
    TABLE.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
