"""`ropewalk VERB`: one parser for all verbs. Importing it loads nothing heavy; a verb's `run` does."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import shlex
import signal
import sys
from pathlib import Path

from pipelines.cli import (
    arguments,
    bench,
    compare,
    doctor,
    down,
    export,
    gate,
    grid,
    plan,
    report,
    reproduce,
    results,
    sync,
    tasks,
    theory,
    train,
    tune,
    ui,
    up,
)
from pipelines.models import light
from pipelines.records.places import SITE
from pipelines.records.public import public
from pipelines.records.refusal import LaunchEnded, Refusal, suggestion

VERBS = {
    "grid": grid,
    "plan": plan,
    "tasks": tasks,
    "theory": theory,
    "doctor": doctor,
    "tune": tune,
    "reproduce": reproduce,
    "compare": compare,
    "gate": gate,
    "results": results,
    "export": export,
    "train": train,
    "bench": bench,
    "report": report,
    "ui": ui,
    "sync": sync,
    "up": up,
    "down": down,
}

RESUMED = frozenset({"grid", "tune", "reproduce", "sync", "train"})
"""Verbs that continue where they were stopped when the same command is given again."""

SHELLS = ("bash", "zsh", "fish")

HELP = """ropewalk: which RoPE scaling keeps a model useful beyond its trained length, by how much, and what to deploy

{verbs}

  ropewalk VERB --help                 the options of a verb, with their defaults
  ropewalk --version                   the version
  ropewalk --shell-completion SHELL    completion for bash, zsh or fish: eval "$(ropewalk --shell-completion bash)"

Choices are KEY=VALUE; commas make combinations:
  ropewalk grid                                          a first grid: under two minutes on two cores
  ropewalk grid model=smollm2 strategy=none,linear,dynamic_ntk,yarn length=8192,16384 task=perplexity limit=1
  ropewalk grid model=~/models/Llama-3-8B strategy=yarn factor=2,4 length=16384 task=perplexity,passkey cluster=gpu
  ropewalk grid strategy=none,yarn yarn.beta_fast=16,32 length=16384

Exit codes: 0 success, 1 some cells failed (doctor: an error found) or a fault of ropewalk's own, with what to report,
2 refused, with a sentence that says why.
"""


def main() -> None:
    """The console script: run a verb and leave with its exit code."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser(), always_complete_options=False)
    light.own()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names may hold what is no UTF-8
    _end_on_signals()
    code = run(sys.argv[1:])
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking torch, transformers and mlflow apart object by object would cost seconds, and nothing comes after.
    os._exit(code)


def run(words: list[str]) -> int:
    """One command line; returns the exit code."""
    _check_rope()
    try:
        return _run(words)
    except Refusal as reason:
        return _refuse(str(reason))
    except LaunchEnded as reason:
        _refuse(str(reason))
        return 1
    except BrokenPipeError:  # as of `ropewalk plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from pipelines.cli import bug_report

        print(bug_report.of(error, words), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        command = shlex.join(["ropewalk", *words])
        again = f"; finished results are on disk, and the same command continues:\n  {command}"
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"\nstopped{again if words[0] in RESUMED else ''}", file=sys.stderr)
        return 130


def _end_on_signals() -> None:
    """Ctrl-C, SIGTERM and SIGHUP end the command, cleaning up; another one ends it at once, whatever still waits.

    While cells run, workers/signals.py takes their place.
    """
    seen = list[int]()

    def handle(number: int, frame: object) -> None:
        if seen:
            os._exit(130)
        seen.append(number)
        raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handle)


def parser() -> arguments.Parser:
    """The parser of all verbs."""
    top = arguments.Parser(prog="ropewalk", add_help=False, allow_abbrev=False)
    top.add_argument("-h", "--help", action="store_true")
    top.add_argument("--version", action="store_true")
    top.add_argument("--shell-completion", choices=SHELLS)
    verbs = top.add_subparsers(dest="verb", parser_class=arguments.Parser)
    for module in VERBS.values():
        module.add(verbs)
    return top


def _run(words: list[str]) -> int:
    verb = words[0] if words else "--help"
    if not verb.startswith("-") and verb not in VERBS:
        if verb == "help":
            return _run([*words[1:], "--help"])
        hint = suggestion(verb, VERBS)
        return _refuse(f"there is no command {verb!r}; {hint}there are {', '.join(VERBS)} (ropewalk --help)")
    if "--version" in words:
        from pipelines.records.provenance import version

        print(f"ropewalk {version()}")
        return 0
    options, extra = parser().parse_known_args(words)
    if options.shell_completion:
        from argcomplete.shell_integration import shellcode

        print(shellcode(["ropewalk"], shell=options.shell_completion))
        return 0
    if options.verb is None:
        if extra:
            return _refuse(f"ropewalk has no option {extra[0]}; see ropewalk --help")
        print(_help(), end="")
        return 0
    for word in extra:
        if word.startswith("-"):
            arguments.refuse_option(options, word)
    options.words += extra  # those after an option, which argparse does not give to a positional
    options.command = public(shlex.join(["ropewalk", *words]))
    if options.help:
        print(arguments.help_text(options), end="")
        return 0
    code: int = options.run(options)
    return code


def _help() -> str:
    [verbs] = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    lines = [f"  ropewalk {action.dest:10} {action.help}" for action in verbs._choices_actions]
    return HELP.format(verbs="\n".join(lines))


def _refuse(reason: str) -> int:
    # What no terminal can write, such as half of a surrogate pair, is shown by its number.
    print(f"ropewalk: {reason}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    return 2


def _check_rope() -> None:
    """PyPI has another package called rope, a refactoring library: say so where Python finds that one."""
    from importlib.util import find_spec

    spec = find_spec("rope")
    ours = SITE / "rope" / "__init__.py"
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != ours:
        origin = spec.origin if spec else "nothing"
        sys.exit(
            _refuse(f"the package `rope` here is {origin}, not ours ({ours}): uninstall the other, or run from a clone")
        )


if __name__ == "__main__":
    main()
