"""What published tables need, asked of no network: models, data sets, memory, time; and what of it is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as Drawn

from pipelines.choices import estimate
from pipelines.models import find
from pipelines.records.cells import Task, frozen
from pipelines.records.numbers import GIB, duration
from pipelines.reproduce import published
from pipelines.reproduce.published import Table
from pipelines.tasks import registry, text


def to_get(model: str, task: Mapping[str, Any]) -> str:
    checkpoint = published.checkpoints()[model]
    told = [] if find.cached(checkpoint.path) else [checkpoint.to_get]
    source = str(task.get("text", ""))
    if source.startswith(text.HUB) and not _text_here(source):
        told.append(f"`hf download --repo-type dataset {text.parse(source).path}`")
    return " and ".join(told) or "see the model's and the data set's page on the hub"


def _text_here(source: str) -> bool:
    if not source.startswith(text.HUB):
        return True
    data = text.parse(source)
    return data.local or find.cached(data.path, "dataset")


@dataclass(frozen=True)
class Needs:
    """What a table takes: models and data sets of the hub, the largest forward's bytes, seconds on one GPU.

    here: models and data sets that are on this machine. runnable: values that somebody could run.
    """

    models: tuple[str, ...]
    texts: tuple[str, ...]
    here: frozenset[str]
    peak: float | None
    seconds: float | None
    runnable: int

    @property
    def lacking(self) -> list[str]:
        return [one for one in (*self.models, *self.texts) if one not in self.here]


def needs_of(table: Table) -> Needs:
    """What a table's values need, without asking any network."""
    found: dict[str, bool] = {}
    texts: dict[str, bool] = {}
    peaks, runnable = [0.0], 0
    seconds: dict[object, float] = {}  # of each run: several values may be read off the same
    known = True
    for row, number, _ in table.values():
        column = table.columns[number]
        if table.missing_of(row, column) or row.model is None:
            continue
        runnable += 1
        checkpoint, options = published.checkpoints()[row.model], dict(table.task_of(column))
        found[checkpoint.path] = find.cached(checkpoint.path)
        if str(options.get("text", "")).startswith(text.HUB):
            texts[str(options["text"])] = _text_here(str(options["text"]))
        shape = estimate.Shape.of(checkpoint.shape)
        task = Task(str(options.pop("name")), frozen(options))
        for length in table.lengths_of(row, column):
            passes = registry.forwards(task, None, length=length, limit=table.limit_of(column))
            if shape is None or passes is None:
                known = False
            if shape is not None:
                peak, spent = estimate.rough(shape, length, (passes or 0) * length)
                peaks.append(peak)
                seconds[row.name, frozen(published.strategy_at(row, number)), length, task, column.limit] = spent
    here = frozenset(one for one, there in (*found.items(), *texts.items()) if there)
    return Needs(
        tuple(found),
        tuple(texts),
        here,
        max(peaks) or None,
        sum(seconds.values()) if known and runnable else None,
        runnable,
    )


def told(table: Table) -> str:
    """What a table takes in a few lines, for who is about to run it."""
    found = needs_of(table)
    if not found.runnable:
        return f"  needs: nothing that can be had; {table.missing or 'see the reasons below'}"
    checkpoints = ", ".join(f"{one}{'' if one in found.here else ' (not here)'}" for one in found.models)
    sets = ", ".join(f"{one}{'' if one in found.here else ' (not here)'}" for one in found.texts) or "none"
    return (
        f"  needs: models {checkpoints}\n  data sets: {sets}\n  {_size(found.peak)} of GPU memory for the longest, "
        f"{_time(found.seconds)} on one data-centre GPU (a guess); {found.runnable} values can be run by anybody"
    )


def _size(peak: float | None) -> str:
    return f"{peak / GIB:.0f} GiB" if peak else "not known how much"


def _time(seconds: float | None) -> str:
    return duration(seconds) if seconds is not None else "not known how long"


def show(console: Console) -> None:
    """Every table: how many values, what it needs, whether that is here."""
    drawn = Drawn(title="published tables", title_justify="left")
    for name in ("published=", "what", "values", "needs", "memory", "time on one GPU", "here"):
        drawn.add_column(name, overflow="fold")
    for name in published.names():
        table = published.table(name)
        drawn.add_row(name, table.title, f"{sum(1 for _ in table.values())}", *_listed(table))
    console.print(drawn)
    console.print(
        "here: whether it can run on this machine now. Claims of those marked * can be asked of any model: --transfer"
    )


def _listed(table: Table) -> tuple[str, str, str, str]:
    star = " *" if table.claims else ""
    if table.derived:
        return "nothing", "", "", "yes"
    found = needs_of(table)
    if not found.runnable:
        return table.missing or "only claims", "", "", f"no{star}"
    short = f"{len(found.models)} model{'s' if len(found.models) > 1 else ''}"
    if found.texts:
        short += f", {len(found.texts)} data set{'s' if len(found.texts) > 1 else ''}"
    elif any(table.task_of(column).get("name") not in registry.OWN for column in table.columns):
        short += ", lm-eval's data"
    lacking = f"no: {len(found.lacking)} of these not here" if found.lacking else "yes"
    return short, _size(found.peak), _time(found.seconds), f"{lacking}{star}"
