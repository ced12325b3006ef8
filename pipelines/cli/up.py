"""`ropewalk up`: its command line."""

from __future__ import annotations

from pipelines.cli import arguments
from pipelines.cli.arguments import Options, Verbs
from pipelines.cli.meanings import Key

HOURS = Key("hours", "number", "4", "without a command after which the workers end by themselves")

DESCRIPTION = """
Keeps workers with their model loaded between commands: the next grids find them by themselves, say so, and have their
first cell within seconds. Give the cluster and the model of those grids. `ropewalk down` ends them; without a command
they end after some hours.
  ropewalk up model=smollm2 cluster=gpu
"""


def add(verbs: Verbs) -> None:
    arguments.add_verb(
        verbs,
        "up",
        "keep workers with a loaded model for the next grids",
        DESCRIPTION,
        run,
        usage="[hours=HOURS] [model=MODEL] [cluster=CLUSTER] [dtype=DTYPE]",
        keys=[HOURS],
        composed=True,
    )


def run(options: Options) -> int:
    from pipelines.grid import standby

    own, words = arguments.own_keys(options)
    print(standby.up(arguments.overrides(options, words), own.get("hours", HOURS.default)))
    return 0
