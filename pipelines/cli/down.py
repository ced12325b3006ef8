"""`ropewalk down`: its command line."""

from __future__ import annotations

from pipelines.cli import arguments
from pipelines.cli.arguments import Options, Verbs

DESCRIPTION = """
Ends the workers that `ropewalk up` keeps. A command that uses them goes on without them.
"""


def add(verbs: Verbs) -> None:
    arguments.add_verb(verbs, "down", "end the workers that `ropewalk up` keeps", DESCRIPTION, run, usage="")


def run(options: Options) -> int:
    arguments.only_keys(options)
    from pipelines.workers import warm

    print(warm.down())
    return 0
