"""`ropewalk doctor`: why a model fails beyond its trained length, what of it is mis-set, and what to try."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.choices.config import Workbench
from pipelines.choices.sweep import device_of, dtype_of, model_of
from pipelines.doctor import corrections, examine, record, show
from pipelines.doctor.examine import ExamineRequest
from pipelines.doctor.profile import BUDGET
from pipelines.doctor.rules import RULES, STAGES
from pipelines.records.cells import Refusal
from pipelines.records.results import Store
from pipelines.tasks.text import PYDOC

HELP = """ropewalk doctor model=MODEL [target=TOKENS] [OVERRIDES] [--json] [--only IDS] [--fix OUT] [--rules]

Why this model fails beyond its trained length, what of it is mis-set, and what to try. It reads the files, looks into
the built model, and runs it; each finding comes with what was measured, its cause and its fix.
  ropewalk doctor model=smollm2 target=32768
  ropewalk doctor model=~/models/Llama-3.1-8B --only static      # files alone, no weights: a second
  ropewalk doctor model=~/models/mine --only S06,N01             # some rules, or stages
  ropewalk doctor model=~/models/mine --fix ~/models/mended      # a folder with what can be corrected mechanically
  ropewalk doctor --rules                                        # all that it looks for

target: tokens that you want; 4 times the trained length where it is left out. budget: seconds that long documents may
take (600). Overrides as for grid: dtype=..., cluster=cpu, task.text=FILE, strategy=... (what you mean to put on it).
Exit codes: 0 no error found, 1 an error found, 2 refused.
"""


@dataclass(frozen=True)
class Asked:
    """What the command line wants besides the model.

    target: tokens. budget: seconds for long documents. only: ids and stages, () for all. fix: folder for the corrected
    config.
    """

    target: int | None = None
    budget: float = BUDGET
    only: tuple[str, ...] = ()
    as_json: bool = False
    fix: Path | None = None


def main(choice: Workbench, asked: Asked) -> int:
    """Examine a model, report and record it; the exit code.

    Raises:
        Refusal: the model is not there, or --fix cannot be done.
    """
    only = asked.only
    if asked.fix and not only:
        only = ("static",)
        _log(f"--fix: reading the files only, which is all it corrects; --only {','.join(STAGES)} runs the model too")
    device = device_of(choice.cluster.device)
    request = ExamineRequest(
        model=model_of(choice.model),
        target=asked.target,
        only=only,
        dtype=dtype_of(choice.dtype, device),
        device=device,
        text=str(choice.task.get("text", PYDOC)),
        budget=asked.budget,
        strategy=str(choice.strategy["name"]),
        task=str(choice.task["name"]),
    )
    result = examine.examine(request, _log)
    findings = result.verdict.findings
    written = corrections.write(result.files, request.model, findings, asked.fix) if asked.fix else []
    if asked.as_json:
        print(show.as_json(result))
    else:
        show.report(_console(), result)
    if not only:
        _log(f"recorded: {record.record(result, Store.at(choice.store))}")
    if written:
        _log(f"corrected: {', '.join(map(str, written))}")
    return result.exit_code


def _log(message: str) -> None:
    """Print what is no part of the report, and must not stand in the way of --json."""
    print(message, file=sys.stderr, flush=True)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def list_rules() -> None:
    """Every rule, by stage."""
    show.rules(_console())


def asked_of(arguments: Sequence[str]) -> tuple[Asked, list[str]]:
    """Flags, target and budget of a command line, and the overrides that are left.

    Raises:
        Refusal: an unknown flag, rule or stage, or a number out of range.
    """
    told: dict[str, Any] = {}
    only: list[str] = []
    left: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag in VALUED and not equals:
            if not rest or rest[0].startswith("-"):
                raise Refusal(f"{flag}: give {VALUED[flag]}")
            value = rest.pop(0)
        if flag == "--only":
            only += [_rule(name) for name in value.split(",") if name]
        elif flag == "--fix":
            told["fix"] = Path(value).expanduser()
        elif word == "--json":
            told["as_json"] = True
        elif flag in ("target", "budget"):
            told[flag] = _whole(flag, value)
        elif word.startswith("-"):
            raise Refusal(f"ropewalk doctor has no flag {word}; it has --json, --only IDS, --fix OUT and --rules")
        else:
            left.append(word)
    return Asked(**told, only=tuple(only)), left


VALUED = {"--only": "rules or stages, such as --only S06,N01", "--fix": "a folder to write to"}
LEAST = {"target": 2, "budget": 1}


def _whole(name: str, value: str) -> int:
    if not value.isdigit() or int(value) < LEAST[name]:
        unit = "tokens" if name == "target" else "seconds"
        raise Refusal(f"{name}={value}: give a whole number of {unit}, at least {LEAST[name]}")
    return int(value)


def _rule(name: str) -> str:
    known = [*STAGES, *RULES]
    found = {one.lower(): one for one in known}.get(name.lower())
    if found is None:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise Refusal(f"--only {name}: no such rule or stage; {hint}`ropewalk doctor --rules` lists them")
    return found
