"""The house's laws, as tests: who may import whom, who owns which library, how long a file may be."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

# Rooms in the order in which data visits them: each may import only those before it. A wing (a verb's own room) is
# imported by the command line and the public names alone.
ROOMS = [
    "rope",
    "pipelines.records",
    "pipelines.models",
    "pipelines.tasks",
    "pipelines.choices",
    "pipelines.workers",
    "pipelines.report",
    "pipelines.track",
    "pipelines.grid",
    "pipelines.bench",
    "pipelines.doctor",
    "pipelines.tune",
    "pipelines.reproduce",
    "pipelines.train",
    "pipelines.cli",
    "ropewalk",
]
WINGS = {
    "pipelines.bench",
    "pipelines.grid",
    "pipelines.doctor",
    "pipelines.tune",
    "pipelines.reproduce",
    "pipelines.train",
}
FLOORS = 9

# Foreign libraries that any file may import.
ANYWHERE = {"numpy"}
# Every other one has owners: a room, or one file of it.
OWNERS = {
    "accelerate": {"pipelines.train"},
    "argcomplete": {"pipelines.cli.main"},
    "blake3": {"pipelines.models.digest", "pipelines.tasks.encoded"},
    "datasets": {"pipelines.tasks"},
    "filelock": {"pipelines.models.conversion", "pipelines.records.leases", "pipelines.track.database"},
    "gguf": {"pipelines.models.copies", "pipelines.models.gguf_once"},  # headers we read ourselves
    "huggingface_hub": {"pipelines.models.find"},
    "hydra": {"pipelines.choices", "pipelines.grid.launcher", "pipelines.bench.stock"},
    "jinja2": {"pipelines.report.page"},
    "lm_eval": {"pipelines.tasks", "pipelines.bench"},
    "matplotlib": {"pipelines.report.canvas", "pipelines.report.drawing"},
    "mlflow": {"pipelines.track", "pipelines.bench.stock"},
    "omegaconf": {"pipelines.choices", "pipelines.grid.launcher", "pipelines.bench.stock"},
    "optuna": {"pipelines.tune.search"},
    "pandas": {"pipelines.report", "ropewalk.results"},
    "psutil": {
        "pipelines.records.processes",
        "pipelines.records.memory",
        "pipelines.workers.cluster",
        "pipelines.workers.usage",
    },
    "ray": {"pipelines.workers.cluster"},
    "rich": {
        "pipelines.report",
        "pipelines.track.launch",
        "pipelines.bench",
        "pipelines.grid",
        "pipelines.doctor",
        "pipelines.reproduce",
    },
    "rouge_score": {"pipelines.tasks.summaries_rouge"},
    "scipy": {"pipelines.report.statistics"},
    "sqlalchemy": {"pipelines.track.database"},
    "tokenizers": {"pipelines.models", "pipelines.train.corpus", "pipelines.train.exercises"},
    "torch": {
        "rope.attention",
        "rope.chunks",
        "rope.compared",
        "rope.compiled",
        "rope.fused",
        "rope.links",
        "rope.patch",
        "rope.rotary",
        "rope.rotation",
        "rope.rows",
        "pipelines.models.built",
        "pipelines.models.conversion",
        "pipelines.models.light",
        "pipelines.models.load",
        "pipelines.bench.scorer",
        "pipelines.tasks.forward",
        "pipelines.tasks.logits",
        "pipelines.tasks.scorer",
        "pipelines.tasks.shared",
        "pipelines.tasks.softmax",
        "pipelines.workers.evaluate",
        "pipelines.workers.live",
        "pipelines.workers.usage",
        "pipelines.doctor",
        "pipelines.train",
        "ropewalk.plans",
    },
    "transformers": {
        "rope.attention",
        "rope.rows",
        "pipelines.models.built",
        "pipelines.models.conversion",
        "pipelines.models.light",
        "pipelines.models.load",
        "pipelines.bench.stock",
        "pipelines.tasks.shared",
        "pipelines.train.train",
    },
    "tqdm": {"pipelines.tasks.scorer", "pipelines.doctor.profile"},
    "triton": {"pipelines.tasks.softmax"},  # comes with torch where there are GPUs for it
    "yaml": {
        "pipelines.choices",
        "pipelines.doctor.rules",
        "pipelines.tasks.files",
        "pipelines.tasks.long_tasks",
        "pipelines.train.recipe",
    },
}

FILES = sorted(p for folder in ("rope", "pipelines", "ropewalk") for p in (PROJECT / folder).rglob("*.py"))
CODE_LINES = 300


def module(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str | None:
    """The room of a module; None for a module that is not ours."""
    inside = [known for known in ROOMS if name == known or name.startswith(f"{known}.")]
    return max(inside, key=len, default=None)


@cache  # every file is asked for by dozens of tests
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


MODULES = {module(path): path for path in FILES}


def ours(path: Path) -> set[str]:
    """The modules of ours that a file imports; of `from a.b import c` the module a.b.c where there is one, else a.b."""
    found = {name if name in MODULES else name.rpartition(".")[0] for name in imports(path)}
    return {name for name in found if name in MODULES and name != module(path)} - {"pipelines"}


def arrows() -> set[tuple[str, str]]:
    """Which room imports which."""
    between = {(room(name), room(other)) for name, path in MODULES.items() for other in ours(path)}
    return {(here, other) for here, other in between if here and other and here != other}


def floors() -> dict[str, int]:
    """The floor of every room: one above the highest that it imports."""
    below = {here: {other for start, other in arrows() if start == here} for here in ROOMS}
    floor: dict[str, int] = {}
    for here in ROOMS:  # in order, so that what it imports is there
        floor[here] = 1 + max((floor[other] for other in below[here]), default=0)
    return floor


def test_every_file_stands_in_a_room():
    assert {name for name in MODULES if room(name) is None} <= {"pipelines", "pipelines.__main__"}


@pytest.mark.parametrize("here", ROOMS)
def test_a_room_imports_only_rooms_before_it(here):
    for other in (other for start, other in arrows() if start == here):
        assert ROOMS.index(other) < ROOMS.index(here), f"{here} must not import {other}"


def test_no_wing_imports_another():
    assert not [(here, other) for here, other in arrows() if here in WINGS and other in WINGS]


def test_files_of_a_room_form_layers():
    """Files that import each other in a circle are one file in two."""
    graph = {name: {other for other in ours(path) if room(other) == room(name)} for name, path in MODULES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_the_house_stays_small():
    """Rooms, floors and arrows, shown by `pytest tests/test_architecture.py -s -k small`."""
    print(f"\n{len(ROOMS)} rooms, {max(floors().values())} floors, {len(arrows())} arrows")
    assert max(floors().values()) <= FLOORS


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_a_foreign_library_stays_with_its_owner(path):
    for library in {name.split(".")[0] for name in imports(path)} - ANYWHERE - set(sys.stdlib_module_names):
        if library in ("rope", "pipelines", "ropewalk"):
            continue
        assert library in OWNERS, f"{library} has no owner: enter one in OWNERS, and the package in pyproject.toml"
        name = module(path)
        owned = any(name == owner or name.startswith(f"{owner}.") for owner in OWNERS[library])
        assert owned, f"{name} imports {library}, which belongs to {', '.join(sorted(OWNERS[library]))}"


def test_an_owner_of_a_library_imports_it():
    used = {(module(path), name.split(".")[0]) for path in FILES for name in imports(path)}
    for library, owners in OWNERS.items():
        for owner in owners:
            assert any(lib == library and (name == owner or name.startswith(f"{owner}.")) for name, lib in used), (
                f"{owner} does not import {library}"
            )


def test_rope_imports_nothing_of_ours():
    for path in (PROJECT / "rope").rglob("*.py"):
        assert not {name for name in imports(path) if name.split(".")[0] in ("pipelines", "ropewalk")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_files_stay_short(path):
    source = path.read_text()
    code = _code_lines(source) - _docstring_lines(source)
    assert len(code) <= CODE_LINES, f"{path.name} has {len(code)} lines of code: a noun is hiding in it"


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


def test_help_is_fast_and_loads_nothing_heavy():
    script = (
        "import sys, time; from pipelines.cli.main import VERBS, run; run(['--help']); spent = time.process_time(); "
        "[run([verb, '--help']) for verb in VERBS]; "
        "heavy = ('torch', 'ray', 'mlflow', 'transformers', 'lm_eval', 'hydra', 'omegaconf', 'numpy', 'yaml', 'rich'); "
        "print(spent, [name for name in heavy if name in sys.modules])"
    )
    spent = []
    for _ in range(3):
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=True)
        seconds, _, modules = ran.stdout.splitlines()[-1].partition(" ")
        assert modules == "[]"
        spent.append(float(seconds))
    assert min(spent) < 0.1, "seconds of `ropewalk --help`, Python's own start included"


def test_the_readme_draws_the_tree_on_disk():
    readme = (PROJECT / "README.md").read_text()
    drawn = set(re.findall(r"^    ((?:rope|pipelines|ropewalk)/\S*)\s", readme, flags=re.M))
    here = {f"{name.replace('.', '/')}/" for name in [*ROOMS, "pipelines"]}
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
