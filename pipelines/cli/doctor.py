"""`ropewalk doctor`: its command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.cli import arguments
from pipelines.cli.arguments import Options, Verbs
from pipelines.cli.meanings import Key
from pipelines.records.refusal import Refusal, suggestion

DESCRIPTION = """
Why a model fails beyond its trained length, what in it is set wrongly, and what to try. It reads the files, inspects
the built model, and runs it; each finding comes with the measurement, its cause and its fix.
  ropewalk doctor model=smollm2 target=32768
  ropewalk doctor model=~/models/Llama-3.1-8B --only static      # files alone, no weights: a second
  ropewalk doctor model=~/models/mine --fix ~/models/corrected   # a folder with what can be corrected mechanically
Other overrides are those of a grid: dtype=..., cluster=cpu, task.text=FILE, strategy=... (the one you mean to use).
Exit codes: 0 no error found, 1 an error found, 2 refused.
"""


def add(verbs: Verbs) -> None:
    parser = arguments.add_verb(
        verbs,
        "doctor",
        "diagnose why a model fails beyond its trained length, and what to try",
        DESCRIPTION,
        run,
        usage="model=MODEL [OPTIONS] [KEY=VALUE ...]",
        keys=[
            Key("target", "int", "null", "tokens that you want; null: 4 times the trained length"),
            Key("budget", "int", "600", "seconds that reading long documents may take"),
        ],
        composed=True,
    )
    parser.add_argument("--json", action="store_true", help="print the report for machines")
    parser.add_argument(
        "--only", action="append", default=[], metavar="IDS", help="only these rules or stages, such as S06,N01"
    )
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write a corrected config to this folder")
    parser.add_argument("--rules", action="store_true", help="list everything it checks, with sources")


def run(options: Options) -> int:
    own, words = arguments.own_keys(options)
    overrides = arguments.overrides(options, words)
    from pipelines.doctor import doctor

    if options.rules:
        doctor.list_rules()
        return 0
    from pipelines.choices.compose import expand

    examine = doctor.ExamineOptions(
        target=arguments.whole("target", own["target"], 2, "tokens") if "target" in own else None,
        only=_rules(options.only),
        as_json=options.json,
        fix=options.fix.expanduser() if options.fix else None,
        **({"budget": arguments.whole("budget", own["budget"], 1, "seconds")} if "budget" in own else {}),
    )
    choices = expand([*overrides, "length=2"])  # a length is a grid's, and has no default
    if len(choices) != 1:
        raise Refusal("ropewalk doctor examines one model; give one value each, without commas")
    return doctor.main(choices[0], examine)


def _rules(given: Sequence[str]) -> tuple[str, ...]:
    """The rules and stages named, as they are written.

    Raises:
        Refusal: one is not known.
    """
    from pipelines.doctor.rules import RULES, STAGES

    known = {name.lower(): name for name in (*STAGES, *RULES)}
    names = [name for part in given for name in part.split(",") if name]
    for name in names:
        if name.lower() not in known:
            hint = suggestion(name, known.values())
            raise Refusal(f"--only {name}: no such rule or stage; {hint}`ropewalk doctor --rules` lists them")
    return tuple(known[name.lower()] for name in names)
