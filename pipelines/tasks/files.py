"""A task out of a file of yours: a YAML as lm-eval takes it, with what it includes, its Python and its data.

What can be wrong with it is found without importing anything, lm-eval and its Python included. A cell knows it by the
digest of all these files, not by where they lie.
"""

from __future__ import annotations

import ast
import glob
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from pipelines.records import inputs
from pipelines.records.refusal import Refusal, first_line, suggestion

LARGEST = 1 << 20
"""Bytes of a YAML or a Python file."""

DEEPEST = 8
"""Files that include each other."""

LOADERS = frozenset({"json", "csv", "parquet", "text", "arrow"})
"""Values of dataset_path that read the files which dataset_kwargs names."""

OUTPUTS = ("generate_until", "loglikelihood", "loglikelihood_rolling", "multiple_choice")

BESIDE = frozenset({"include", "tag"})
"""Keys of a task's YAML that are none of the task itself."""


@dataclass(frozen=True)
class Function:
    """What `!function module.name` says."""

    module: str
    name: str


@dataclass(frozen=True)
class TaskFile:
    """A task of one's own. body: its keys, those of what it includes among them. sources: YAML and Python files, in the
    order in which they were met. data: files that its data set is read from."""

    path: Path
    name: str
    body: Mapping[str, Any]
    sources: tuple[Path, ...]
    data: tuple[Path, ...] = ()

    @property
    def digest(self) -> str:
        """16 hex digits of the content of all its files."""
        state = [(file.name, _content(file, *_state(file))) for file in (*self.sources, *self.data)]
        return hashlib.sha256(repr(state).encode()).hexdigest()[:16]

    @property
    def settings(self) -> dict[str, Any]:
        """Keys in which it differs from its YAML: paths of data that do not depend on the current folder."""
        kwargs = dict(self.body.get("dataset_kwargs") or {})
        where = self.path.parent
        changed: dict[str, Any] = {}
        if "data_files" in kwargs:
            kwargs["data_files"] = _placed(kwargs["data_files"], where)
            changed["dataset_kwargs"] = kwargs
        if "data_dir" in kwargs:
            kwargs["data_dir"] = _placed(kwargs["data_dir"], where)
            changed["dataset_kwargs"] = kwargs
        if (folder := _here(self.body.get("dataset_path"), where)) is not None:
            changed["dataset_path"] = str(folder)
        return changed

    @property
    def runs_what_models_write(self) -> bool:
        return bool(self.body.get("unsafe_code"))


def tasks_of(place: Path) -> list[Path]:
    """The YAML files of tasks that a path names: itself, or of a folder all below it that say `task`.

    Raises:
        Refusal: it is not there, or holds none.
    """
    if place.is_dir():
        files = sorted(file for file in place.rglob("*.yaml") if not any(part[0] == "." for part in file.parts[-2:]))
        found = [
            file for file in files if re.search(r"^task:", file.read_text(encoding="utf-8", errors="replace"), re.M)
        ]
        if not found:
            raise Refusal(f"task={place}: no YAML file of this folder says `task: NAME`; give one of lm-eval's form")
        return found
    if not place.is_file():
        raise Refusal(f"task={place}: there is no such file or folder; give a task's YAML, or its name")
    return [place]


def read(path: Path, ours: frozenset[str] = frozenset()) -> TaskFile:
    """A task's YAML, checked as far as it can be without running anything.

    ours: names that a task of one's own may not have.

    Raises:
        Refusal: it cannot be read; a key, a metric or a form of answer is unknown, or one is missing; or a file, a
            function or a package that it needs is not there.
    """
    sources: list[Path] = []
    body = _merged(path.resolve(), sources, DEEPEST)
    name = body.get("task")
    if "group" in body or isinstance(name, list):
        raise Refusal(f"{path}: it is a group of tasks; give the YAML of each task, or their folder")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise Refusal(f"{path}: task: {name}: give it a name of letters, digits, _ and -, such as task: mine")
    if name in ours:
        raise Refusal(f"{path}: task: {name} is a task of ropewalk's own; give yours another name")
    _check_keys(path, body)
    sources += _check_functions(path, body)
    _check_metrics(path, body)
    return TaskFile(path.resolve(), name, body, tuple(dict.fromkeys(sources)), tuple(_data(path, body)))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Safe, and takes !function for what it names."""


def _function(loader: yaml.SafeLoader, node: yaml.Node) -> Function:
    module, _, name = str(loader.construct_scalar(node)).rpartition(".")
    return Function(module, name)


_Loader.add_constructor("!function", _function)


def _merged(path: Path, sources: list[Path], depth: int) -> dict[str, Any]:
    if depth == 0 or path in sources:
        raise Refusal(f"{path}: files include each other, or more than {DEEPEST} deep; give one that ends")
    sources.append(path)
    try:
        body = yaml.load(inputs.text(path, LARGEST), Loader=_Loader)  # a SafeLoader
    except Refusal:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Refusal(f"{path}: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise Refusal(f"{path}: give keys with values, as lm-eval's tasks have")
    included = body.pop("include", None) or []
    merged: dict[str, Any] = {}
    for other in included if isinstance(included, list) else [included]:
        place = path.parent / str(other)
        if not os.path.isfile(place):  # unlike pathlib's, false of a name that is too long
            raise Refusal(f"{path}: include: {str(other)[:200]}: there is no such file beside it")
        merged |= _merged(place.resolve(), sources, depth - 1)
    return merged | body


def _check_keys(path: Path, body: Mapping[str, Any]) -> None:
    known = _keys()
    for key in body:
        if key not in known | BESIDE:
            hint = suggestion(key, known)
            raise Refusal(f"{path}: {key}: a task has no such key; {hint}it has {', '.join(sorted(known))}")
    if not body.get("dataset_path") and not body.get("custom_dataset"):
        raise Refusal(f"{path}: it has no data: give dataset_path (json with data_files, or a data set of the hub)")
    if not body.get("test_split") and not body.get("validation_split"):
        raise Refusal(f"{path}: give test_split (of one JSON file: train) or validation_split: what is measured on")
    if not any(body.get(key) for key in ("doc_to_text", "use_prompt", "process_docs")):
        raise Refusal(f"{path}: give doc_to_text: what the model reads of a document")
    if (output := body.get("output_type", OUTPUTS[0])) not in OUTPUTS:
        raise Refusal(f"{path}: output_type: {output}: give one of {', '.join(OUTPUTS)}")
    for key in ("dataset_kwargs", "metadata", "generation_kwargs"):
        if not isinstance(body.get(key) or {}, dict):
            raise Refusal(f"{path}: {key}: give keys with values")


@lru_cache(maxsize=1)
def _keys() -> frozenset[str]:
    """The keys of a task, from lm-eval's source: importing it takes seconds."""
    module = ast.parse((_package() / "config" / "task.py").read_text(encoding="utf-8"))
    [record] = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "TaskConfig"]
    return frozenset(
        s.target.id for s in record.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
    )


@lru_cache(maxsize=1)
def _metrics() -> frozenset[str]:
    """The metrics that lm-eval brings, from its source."""
    source = (_package() / "api" / "metrics.py").read_text(encoding="utf-8")
    return frozenset(re.findall(r"""@register_metric\(\s*metric=["']([\w-]+)["']""", source))


def _package() -> Path:
    package = importlib.util.find_spec("lm_eval")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent


def _check_metrics(path: Path, body: Mapping[str, Any]) -> None:
    if body.get("process_results"):
        return  # it names its own
    for entry in body.get("metric_list") or []:
        metric = entry.get("metric") if isinstance(entry, dict) else entry
        if not isinstance(metric, Function) and metric not in _metrics():
            hint = suggestion(str(metric), _metrics())
            raise Refusal(
                f"{path}: metric: {metric}: lm-eval has no such metric; {hint}it has {', '.join(sorted(_metrics()))}; "
                "or give your own: !function file.name"
            )


def _check_functions(path: Path, body: Mapping[str, Any]) -> list[Path]:
    """The Python files that it names, and all beside them, which these may import.

    Raises:
        Refusal: a file or a function is not there, or imports a package that is not installed.
    """
    files: list[Path] = []
    for function in dict.fromkeys(_functions(body)):
        place = path.resolve().parent / f"{function.module.replace('.', '/')}.py"
        written = f"!function {function.module}.{function.name}"
        if not place.is_file():
            if not function.module or not _installed(function.module):
                raise Refusal(
                    f"{path}: {written}: there is no {place.name} beside it, and no such package is installed"
                )
            continue
        names = {
            target.id if isinstance(target, ast.Name) else getattr(target, "name", "")
            for node in _parsed(place).body
            for target in (node.targets if isinstance(node, ast.Assign) else [node])
        } | {alias.asname or alias.name for alias in _imported(_parsed(place))}
        if function.name not in names:
            raise Refusal(f"{path}: {written}: {place.name} has no function {function.name}")
        beside = sorted(place.parent.glob("*.py"))
        files += beside
        for file in beside:
            _check_packages(path, file)
    return files


def _functions(value: Any) -> Iterator[Function]:
    if isinstance(value, Function):
        yield value
    elif isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _functions(entry)


def _parsed(file: Path) -> ast.Module:
    try:
        return ast.parse(inputs.text(file, LARGEST))
    except (SyntaxError, ValueError) as error:
        if isinstance(error, Refusal):
            raise
        raise Refusal(f"{file}: it is no Python that can be read ({first_line(error)})") from error


def _imported(module: ast.Module) -> list[ast.alias]:
    return [alias for node in module.body if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]


def _check_packages(path: Path, file: Path) -> None:
    for node in _parsed(file).body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        for name in {name.partition(".")[0] for name in names}:
            if not (file.parent / f"{name}.py").is_file() and not _installed(name):
                raise Refusal(f"{path}: {file.name} imports {name}, which is not installed: install it first")


def _installed(name: str) -> bool:
    return (
        name.partition(".")[0] in sys.stdlib_module_names
        or importlib.util.find_spec(name.partition(".")[0]) is not None
    )


def _data(path: Path, body: Mapping[str, Any]) -> Iterator[Path]:
    """The local files of its data set; of a data set of the hub there are none.

    Raises:
        Refusal: one is not there.
    """
    where, kwargs = path.resolve().parent, body.get("dataset_kwargs") or {}
    if (folder := _here(body.get("dataset_path"), where)) is not None:
        yield from sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else [folder]
    elif str(body.get("dataset_path")) in LOADERS and not kwargs.get("data_files") and not kwargs.get("data_dir"):
        raise Refusal(f"{path}: dataset_path: {body['dataset_path']}: give dataset_kwargs: data_files: FILE")
    for name in _names(kwargs.get("data_files")):
        if "://" not in name:
            files = sorted(glob.glob(str(where / Path(name).expanduser()), recursive=True))
            if not files:
                raise Refusal(f"{path}: data_files: {name}: there is no such file (looked for in {where})")
            yield from map(Path, files)
    for name in _names(kwargs.get("data_dir")):
        if not (place := where / Path(name).expanduser()).is_dir():
            raise Refusal(f"{path}: data_dir: {name}: there is no such folder (looked for in {where})")
        yield from sorted(file for file in place.rglob("*") if file.is_file())


def _here(name: Any, where: Path) -> Path | None:
    """The place of a data set that is named by a path; None of one of the hub, or of a loader."""
    if not isinstance(name, str) or name in LOADERS or not name.startswith((".", "/", "~")):
        return None
    return (where / Path(name).expanduser()).resolve()


def _names(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [name for entry in value.values() for name in _names(entry)]
    return [name for entry in value for name in _names(entry)] if isinstance(value, list) else [value] if value else []


def _placed(value: Any, where: Path) -> Any:
    if isinstance(value, dict):
        return {key: _placed(entry, where) for key, entry in value.items()}
    if isinstance(value, list):
        return [_placed(entry, where) for entry in value]
    return value if "://" in str(value) else str(where / Path(str(value)).expanduser())


def _state(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=1024)
def _content(file: Path, size: int, written: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
