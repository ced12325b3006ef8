"""`ropewalk bench`: its command line."""

from __future__ import annotations

from pipelines.cli import arguments
from pipelines.cli.arguments import Options, Verbs
from pipelines.cli.meanings import Key
from pipelines.records.refusal import Refusal, suggestion

PARTS = ("grid", "warm", "start", "plan", "scorer", "stock")

DESCRIPTION = """
How fast ropewalk is here, in tables, JSON and a run of MLflow's experiment bench. Its parts:
  grid     wall over the sum of its cells, and where the time goes, process by process
  warm     the same on workers that `ropewalk up` keeps
  start    seconds of --help, plan, and a grid that is finished
  plan     seconds to plan and to record many cells
  scorer   our scorer beside lm-eval's as it comes: seconds, peak memory, longest length; share of the device's ceilings
  stock    the same cells by transformers, lm-eval and MLflow as they come, by Hydra's Ray launcher if it is installed,
           as many as its time allows
  ropewalk bench
  ropewalk bench parts=scorer model=smollm2 length=8192,32768
  ropewalk bench parts=plan cells=100,1000,10000
Other overrides are those of the grid that is measured. It computes in a store of its own, which goes when it ends.
Exit codes: 0 all parts were measured, 1 one was not, and says why, 2 refused.
"""


def add(verbs: Verbs) -> None:
    parser = arguments.add_verb(
        verbs,
        "bench",
        "how fast ropewalk is here: scorer, grid, start, plans, beside stock parts",
        DESCRIPTION,
        run,
        usage="[OPTIONS] [KEY=VALUE ...]",
        keys=[
            Key("parts", "list", "null", f"of {', '.join(PARTS)}; null: all"),
            Key("cells", "list", "100,1000", "how many cells are planned and recorded"),
            Key("seconds", "int", "295", "seconds that the parts may take; each has a share, and ends when it is over"),
        ],
        composed=True,
    )
    parser.add_argument("--json", action="store_true", help="print all that was measured as JSON at the end")


def run(options: Options) -> int:
    own, words = arguments.own_keys(options)
    parts = own["parts"].split(",") if own.get("parts", "null") != "null" else list(PARTS)
    for name in parts:
        if name not in PARTS:
            raise Refusal(f"parts={name}: {suggestion(name, PARTS)}there are {', '.join(PARTS)}")
    cells = [arguments.whole("cells", value, 1, "cells") for value in own.get("cells", "100,1000").split(",")]
    seconds = arguments.whole("seconds", own.get("seconds", "295"), 1, "seconds")
    overrides = arguments.overrides(options, words)
    from pipelines.bench import bench

    return bench.main(bench.asked(overrides, cells, seconds), parts, as_json=options.json, command=options.command)
