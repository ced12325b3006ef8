"""What every key and option means: read as text from the comments of conf/ and the docstrings of typed records.

Nothing is imported or parsed for it, so that help and shell completion stay fast.
"""

from __future__ import annotations

import ast
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipelines.records.places import CONF, SITE

GROUPS = ("model", "strategy", "task", "cluster", "experiment")
SCHEMA = SITE / "pipelines" / "choices" / "config.py"
RECORDS = {"model": "ModelChoice", "cluster": "Cluster"}
"""Groups whose options are the same for all values: the dataclass in SCHEMA that has them."""


TYPES = {
    "int | None": "int",
    "int | str | None": "int",
    "float | None": "float",
    "bool | None": "bool",
    "str": "text",
    "str | None": "text",
    "dict[str, Any]": "mapping",
    "list[str]": "list",
    "list[float]": "list",
    "Any": "text",
    "Dtype": "name",
    "Device": "name",
}
"""How help calls the types of Python."""


@dataclass(frozen=True)
class Key:
    """One KEY=VALUE. type: "" where none is declared; default: as YAML writes it, "" where a value must be given."""

    name: str
    type: str
    default: str
    meaning: str


def values(group: str) -> list[str]:
    """The files of a group of conf/."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@lru_cache(maxsize=1)
def top_keys() -> list[Key]:
    """The keys of conf/config.yaml that are no groups, with the types that the schema gives them."""
    types = {key.name: key.type for key in record_keys(SCHEMA, "Workbench")}
    types |= {f"report.{key.name}": key.type for key in record_keys(SCHEMA, "Report")}
    return [Key(key.name, types[key.name], key.default, key.meaning) for key in yaml_keys(CONF / "config.yaml")]


def options(group: str, value: str) -> list[Key]:
    """The options of one value of a group: `options("strategy", "yarn")`. None where it has none, or is not known."""
    path = CONF / group / f"{value}.yaml"
    if not path.is_file():
        return []
    if group not in RECORDS:
        return [Key(f"{group}.{key.name}", key.type, key.default, key.meaning) for key in yaml_keys(path)]
    own = {key.name: key.default for key in yaml_keys(path)}
    keys = [key for key in record_keys(SCHEMA, RECORDS[group]) if key.name != "name"]
    return [Key(f"{group}.{key.name}", key.type, own.get(key.name, key.default), key.meaning) for key in keys]


def filters() -> list[Key]:
    """What stored cells are filtered by (FILTERS of pipelines/report/stored.py, read as text)."""
    module = ast.parse((SITE / "pipelines" / "report" / "stored.py").read_text(encoding="utf-8"))
    [value] = [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "FILTERS"
    ]
    return [Key(name, "filter", "null", meaning) for name, meaning in ast.literal_eval(value).items()]


def description(group: str, value: str) -> str:
    """What the comment at the head of a file says."""
    text = (CONF / group / f"{value}.yaml").read_text(encoding="utf-8")
    lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    return " ".join(lines)


def yaml_keys(path: Path) -> list[Key]:
    """`key: default # meaning` of every top-level line, after those of the files that its defaults list names."""
    keys: dict[str, Key] = {}
    parent_key = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line[:1].strip():
            parent_key = "report." if line.startswith("report:") else ""
        elif parent_key:
            line = parent_key + line.strip()
        parent = re.fullmatch(r"  - (\w+)", line)
        if parent and (file := path.with_stem(parent[1])).is_file():
            keys |= {key.name: key for key in yaml_keys(file)}
        elif match := re.fullmatch(r"([\w.]+):\s*(.*?)(?:\s+# (.*))?", line):
            name, default, meaning = match[1], match[2].replace("???", ""), match[3] or ""
            if name not in ("defaults", "hydra", "name", "report"):
                known = keys.get(name)
                keys[name] = Key(name, _type(default), default, meaning or (known.meaning if known else ""))
    return list(keys.values())


def record_keys(path: Path, record: str) -> list[Key]:
    """The fields of a dataclass, each with the docstring below it."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    [body] = [node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == record]
    keys: list[Key] = []
    for statement in body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            default = ast.unparse(statement.value) if statement.value else ""
            keys.append(Key(statement.target.id, ast.unparse(statement.annotation), _plain(default), ""))
        elif keys and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            last = keys[-1]
            meaning = " ".join(str(statement.value.value).split())
            keys[-1] = Key(last.name, last.type, last.default, last.meaning or meaning)
    return keys


def table(keys: Sequence[Key]) -> Iterator[str]:
    """Lines of a help text: name, type, default and meaning, which is folded to the terminal's width."""
    rows = [(key.name, TYPES.get(key.type, key.type), key.default or "-") for key in keys]
    if not rows:
        return
    first, second, third = (min(28, max(len(row[column]) for row in rows)) for column in range(3))
    for key, (name, kind, default) in zip(keys, rows, strict=True):
        head = f"  {name:{first}}  {kind:{second}}  {default:{third}}  "
        yield from textwrap.wrap(head + key.meaning, width(), subsequent_indent=" " * min(len(head), 44)) or [head]


def listing(name: str, entries: Iterable[str]) -> list[str]:
    """Lines of a help text: a group with its values."""
    return textwrap.wrap(f"  {name:11} {', '.join(entries)}", width(), subsequent_indent=" " * 14)


def width() -> int:
    """Columns of a help text."""
    return max(60, min(120, shutil.get_terminal_size().columns))


def _type(default: str) -> str:
    patterns = {"bool": r"true|false", "int": r"-?\d+", "float": r"-?\d+\.\d*(e.*)?", "list": r"\[.*"}
    for kind, pattern in patterns.items():
        if re.fullmatch(pattern, default):
            return kind
    return "" if default in ("", "null") else "text"


def _plain(default: str) -> str:
    """A default of Python as YAML writes it."""
    if match := re.fullmatch(r"field\(default_factory=(?:lambda: )?(.*)\)", default):
        default = {"dict": "{}", "list": "[]"}.get(match[1], match[1])
    default = {"None": "null", "True": "true", "False": "false", "MISSING": ""}.get(default, default)
    return default.rpartition(".")[2] if re.fullmatch(r"[A-Z]\w+\.\w+", default) else default.strip("'")
