"""`ropewalk grid`: its command line."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from pipelines.cli import arguments
from pipelines.cli.arguments import Options, Parser, Verbs
from pipelines.models import light
from pipelines.records.privacy import without_secrets
from pipelines.records.refusal import Refusal, first_line

DESCRIPTION = """
Measures every combination of the values given, shows a table with what is not chance, and records all in MLflow.
Finished cells are only read, failed ones tried again. Without any override it runs a first grid (experiment=first).
A terminal shows how far each running cell is. With --json or --json-lines what people read goes to stderr.
  ropewalk grid model=smollm2 strategy=none,yarn length=8192,16384 task=perplexity limit=1
  ropewalk grid strategy=none,yarn yarn.beta_fast=16,32 length=2048 limit=8
  ropewalk grid model=smollm2 task=niah_single_1 length=4096,10240 strategy=none,yarn limit=4
"""


def add(verbs: Verbs) -> None:
    parser = arguments.add_verb(
        verbs,
        "grid",
        "measure every combination of strategy x length x task, in a table and in MLflow",
        DESCRIPTION,
        run,
        usage="[OPTIONS] [KEY=VALUE[,VALUE...] ...]",
        details=arguments.override_details,
        composed=True,
    )
    parser.add_argument("--json", action="store_true", help="print the cells with their numbers as JSON at the end")
    lines = "print a line of JSON for the start, for progress, for every finished cell, and for the end"
    parser.add_argument("--json-lines", action="store_true", help=lines)
    parser.add_argument("--quiet", "-q", action="store_true", help="say nothing: the exit code tells how it ended")
    add_inspection(parser)


def add_inspection(parser: Parser) -> None:
    """The options that show what Hydra composes, in place of running it."""
    kinds = ("job", "hydra", "all")
    parser.add_argument("--cfg", "-c", choices=kinds, metavar="job|hydra|all", help="only show the composed config")
    parser.add_argument("--package", "-p", metavar="KEY", help="of --cfg: only this part, such as strategy")
    parser.add_argument("--resolve", action="store_true", help="of --cfg: with interpolations resolved")
    topics = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    about = f"show what Hydra knows: {', '.join(topics)}"
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=topics, metavar="TOPIC", help=about)
    parser.add_argument("--hydra-help", action="store_true", help="show Hydra's own groups, such as hydra/launcher")


def inspected(options: Options) -> bool:
    """Show what one of these options asks for; False where none is given.

    Raises:
        Refusal: --package or --resolve without the --cfg that they say how to show.
    """
    if (options.resolve or options.package) and not options.cfg:
        raise Refusal(f"{'--resolve' if options.resolve else '--package'} says how --cfg shows: give --cfg job too")
    if not (options.cfg or options.info or options.hydra_help):
        return False
    from pipelines.choices import compose
    from pipelines.grid.request import with_default

    overrides = with_default(arguments.overrides(options))
    shown = io.StringIO()
    with compose.hydra(overrides) as (hydra, located), redirect_stdout(shown), redirect_stderr(shown):
        try:
            if options.cfg:
                hydra.show_cfg("config", located, options.cfg, options.package, options.resolve)
            elif options.info:
                hydra.show_info(options.info, "config", located)
            else:
                hydra.hydra_help("config", options.parser, Options(overrides=[]))
        except SystemExit as end:  # as Hydra ends over a --package that is not there
            raise Refusal(first_line(ValueError(shown.getvalue()))) from end
    print(without_secrets(shown.getvalue()), end="")
    return True


def run(options: Options) -> int:
    if inspected(options):
        return 0
    with light.uncollected():
        from pipelines.grid.launcher import run_grid
        from pipelines.report import progress, terminal

    for_machines, told = options.json or options.json_lines, dict[str, Any]()

    def events(event: Mapping[str, Any]) -> None:
        if event["event"] == "start":
            told.update(sweep=event["sweep"], store=event["store"])
        if options.json_lines:
            print(json.dumps(event), flush=True)

    rows = run_grid(
        arguments.overrides(options),
        command=options.command,
        quiet=options.quiet,
        events=events if for_machines else None,
        console=terminal.aside() if for_machines else None,
    )
    complete = all(result.finished for _, result in rows)
    if for_machines:
        end = {**told, "command": options.command, "complete": complete}
        end |= {"cells": [progress.plain(cell, result) for cell, result in rows]}
        print(
            json.dumps({"event": "end", **end} if options.json_lines else end, indent=None if options.json_lines else 1)
        )
    return 0 if complete else 1
