"""`ropewalk doctor`: why a model fails beyond its trained length, what of it is mis-set, and what to try."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipelines.choices.config import Workbench
from pipelines.choices.sweep import device_of, dtype_of, model_of
from pipelines.doctor import behaviour, cliff, examine, fix, keys, lineage, numeric, record, show, values
from pipelines.doctor.examine import Order
from pipelines.doctor.profile import BUDGET
from pipelines.records.results import Store
from pipelines.tasks.text import PYDOC

KNOWN = (keys, values, lineage, numeric, behaviour, cliff)
"""Files with rules, in the order in which --rules lists them; importing one enters its rules."""

@dataclass(frozen=True)
class ExamineOptions:
    """What the command line wants besides the model.

    target: tokens. budget: seconds for long documents. only: ids and stages, () for all. fix: folder for the corrected
    config.
    """

    target: int | None = None
    budget: float = BUDGET
    only: tuple[str, ...] = ()
    as_json: bool = False
    fix: Path | None = None


def main(choice: Workbench, asked: ExamineOptions) -> int:
    """Examine a model as asked, tell, and record; the exit code.

    Raises:
        Refusal: the model is not there, or --fix cannot be done.
    """
    found = examine.examine(_order(choice, asked), _aside)
    made = fix.write(found.files, found.order.model, found.verdict.findings, asked.fix) if asked.fix else []
    if asked.as_json:
        print(show.as_json(found))
    else:
        show.report(_console(), found)
    if not asked.only:
        _aside(f"recorded: {record.record(found, Store.at(choice.store))}")
    if made:
        _aside(f"corrected: {', '.join(map(str, made))}")
    return found.exit_code


def _order(choice: Workbench, asked: ExamineOptions) -> Order:
    device = device_of(choice.cluster.device)
    return Order(
        model=model_of(choice.model),
        target=asked.target,
        only=asked.only,
        dtype=dtype_of(choice.dtype, device),
        device=device,
        text=str(choice.task.get("text", PYDOC)),
        budget=asked.budget,
        strategy=str(choice.strategy["name"]),
        task=str(choice.task["name"]),
    )


def _aside(words: str) -> None:
    """What is no part of the report: it must not stand in the way of --json."""
    print(words, file=sys.stderr, flush=True)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def list_rules() -> None:
    """Every rule, by stage."""
    show.rules(_console())
