"""Writes rope/dialects/engine_models.json: each engine's model classes, and what reaches their rotary embedding.

    uv run python tests/rope/engine_facts.py FOLDER

FOLDER is where .ci/engines unpacks the packages of the engines. All is read from the source by its syntax tree; nothing
of an engine is imported. `tests/rope/test_engine_code.py` runs the classes and holds the table against what they do.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rope.dialects import engine_models

VERSIONS = {"vllm": "0.33.0", "sglang": "0.5.23", "exllama": "0.3.2"}
GET_ROPE = frozenset({"get_rope", "get_rope_wrapper"})
SHARED = frozenset({"utils", "interfaces", "registry", "adapters", "vision", "config", "transformers"})
"""Files of a models folder that are no models."""

FIXED = {"vllm": {"chatglm", "dbrx", "mimo_v2", "bert_with_rope"}, "sglang": {"chatglm", "dbrx", "muse_spark"}}
"""Files that make their own rotary parameters, from keys that only this family has."""

YARN = {"vllm": {"gpt_oss"}, "sglang": set[str]()}
"""Files that say yarn whatever the config says."""


def main(folder: str) -> None:
    source = Path(folder)
    table: dict[str, Any] = {"versions": VERSIONS, "classes": classes_by_model_type()}
    table["vllm"] = vllm(source / "vllm/vllm/model_executor/models")
    table["sglang"] = sglang(source / "sglang/sglang/srt/models")
    table["exllama"] = exllama(source / "exllamav2/exllamav2/architecture.py")
    engine_models.FILE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print({engine: len(table[engine]) for engine in VERSIONS})


def classes_by_model_type() -> dict[str, str]:
    named = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return {key: name if isinstance(name, str) else name[0] for key, name in sorted(named.items())}


def vllm(models: Path) -> dict[str, str]:
    registry = ast.parse((models / "registry.py").read_text())
    table = {}
    for node in registry.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple):
                    file = ast.literal_eval(value.elts[0])
                    table[key.value] = "transformers" if file == "transformers" else words(read(models, file, "vllm"))
    return dict(sorted(table.items()))


def sglang(models: Path) -> dict[str, str]:
    table = {}
    for file in sorted(models.glob("*.py")):
        entries = re.search(r"^EntryClass\s*=\s*(.+?)(?=^\S|\Z)", file.read_text(), re.M | re.S)
        for name in re.findall(r"\w+", entries.group(1)) if entries else ():
            table[name] = "transformers" if file.stem == "transformers" else words(read(models, file.stem, "sglang"))
    return dict(sorted(table.items()))


def exllama(file: Path) -> dict[str, str]:
    names = re.findall(r"\"(\w+(?:ForCausalLM|ForConditionalGeneration|LMHeadModel))\"", file.read_text())
    unrotated = {"GPT2LMHeadModel", "GPTBigCodeForCausalLM"}
    return {name: "unrotated" if name in unrotated else "" for name in sorted(set(names))}


def words(traits: set[str]) -> str:
    return " ".join(sorted(traits - {"scaled"}))


def read(models: Path, file: str, engine: str, seen: tuple[str, ...] = ()) -> set[str]:
    """The traits of a model file: of its own calls of get_rope, else of those in the model files that it imports."""
    path = models / f"{file}.py"
    if not path.is_file() or file in seen:
        return set()
    source = path.read_text()
    found = [traits_of(call, engine) for call in calls(ast.parse(source))]
    if not found:
        package = r"(?:sglang\.srt\.models|vllm\.model_executor\.models|)"
        imported = set(re.findall(rf"^from {package}\.(\w+) import", source, re.M)) - SHARED
        found = [read(models, name, engine, (*seen, file)) for name in sorted(imported)]
    traits = set().union(*found)
    if "scaled" in traits:
        traits.discard("unscaled")  # of a second class, for another model
    own = {"fixed"} if file in FIXED[engine] else {"yarn"} if file in YARN[engine] else set()
    return own or traits


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and "Vis" not in node.name:
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and getattr(call.func, "id", getattr(call.func, "attr", "")) in GET_ROPE:
                    yield call


def traits_of(call: ast.Call, engine: str) -> set[str]:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    traits = {"interleaved"} if given.get("is_neox_style") == "False" else set()
    if engine == "sglang":
        traits.add("unscaled" if given.get("rope_scaling") in (None, "None") else "scaled")
        if given.get("base", "").startswith("int("):
            traits.add("whole_theta")
    return traits


if __name__ == "__main__":
    main(*sys.argv[1:])
