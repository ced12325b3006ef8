"""`ropewalk doctor`: why a model fails beyond its trained length, what of it is mis-set, and what to try."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipelines.cells import Refusal
from pipelines.config import Workbench
from pipelines.doctor import behaviour, cliff, files, fix, keys, lineage, numeric, rules, show, values
from pipelines.doctor.rules import RULES, STAGES, Verdict
from pipelines.sweep import model_of

__all__ = ["HELP", "Asked", "asked_of", "behaviour", "cliff", "keys", "lineage", "main", "numeric", "values"]

HELP = """ropewalk doctor model=MODEL [target=TOKENS] [OVERRIDES] [--json] [--only IDS] [--fix OUT] [--rules]

Why this model fails beyond its trained length, what of it is mis-set, and what to try. It reads the files, looks into
the built model, and runs it; each finding comes with what was measured, its cause and its fix.
  ropewalk doctor model=smollm2 target=32768
  ropewalk doctor model=~/models/Llama-3.1-8B --only static      # files alone, no weights: a second
  ropewalk doctor model=~/models/mine --only S06,N01             # some rules, or stages
  ropewalk doctor model=~/models/mine --fix ~/models/mended      # a folder with what can be corrected mechanically
  ropewalk doctor --rules                                        # all that it looks for

Overrides as for grid: dtype=..., cluster=cpu, task.text=FILE, strategy=... (what you mean to put on it).
Exit codes: 0 no error found, 1 an error found, 2 refused.
"""


@dataclass(frozen=True)
class Asked:
    """What the command line wants besides the model.

    only: ids and stages, () for all. fix: folder for the corrected config.
    """

    target: int | None = None
    only: tuple[str, ...] = ()
    as_json: bool = False
    fix: Path | None = None


def asked_of(arguments: Sequence[str]) -> tuple[Asked, list[str]]:
    """Flags and target of a command line, and the overrides that are left.

    Raises:
        Refusal: an unknown flag, rule or stage, or a target that is no length.
    """
    target, only, fixed, as_json = None, list[str](), None, False
    left: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag in ("--only", "--fix") and not equals:
            if not rest or rest[0].startswith("-"):
                raise Refusal(
                    f"{flag}: give {'rules or stages, such as --only S06,N01' if flag == '--only' else 'OUT'}"
                )
            value = rest.pop(0)
        if flag == "--only":
            only += [_rule(name) for name in value.split(",") if name]
        elif flag == "--fix":
            fixed = Path(value).expanduser()
        elif word == "--json":
            as_json = True
        elif flag == "target":
            if not value.isdigit() or int(value) < 2:
                raise Refusal(f"target={value}: give a whole number of tokens, at least 2")
            target = int(value)
        elif word.startswith("-"):
            raise Refusal(f"ropewalk doctor has no flag {word}; --json, --only IDS, --fix OUT, --rules")
        else:
            left.append(word)
    return Asked(target, tuple(only), as_json, fixed), left


def _rule(name: str) -> str:
    known = [*STAGES, *RULES]
    found = {one.lower(): one for one in known}.get(name.lower())
    if found is None:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise Refusal(f"--only {name}: no such rule or stage; {hint}`ropewalk doctor --rules` lists them")
    return found


def main(choice: Workbench, asked: Asked) -> int:
    """Examine a model as asked, and tell.

    Raises:
        Refusal: the model is not there.
    """
    told = _console()
    model = model_of(choice.model)
    looked_at = files.of(
        model, target=asked.target, strategy=str(choice.strategy["name"]), task=str(choice.task["name"])
    )
    verdict = rules.judge("static", looked_at, asked.only)
    if asked.fix is not None:
        made = fix.write(looked_at, model, verdict.findings, asked.fix)
    if asked.as_json:
        print(show.as_json({"model": model.name, "target": asked.target}, verdict))
    else:
        show.findings(told, verdict)
        if asked.fix is not None:
            told.print(f"corrected: {', '.join(map(str, made))}")
    return exit_code(verdict)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def exit_code(verdict: Verdict) -> int:
    return 1 if verdict.worst == "error" else 0


def list_rules() -> None:
    """Every rule, by stage."""
    show.rules(_console())
