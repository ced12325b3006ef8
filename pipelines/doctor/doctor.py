"""`ropewalk doctor`: why a model fails beyond its trained length, what of it is mis-set, and what to try."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from pipelines.choices.config import Workbench
from pipelines.choices.sweep import device_of, dtype_of, model_of
from pipelines.doctor import corrections, examine, record, show, verify
from pipelines.doctor.examine import Examination, ExamineRequest
from pipelines.doctor.profile import BUDGET
from pipelines.doctor.rules import STAGES
from pipelines.records.cells import Refusal
from pipelines.records.results import Store
from pipelines.report.terminal import plain_console
from pipelines.tasks.text import PYDOC


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


def main(choice: Workbench, options: ExamineOptions) -> int:
    """Examine a model, report and record it; the exit code.

    Raises:
        Refusal: the model is not there, or --fix cannot be done.
    """
    only = options.only
    if options.fix and not only:
        only = ("static",)
        _log(f"--fix: reading the files only, which is all it corrects; --only {','.join(STAGES)} runs the model too")
    device = device_of(choice.cluster.device)
    request = ExamineRequest(
        model=model_of(choice.model),
        target=options.target,
        only=only,
        dtype=dtype_of(choice.dtype, device),
        device=device,
        text=str(choice.task.get("text", PYDOC)),
        budget=options.budget,
        strategy=str(choice.strategy["name"]),
        task=str(choice.task["name"]),
    )
    result = examine.examine(request, _log)
    written = _fix(result, options.fix) if options.fix else []
    if options.as_json:
        print(show.as_json(result))
    else:
        show.report(plain_console(), result)
    if not only:
        _log(f"recorded: {record.record(result, Store.at(choice.store))}")
    if written:
        _log(f"written: {', '.join(map(str, written))}")
    return result.exit_code


def _fix(result: Examination, out: Path) -> list[Path]:
    """Write the corrected folder.

    Raises:
        Refusal: it cannot be written, or its corrections do not do together what they promise.
    """
    findings = result.verdict.findings
    if (reason := verify.broken(result.files, findings)) is not None:
        raise Refusal(
            f"--fix: mechanical corrections are not enough, or too many: {reason}; correct that by hand first"
        )
    return corrections.write(result.files, result.request.model, findings, out)


def _log(message: str) -> None:
    """Print what is no part of the report, and must not stand in the way of --json."""
    print(message, file=sys.stderr, flush=True)


def list_rules() -> None:
    """Every rule, by stage."""
    show.rules(plain_console())
