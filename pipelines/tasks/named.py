"""lm-eval's own tasks, found by their YAML: building its index of all tasks would take seconds."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.records.cells import Refusal
from pipelines.tasks.documents import Encoder
from pipelines.tasks.kinds import TaskKind
from pipelines.tasks.passkey import FILLER


class NamedTask(TaskKind):
    """num_fewshot: examples before each question; None: as the task has it. files: the YAML of a task of one's own; a
    cell is known by the digest of its content in the place of it."""

    options: Mapping[str, Any] = {"num_fewshot": None, "files": None}
    optional: Mapping[str, type] = {"num_fewshot": int, "files": str}
    hashed = ("num_fewshot",)


KIND = NamedTask()

_KIND = re.compile(r"""^["']?(task|group)["']?:[ \t]*["']?([^\s"'#\[{]+)["']?[ \t]*(?:\#.*)?$""", re.MULTILINE)

RULER_PACKAGES = ("wonderwords", "nltk")
RULER_LEAST = 1024
"""Tokens. Below, RULER's generators make prompts without content, or look without end for one that fits."""
RULER_WORDS = 2.5
"""Tokens a word, at most. Above, they look without end at any length: theirs are sized for tokenizers of words."""

BABILONG_SIZES = (0, 1, 2, 4, 8, 16, 32, 64, 128)
"""Thousands of tokens; the documents have about as many, of the tokenizer that they were made with."""


def find(name: str, ours: Iterable[str] = ()) -> Path:
    """The YAML of a task of lm-eval. ours: names of tasks of our own, which a refusal tells of.

    Raises:
        Refusal: there is none of that name.
    """
    tasks, groups = _index()
    if name in tasks:
        return tasks[name]
    members = [task for task in tasks if task.startswith(f"{name}_")][:5]
    if name in groups:
        some = f", such as {', '.join(members)}" if members else ""
        raise Refusal(f"task {name} is a group of lm-eval's tasks: name one task{some}; commas make a grid")
    close = difflib.get_close_matches(name, list(dict.fromkeys([*ours, *tasks])), n=3, cutoff=0.7) or members
    hint = f"did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` lists what there is"
    raise Refusal(f"unknown task {name}; ours are {', '.join(ours)}, all others are lm-eval's: {hint}")


@lru_cache(maxsize=1)
def _index() -> tuple[dict[str, Path], set[str]]:
    # The harness's own index takes ten times as long: it parses each of its thousands of files.
    package = importlib.util.find_spec("lm_eval")
    assert package is not None and package.origin is not None
    tasks: dict[str, Path] = {}
    groups: set[str] = set()
    for path in sorted(Path(package.origin).parent.joinpath("tasks").rglob("*.yaml")):
        for kind, name in reversed(_KIND.findall(path.read_text(encoding="utf-8"))):
            if kind == "group":
                groups.add(name)
            else:
                tasks.setdefault(name, path)
    return tasks, groups


_UNSAFE = re.compile(r"^unsafe_code:[ \t]*(true|yes|on)\b", re.MULTILINE | re.IGNORECASE)
_INCLUDED = re.compile(r"""^include:[ \t]*["']?([^\s"'#]+)""", re.MULTILINE)


def runs_what_models_write(path: Path, depth: int = 8) -> bool:
    """Whether a task's YAML, or one that it includes, says unsafe_code. Nothing of the task is imported for it."""
    if depth == 0 or not path.is_file():
        return False
    body = path.read_text(encoding="utf-8")
    included = (path.parent / name for name in _INCLUDED.findall(body))
    return bool(_UNSAFE.search(body)) or any(runs_what_models_write(other, depth - 1) for other in included)


def check(name: str, encode: Encoder, length: int, ours: Iterable[str] = ()) -> Path:
    """The task's YAML, after what can be known without loading it.

    Raises:
        Refusal: an unknown name, or a task of RULER that lacks packages, length, or a tokenizer of words.
    """
    path = find(name, ours)
    if path.parent.name == "ruler":
        missing = [package for package in RULER_PACKAGES if importlib.util.find_spec(package) is None]
        if missing:
            raise Refusal(needs(name, " and ".join(missing), "ruler"))
        if length < RULER_LEAST:
            raise Refusal(f"length={length}: RULER's prompts take at least {RULER_LEAST} tokens; choose a longer one")
        rate = len(encode(FILLER)) / len(FILLER.split())
        if rate > RULER_WORDS:
            raise Refusal(
                f"task {name}: RULER's prompts need at most {RULER_WORDS} tokens a word and this tokenizer takes "
                f"{rate:.1f}; choose task=passkey, which fits any tokenizer"
            )
    return path


def length_setting(path: Path, length: int) -> list[int] | str:
    """The length as a task's files take it: a list of tokens; of BABILong the name of its largest size that may fit.

    >>> length_setting(Path("babilong/babilong_qa1.yaml"), 6000), length_setting(Path("ruler/vt.yaml"), 6000)
    ('4k', [6000])
    """
    if path.parent.name != "babilong":
        return [length]
    return f"{max((size for size in BABILONG_SIZES if size * 1024 <= length), default=0)}k"


def needs(name: str, what: str, extra: str | None = None) -> str:
    """The message for a task whose packages are not installed."""
    ours = f"`uv sync --extra {extra}` or pip install 'ropewalk[{extra}]'"
    return f"task {name} needs packages that are not installed ({what}): {ours if extra else 'install them first'}"


def metric_name(metric: str, filtered: str, length: int) -> str | None:
    """lm-eval's (metric, filter) as one name that MLflow takes; None for what is no score.

    RULER names its metric by the length, and puts -1 under the lengths that it was not asked for.

    >>> metric_name("acc", "none", 4096), metric_name("exact_match", "strict-match", 4096)
    ('acc', 'exact_match/strict-match')
    >>> metric_name("1024", "none", 1024), metric_name("4096", "none", 1024)
    ('score', None)
    """
    if metric.isdigit():
        return "score" if int(metric) == length else None
    name = metric if filtered == "none" else f"{metric}/{filtered}"
    return re.sub(r"[^\w\-./: ]", "_", name)
