"""lm-eval's own long-context tasks in the version installed, read from its files: what they take, and how they run."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

FAMILIES = ("babilong", "graphwalks", "infinitebench", "longbench", "longbench2", "ruler", "scrolls")


@dataclass(frozen=True)
class Family:
    """A folder of lm-eval's tasks.

    tasks: their names. answers: how they are answered, with the most tokens of a generated answer.
    length: whether the length under test is passed on to them.
    data: data sets of the hub that they load.
    extra: whether lm-eval has an extra of its name, with packages that they import.
    missing: modules that they import and that no version installed here has, of packages that are.
    """

    name: str
    tasks: tuple[str, ...]
    answers: str
    length: bool
    data: tuple[str, ...]
    extra: bool
    missing: tuple[str, ...]


_LOADED = re.compile(r"(?:load_dataset\(\s*|DATASET_PATH\s*=\s*)[\"']([\w.-]+/[\w.-]+)[\"']")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """lm-eval's YAML, its functions left as their names."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def families() -> list[Family]:
    """Every family that the installed lm-eval has."""
    package = importlib.util.find_spec("lm_eval")
    assert package is not None and package.origin is not None
    root = Path(package.origin).parent / "tasks"
    return [_family(root / name) for name in FAMILIES if (root / name).is_dir()]


def _family(folder: Path) -> Family:
    read = map(_config, sorted(folder.glob("*.yaml")))
    configs = [config for config in read if isinstance(config.get("task"), str)]  # a group has a list there
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}
    trees = [ast.parse(source) for path, source in sources.items() if not path.name.startswith("_")]
    room = [int(most) for config in configs if (most := config.get("generation_kwargs", {}).get("max_gen_toks"))]
    kinds = {str(config.get("output_type", "generate_until")) for config in configs if "class" not in config}
    answers = "its own class" if not kinds else "choice" if kinds == {"multiple_choice"} else "generation"
    if room and answers == "generation":
        answers += f", {min(room)} to {max(room):,} tokens" if min(room) < max(room) else f", {max(room):,} tokens"
    given = {config["dataset_path"] for config in configs if config.get("dataset_path")}
    named = {name for source in sources.values() for name in _LOADED.findall(source)}
    imported = {module for tree in trees for module in _imports(tree)}
    return Family(
        folder.name,
        tuple(str(config["task"]) for config in configs),
        answers,
        any("max_seq_lengths" in source for source in sources.values()),
        tuple(sorted(given | named)),
        _has_extra(folder.name, imported),
        tuple(sorted(module for module in imported if _gone(module))),
    )


def _config(path: Path) -> dict[str, Any]:
    """A task's YAML with what it includes."""
    values = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}  # _Loader makes plain data
    if "include" in values:
        values = _config(path.parent / values.pop("include")) | values
    return dict(values)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "transformers.data")


def _has_extra(family: str, imported: set[str]) -> bool:
    tops = {module.partition(".")[0].lower() for module in imported}
    every = importlib.metadata.requires("lm_eval") or ()
    of_extras = (re.match(r"([\w.-]+).*extra == [\"'](.+?)[\"']", each) for each in every)
    return any(each is not None and each[2] == family and each[1].lower() in tops for each in of_extras)


def _gone(module: str) -> bool:
    """Whether a module is not there although its package is."""
    top = module.partition(".")[0]
    try:
        return importlib.util.find_spec(top) is not None and importlib.util.find_spec(module) is None
    except ImportError:
        return True


def table() -> str:
    """The families as a Markdown table."""
    rows = ["| lm-eval's | answered by | length | data | here |", "|---|---|---|---|---|"]
    for each in families():
        first, *rest = each.tasks
        names = f"`{first}`" + (f" and {len(rest)} more" if rest else "")
        length = "passed on" if each.length else "fixed by its documents"
        if each.name == "babilong":  # named.length_setting
            length = "passed on, as the largest size that may fit"
        data = ", ".join(each.data[:2]) + (f" and {len(each.data) - 2} more" if len(each.data) > 2 else "")
        rows.append(f"| {names} | {each.answers} | {length} | {data or 'made here'} | {_here(each)} |")
    return "\n".join(rows)


def _here(each: Family) -> str:
    if each.missing:
        return f"refused: imports {', '.join(each.missing)}, which the installed version does not have"
    return f"with `pip install 'lm_eval[{each.name}]'`" if each.extra else "runs"
