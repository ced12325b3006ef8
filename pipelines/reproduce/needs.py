"""What published tables need, known without a network: models, data sets, memory, time; and what of it is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.choices import estimate
from pipelines.models import find
from pipelines.records.cells import Task, frozen
from pipelines.records.numbers import GIB, duration
from pipelines.reproduce import published
from pipelines.reproduce.published import PublishedTable
from pipelines.tasks import registry, text


def to_get(model: str, task: Mapping[str, Any]) -> str:
    checkpoint = published.checkpoints()[model]
    steps = [] if find.cached(checkpoint.path) else [checkpoint.to_get]
    source = str(task.get("text", ""))
    if source.startswith(text.HUB) and not _text_here(source):
        steps.append(f"`hf download --repo-type dataset {text.parse(source).path}`")
    return " and ".join(steps) or "see the model's and the data set's page on the hub"


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
        return [name for name in (*self.models, *self.texts) if name not in self.here]


def needs_of(table: PublishedTable) -> Needs:
    """What a table's values need, without asking any network."""
    models: dict[str, bool] = {}
    texts: dict[str, bool] = {}
    peaks, runnable = [0.0], 0
    seconds: dict[object, float] = {}  # of each run: several values may be read off the same
    known = True
    for row, number, _ in table.values():
        column = table.columns[number]
        if table.missing_of(row, column) or row.model is None:
            continue
        runnable += 1
        checkpoint, options = published.checkpoints()[row.model], dict(column.task)
        models[checkpoint.path] = find.cached(checkpoint.path)
        if str(options.get("text", "")).startswith(text.HUB):
            texts[str(options["text"])] = _text_here(str(options["text"]))
        shape = estimate.Shape.of(checkpoint.shape)
        task = Task(str(options.pop("name")), frozen(options))
        for length in table.lengths_of(row, column):
            passes = registry.forwards(task, None, length=length, limit=column.limit)
            if shape is None or passes is None:
                known = False
            if shape is not None:
                peak, spent = estimate.rough(shape, length, (passes or 0) * length)
                peaks.append(peak)
                seconds[row.name, frozen(row.strategy_at(number)), length, task, column.limit] = spent
    here = frozenset(name for name, there in (*models.items(), *texts.items()) if there)
    total = sum(seconds.values()) if known and runnable else None
    return Needs(tuple(models), tuple(texts), here, max(peaks) or None, total, runnable)


def summary(table: PublishedTable) -> str:
    """What a table takes in a few lines, shown before it runs."""
    needs = needs_of(table)
    if not needs.runnable:
        return f"  needs: nothing that can be had; {table.missing or 'see the reasons below'}"
    models, texts = (
        ", ".join(f"{name}{'' if name in needs.here else ' (not here)'}" for name in names)
        for names in (needs.models, needs.texts)
    )
    return (
        f"  needs: models {models}\n  data sets: {texts or 'none'}\n  {_size(needs.peak)} of GPU memory for the "
        f"longest, {_time(needs.seconds)} on one data-centre GPU (a guess); {needs.runnable} values can be run"
    )


def _size(peak: float | None) -> str:
    return f"{peak / GIB:.0f} GiB" if peak else "not known how much"


def _time(seconds: float | None) -> str:
    return duration(seconds) if seconds is not None else "not known how long"


def show(console: Console) -> None:
    """Every table: how many values, what it needs, whether that is here."""
    listing = Table(title="published tables", title_justify="left")
    for name in ("published=", "what", "values", "needs", "memory", "time on one GPU", "here"):
        listing.add_column(name, overflow="fold")
    for name in published.names():
        table = published.table(name)
        listing.add_row(name, table.title, f"{sum(1 for _ in table.values())}", *_columns(table))
    console.print(listing)
    console.print("here: whether it can run on this machine now. *: its claims can be tested on any model: --transfer")


def _columns(table: PublishedTable) -> tuple[str, str, str, str]:
    """needs, memory, time and here of the list."""
    star = " *" if table.claims else ""
    if table.derived:
        return "nothing", "", "", "yes"
    needs = needs_of(table)
    if not needs.runnable:
        return table.missing or "only claims", "", "", f"no{star}"
    short = f"{len(needs.models)} model{'s' if len(needs.models) > 1 else ''}"
    if needs.texts:
        short += f", {len(needs.texts)} data set{'s' if len(needs.texts) > 1 else ''}"
    elif any(column.task.get("name") not in registry.OWN for column in table.columns):
        short += ", lm-eval's data"
    here = f"no: {len(needs.lacking)} of these not here" if needs.lacking else "yes"
    return short, _size(needs.peak), _time(needs.seconds), f"{here}{star}"
