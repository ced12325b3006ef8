"""What llama.cpp's source says of rotation, architecture by architecture: writes rope/llama_cpp_rules.json.

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
    uv run python tests/rope/llama_cpp_table.py llama_cpp_python-0.3.36/vendor/llama.cpp

The source distribution of llama-cpp-python holds llama.cpp whole; its CHANGELOG.md names the commit.
What the fields mean is said where they are read: rope/llama_cpp_rules.py.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

LOCAL_BASE = 10_000.0
"""hparams.rope_freq_base_train_swa where an architecture sets no other (llama-hparams.h)."""


class Source:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = {path: path.read_text() for path in sorted((root / "src/models").glob("*.cpp"))}
        self.structs = (root / "src/models/models.h").read_text()
        self.loader = (root / "src/llama-model.cpp").read_text()
        names = dict(re.findall(r'\{ (LLM_ARCH_\w+),\s*"([^"]+)"', (root / "src/llama-arch.cpp").read_text()))
        self.parents = dict(re.findall(r"struct (llama_model_\w+) : public (llama_model_\w+)", self.structs))
        self.classes = {
            names[arch]: name
            for cases, name in re.findall(r"((?:case LLM_ARCH_\w+:\s*)+)return new (\w+)\(params\)", self.loader)
            for arch in re.findall(r"LLM_ARCH_\w+", cases)
        }
        kinds = self.loader[self.loader.index("llama_rope_type llama_model_rope_type(") :]
        self.rope_types: dict[str, str] = {}
        waiting: list[str] = []
        for arch, returned in re.findall(r"case (LLM_ARCH_\w+):|return (.*?);", kinds[: kinds.index("\n}\n")]):
            waiting += [names.get(arch, "")] if arch else []
            if returned:  # the last return of an architecture is what a file without sections gets
                last = re.findall(r"ROPE_TYPE_(\w+)", returned)[-1].lower()
                self.rope_types |= {name: last for name in waiting if name}
                waiting = []

    def function(self, name: str, method: str) -> str:
        """The text of a method, of the class or the one that it inherits from; empty where there is none."""
        while name != "llama_model_base":
            for text in self.models.values():
                if found := re.search(rf"^[^\n;]*\b{name}::{method}\(.*?^}}", text, re.S | re.M):
                    return found.group(0)
            name = self.parents[name]
        return ""

    def graph(self, name: str) -> str:
        """The file that holds an architecture's graph."""
        struct = re.search(rf"struct {name} : public .*?\n}};", self.structs, re.S)
        if struct and (other := re.search(r"using graph = (\w+)::graph", struct.group(0))):
            return self.graph(other.group(1))
        own = struct and re.search(r"struct graph\b", struct.group(0))
        if not own and self.parents.get(name, "llama_model_base") != "llama_model_base":
            return self.graph(self.parents[name])
        return next((text for text in self.models.values() if re.search(rf"\b{name}::build_arch_graph\(", text)), "")


def rotations(graph: str) -> set[tuple[str, ...]]:
    """(factors, base, scale, ext_factor, attn_factor) of every call that rotates."""
    found = set()
    for call in re.finditer(r"ggml_rope_(ext|multi)\(", graph):
        arguments, depth, place = [""], 1, call.end()
        while depth:
            character = graph[place]
            depth += (character in "([{") - (character in ")]}")
            if character == "," and depth == 1:
                arguments.append("")
            elif depth:
                arguments[-1] += character
            place += 1
        plain = [" ".join(re.sub(r"/\*.*?\*/|//[^\n]*", "", argument).split()) for argument in arguments]
        if call.group(1) == "multi":
            del plain[5]  # its sections
        found.add((plain[3], *plain[7:11]))
    return found


def rules(source: Source, architecture: str, name: str) -> dict[str, Any]:
    """One row of the table."""
    hparams, tensors = source.function(name, "load_arch_hparams"), source.function(name, "load_arch_tensors")
    graph = source.graph(name)
    calls = rotations(graph)
    row: dict[str, Any] = {"rope": source.rope_types.get(architecture, "none") if calls else "none"}
    if row["rope"] == "none":
        return row
    tight = re.sub(r" +", " ", hparams)
    taken = any(factors not in ("nullptr", "NULL") for factors, *_ in calls)
    lists = {"rope_freqs": "ROPE_FREQS", "rope_factors": "ROPE_FACTORS_LONG"}
    row["lists"] = [title for title, tensor in lists.items() if taken and f"LLM_TENSOR_{tensor}" in tensors]
    row["yarn_keys"] = sorted(key.lower() for key in set(re.findall(r"ROPE_SCALING_(YARN_\w+)", hparams)))
    kinds = {tuple(call[1:]) for call in calls}
    whole = {("freq_base", "freq_scale", "ext_factor", "attn_factor")}
    by_layer = {(f"freq_base_{i}", f"freq_scale_{i}", "ext_factor", "attn_factor") for i in "li"}
    unscaled = {("freq_base", one, zero, one) for one, zero in (("1.0", "0.0"), ("1.0f", "0.0f"))}
    if re.search(r"kv_lora|mla|attn_factor_org", hparams + tensors + graph, re.I):
        row["own_rules"] = "latent attention"
    elif kinds <= by_layer and not (row["lists"] and "get_rope_factors" not in graph) and architecture != "step35":
        base, scale = (f"rope_freq_{it}_train_swa = hparams.rope_freq_{it}_train;" in tight for it in ("base", "scale"))
        row["local"] = {"base": "file" if base else LOCAL_BASE, "scale": "file" if scale else 1.0}
    elif kinds - whole and kinds - whole <= unscaled and "load_swa_pattern" in hparams:
        row["local"] = {"base": "all", "scale": 1.0}
    elif kinds != whole:
        row["own_rules"] = "layers of several kinds"
    row["alpha"] = "rope_scaling_alpha" in hparams
    row["temperature"] = "n_attn_temp_floor_scale = hparams.n_ctx_orig_yarn" in tight
    if pattern := re.search(r"load_swa_pattern\(ml, (\d+)(, *(?:/\*.*?\*/)?true)?", hparams):
        row["window_pattern"] = {"every": int(pattern.group(1)), "first": bool(pattern.group(2))}
    return {key: value for key, value in row.items() if value}


def conversions(source: Source) -> dict[str, str]:
    """Class of transformers -> architecture, as llama.cpp's converter has it."""
    sys.path.insert(0, str(source.root / "gguf-py"))
    import gguf

    bases: dict[str, str] = {}
    archs: dict[str, str] = {}
    registered: dict[str, str] = {}
    for path in sorted((source.root / "conversion").glob("*.py")):
        text = path.read_text()
        for name, base, body in re.findall(r"^class (\w+)\((\w+)[^)]*\):\n(.*?)(?=^(?:class|@)|\Z)", text, re.M | re.S):
            bases[name] = base
            if found := re.search(r"^    model_arch\s*=\s*gguf\.MODEL_ARCH\.(\w+)", body, re.M):
                archs[name] = found.group(1)
        for marks, name in re.findall(r"((?:^@(?:.|\n(?!class))*?\n))class (\w+)\(", text, re.M):
            for listed in re.findall(r"register\((.*?)\)", marks, re.S):
                for model in re.findall(r'"(\w+)"', listed):
                    registered.setdefault(model, name)
    found_archs = {}
    for model, name in registered.items():
        while name not in archs and name in bases:
            name = bases[name]
        if archs.get(name, "MMPROJ") != "MMPROJ":
            found_archs[model.lower()] = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[archs[name]]]
    return found_archs


def main() -> None:
    from transformers.models.auto import modeling_auto

    source = Source(Path(sys.argv[1]))
    table = {architecture: rules(source, architecture, name) for architecture, name in source.classes.items()}
    by_class = conversions(source)
    types: dict[str, str] = {}
    for mapping in (
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    ):
        for model_type, names in mapping.items():
            for name in (names,) if isinstance(names, str) else names:
                if by_class.get(name.lower()) in table and table[by_class[name.lower()]]["rope"] != "none":
                    types[model_type] = by_class[name.lower()]
    lines = [f"    {json.dumps(name)}: {json.dumps(table[name])}" for name in sorted(table)]
    pairs = [f"    {json.dumps(name)}: {json.dumps(types[name])}" for name in sorted(types)]
    commit = re.search(r"llama\.cpp@(\w+)", (source.root.parent.parent / "CHANGELOG.md").read_text())
    assert commit
    body = f'"commit": "{commit.group(1)}",\n  "architectures": {{\n' + ",\n".join(lines) + "\n  },\n"
    text = "{\n  " + body + '  "model_types": {\n' + ",\n".join(pairs) + "\n  }\n}\n"
    (Path(__file__).parents[2] / "rope/llama_cpp_rules.json").write_text(text)


if __name__ == "__main__":
    main()
