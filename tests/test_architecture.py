"""The house's laws, as tests: who may import whom, who owns which library, how long a file and a function may be."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

# The order in which data visits the files: each may import only those before it.
ORDER = [
    "rope", "rope.geometry", "rope.pairwise", "rope.strategies", "rope.theory", "rope.config", "rope.dialects",
    "rope.rotation", "rope.fused", "rope.attention", "rope.patch",
    "pipelines", "pipelines.cells", "pipelines.provenance", "pipelines.config", "pipelines.results",
    "pipelines.header", "pipelines.models", "pipelines.copies", "pipelines.text",
    "pipelines.scorer", "pipelines.tasks", "pipelines.evaluate", "pipelines.pool", "pipelines.sweep",
    "pipelines.estimate", "pipelines.statistics", "pipelines.drawing", "pipelines.report", "pipelines.theory",
    "pipelines.export",
    "pipelines.track", "pipelines.plan", "pipelines.grid", "pipelines.launcher",
    "pipelines.space", "pipelines.search", "pipelines.bench", "pipelines.verdict", "pipelines.study",
    "pipelines.tune",
    "pipelines.doctor",
    "pipelines.derived", "pipelines.published", "pipelines.needs", "pipelines.claims", "pipelines.reproduce",
    "pipelines.transfer",
    "pipelines.recipe", "pipelines.corpus", "pipelines.retrieval", "pipelines.batches", "pipelines.descent",
    "pipelines.train", "pipelines.ui", "pipelines.sync", "pipelines.__main__",
]  # fmt: skip

OWNERS = {
    "ray": {"pipelines.pool"},
    "mlflow": {"pipelines.track"},
    "filelock": {"pipelines.track"},
    "psutil": {"pipelines.track"},
    "matplotlib": {"pipelines.drawing"},
    "lm_eval": {"pipelines.scorer", "pipelines.tasks", "pipelines.evaluate"},
    "omegaconf": {"pipelines.config", "pipelines.launcher", "pipelines.__main__"},
    "hydra": {"pipelines.config", "pipelines.launcher", "pipelines.__main__"},
    "torch": {
        "pipelines.doctor",
        "rope.rotation",
        "rope.fused",
        "rope.attention",
        "rope.patch",
        "pipelines.models",
        "pipelines.scorer",
        "pipelines.evaluate",
        "pipelines.descent",
        "pipelines.train",
    },
    "transformers": {"rope.attention", "rope.patch", "pipelines.models", "pipelines.scorer", "pipelines.train"},
    "accelerate": {"pipelines.descent", "pipelines.train"},
    "datasets": {"pipelines.text", "pipelines.tasks"},
    "scipy": {"pipelines.statistics"},
    "optuna": {"pipelines.search"},
    "gguf": {"pipelines.copies"},  # transformers imports it too; headers we read ourselves
    "huggingface_hub": {"pipelines.models"},
}

FILES = sorted(p for folder in ("rope", "pipelines") for p in (PROJECT / folder).rglob("*.py"))
CODE_LINES, FUNCTION_LINES = 300, 50


def room(path: Path) -> str:
    """The module as ORDER names it; files inside pipelines/tasks are of the room pipelines.tasks."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts[:2])


def imports(path: Path) -> set[str]:
    """Every module that a file imports, here or inside a function; `from a import b` counts as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_imports_point_up(path):
    here = room(path)
    assert here in ORDER, f"{here} has no place in ORDER"
    for module in imports(path):
        other = ".".join(module.split(".")[:2])
        if other in ORDER and other != here:
            assert ORDER.index(other) < ORDER.index(here), f"{here} must not import {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_a_foreign_library_stays_with_its_owner(path):
    for module in imports(path):
        library = module.split(".")[0]
        assert room(path) in OWNERS.get(library, {room(path)}), f"{room(path)} imports {library}"


def test_rope_imports_nothing_of_ours():
    for path in (PROJECT / "rope").rglob("*.py"):
        assert not {module for module in imports(path) if module.startswith("pipelines")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_files_and_functions_stay_short(path):
    source = path.read_text()
    told = _docstring_lines(source)
    code = _code_lines(source) - told
    assert len(code) <= CODE_LINES, f"{path.name} has {len(code)} lines of code: a noun is hiding in it"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = len(code & set(range(node.lineno, node.end_lineno + 1)))
            assert length <= FUNCTION_LINES, f"{path.name}: {node.name} has {length} lines of code"


def _code_lines(source: str) -> set[int]:
    quiet = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in quiet:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines


def _docstring_lines(source: str) -> set[int]:
    lines = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines |= set(range(node.lineno, node.end_lineno + 1))
    return lines


def test_conf_is_plain_data():
    for path in (PROJECT / "conf").rglob("*.yaml"):
        assert "_target_" not in path.read_text(), f"{path} names code"


def test_help_loads_nothing_heavy():
    script = (
        "import sys; from pipelines.__main__ import run; run(['--help']); "
        "heavy = ('torch', 'ray', 'mlflow', 'transformers', 'lm_eval', 'hydra', 'numpy'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_the_readme_draws_the_tree_on_disk():
    readme = (PROJECT / "README.md").read_text()
    drawn = set(re.findall(r"^    (\S+\.py)\b", readme, flags=re.M))
    here = {p.name for folder in ("rope", "pipelines") for p in (PROJECT / folder).glob("*.py") if p.stem != "__init__"}
    assert drawn == here, f"missing: {here - drawn}; gone: {drawn - here}"


def test_no_file_names_a_machine():
    listed = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=PROJECT, check=False
    ).stdout.split()
    private = re.compile(r"(^|[^\w.])/(work|root|opt)/")
    for name in listed:
        path = PROJECT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml") and path.is_file():
            assert not private.search(path.read_text()), f"{name} names a path of one machine"
