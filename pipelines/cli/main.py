"""`ropewalk VERB [Hydra overrides]`: finds the verb; imports nothing heavy before the verb needs it."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.records.places import SITE

if TYPE_CHECKING:
    from pipelines.choices.config import Workbench

HELP = """ropewalk: which RoPE scaling keeps a model useful beyond its trained length, by how much, and what to deploy

  ropewalk grid [OVERRIDES]     measure: every combination of strategy x length x task, in a table and in MLflow
  ropewalk doctor model=...     diagnose: why a model fails beyond its trained length, what is mis-set, what to try
  ropewalk theory [OVERRIDES]   foresee: wavelengths, stretch and unseen angles of every plan, in tables and a figure
  ropewalk tune [OVERRIDES]     search: a strategy's options for a model and a length, and judge them (tune --help)
  ropewalk plan [OVERRIDES]     before: the same grid, not run: cells done, to do and invalid, time, memory (--json)
  ropewalk reproduce published=NAME    check: a published table's protocol, ours beside theirs (reproduce --list)
  ropewalk export CELL --to ENGINE   deploy: a cell in the words of transformers, vLLM, SGLang, llama.cpp, ExLlamaV2
  ropewalk ui [PORT]            look: the MLflow UI on the results
  ropewalk sync                 rebuild MLflow from the results on disk
  ropewalk train [KEY=VALUE]    train a tiny Llama, or extend a checkpoint to longer contexts (train --help)

Overrides are Hydra's. Commas make the grid:
  ropewalk grid                                          a first grid: under two minutes on two cores
  ropewalk grid model=smollm2 strategy=none,linear,dynamic_ntk,yarn length=8192,16384 task=perplexity limit=1
  ropewalk grid model=~/models/Llama-3-8B strategy=yarn factor=2,4 length=16384 task=perplexity,passkey cluster=gpu
  ropewalk grid strategy=yarn strategy.beta_fast=16,32 length=16384

A model is a name from conf/model, a folder, a GGUF file or a hub id; a task a name from conf/task or any of lm-eval's.
  ropewalk grid --help          every group and option
  ropewalk grid --cfg job       the composed config, not run
Exit codes: 0 all cells ok, 1 some failed, 2 refused before running.
"""


def main() -> None:
    """The console script: run a verb and leave with its exit code."""
    code = run(sys.argv[1:])
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking torch, transformers and mlflow apart object by object would cost seconds, and nothing comes after.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """One command line; returns the exit code."""
    _own_rope()
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if verb not in VERBS:
        return _refuse(f"there is no command {verb!r}; there are {', '.join(VERBS)} (ropewalk --help)")
    from pipelines.records.cells import Refusal

    try:
        return VERBS[verb](rest)
    except Refusal as reason:
        return _refuse(str(reason))
    except KeyboardInterrupt:
        again = "; what was finished is kept, and this goes on from there:\n  " + shlex.join(["ropewalk", *arguments])
        print(f"\nstopped{again if verb in RESUMED else ''}", file=sys.stderr)
        return 130


def _grid(arguments: list[str]) -> int:
    from pipelines.grid import launcher

    rows = launcher.run_grid(arguments, command=shlex.join(["ropewalk", "grid", *arguments]))
    return 0 if all(result.finished for _, result in rows) else 1


def _plan(arguments: list[str]) -> int:
    from pipelines.grid import launcher, preview
    from pipelines.report.terminal import console

    planned = launcher.preview([argument for argument in arguments if argument != "--json"])
    if "--json" in arguments:
        print(preview.as_json(planned))
    else:
        preview.show(console, planned)
    return 2 if planned.invalid else 0


def _theory(arguments: list[str]) -> int:
    from pipelines.cli import theory

    if any(argument in ("-h", "--help") for argument in arguments):
        print(theory.HELP, end="")
        return 0
    flags = [a for a in arguments if a.startswith("-")]
    outs = [a.partition("=")[2] for a in arguments if a.startswith("out=")]
    if set(flags) - {"--json"} or len(outs) > 1:
        return _refuse(f"ropewalk theory takes overrides, --json and one out=FOLDER; given: {' '.join(arguments)}")
    choices = _choices([a for a in arguments if a not in flags and not a.startswith("out=")])
    return theory.main(choices, as_json="--json" in flags, out=outs[0] if outs else None)


def _export(arguments: list[str]) -> int:
    from pipelines.cli import export

    if any(argument in ("-h", "--help") for argument in arguments):
        print(export.HELP, end="")
        return 0
    asked = export.parse(arguments)
    return export.main(asked, _choices(list(asked.overrides)) if asked.overrides else [])


def _choices(overrides: list[str]) -> list[Workbench]:
    from pipelines.choices.compose import expand

    return expand(overrides)


def _doctor(arguments: list[str]) -> int:
    from pipelines.doctor import doctor

    if any(argument in ("-h", "--help") for argument in arguments):
        print(doctor.HELP, end="")
        return 0
    if "--rules" in arguments:
        doctor.list_rules()
        return 0
    asked, overrides = doctor.asked_of(arguments)
    choices = _choices([*overrides, "length=2"])  # a length is a grid's, and has no default
    if len(choices) != 1:
        return _refuse("ropewalk doctor examines one model; give one value each, without commas")
    return doctor.main(choices[0], asked)


def _reproduce(arguments: list[str]) -> int:
    from pipelines.report.terminal import console
    from pipelines.reproduce import needs, reproduce, transfer

    if any(argument in ("-h", "--help") for argument in arguments) or not arguments:
        print(reproduce.HELP, end="")
        return 0
    if arguments == ["--list"]:
        needs.show(console)
        return 0
    tables, own, rest = reproduce.parsed(arguments)
    [base, *others] = _choices([*rest, "length=2"])
    if others:
        return _refuse("ropewalk reproduce takes one value each, but of published, rows and columns; no other commas")
    command, given = shlex.join(["ropewalk", "reproduce", *arguments]), reproduce.task_options(rest, base)
    if own.pop("transfer"):
        return transfer.main(tables, base, given, command)
    return reproduce.main(tables, base, {**own, "task": given}, command)


def _tune(arguments: list[str]) -> int:
    from pipelines.tune import tune

    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(tune.HELP, end="")
        return 0
    if flags := [a for a in arguments if a.startswith("-")]:
        return _refuse(f"ropewalk tune takes overrides, ranges and tune.SETTING=VALUE; given: {' '.join(flags)}")
    asked = tune.TuneRequest.of(arguments)
    return tune.main(_choices(list(asked.overrides)), asked, shlex.join(["ropewalk", "tune", *arguments]))


def _ui(arguments: list[str]) -> int:
    from pipelines.cli import ui

    return ui.main(arguments)


def _sync(arguments: list[str]) -> int:
    from pipelines.cli import sync

    return sync.main(arguments)


def _train(arguments: list[str]) -> int:
    from pipelines.train import train

    return train.main(arguments)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "grid": _grid, "plan": _plan, "theory": _theory, "tune": _tune, "doctor": _doctor, "export": _export,
    "reproduce": _reproduce, "ui": _ui, "sync": _sync, "train": _train,
}  # fmt: skip

RESUMED = frozenset({"grid", "tune", "reproduce", "sync", "train"})
"""Verbs that, asked for again, go on from where they were stopped."""


def _refuse(reason: str) -> int:
    print(f"ropewalk: {reason}", file=sys.stderr)
    return 2


def _own_rope() -> None:
    """PyPI has another package called rope, a refactoring library: say so where Python finds that one."""
    from importlib.util import find_spec

    spec = find_spec("rope")
    ours = SITE / "rope" / "__init__.py"
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != ours:
        found = spec.origin if spec else "nothing"
        sys.exit(
            _refuse(f"the package `rope` here is {found}, not ours ({ours}): uninstall the other, or run from a clone")
        )


if __name__ == "__main__":
    main()
