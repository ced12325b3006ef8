"""`ropewalk plan`: its command line."""

from __future__ import annotations

from pipelines.cli import arguments
from pipelines.cli.arguments import Options, Verbs
from pipelines.cli.grid import add_inspection, inspected

DESCRIPTION = """
A dry run of a grid: which cells are finished, to run or invalid (each with its reason), how many forwards they take,
their time (from earlier cells of the model, else a guess), peak memory, and the largest length that fits here. It loads
no model and writes nothing. Exit code 2 if a cell is invalid.
  ropewalk plan model=smollm2 strategy=none,yarn length=8192,16384
"""


def add(verbs: Verbs) -> None:
    parser = arguments.add_verb(
        verbs,
        "plan",
        "dry run of a grid: cells finished, to run and invalid, time and memory",
        DESCRIPTION,
        run,
        usage="[OPTIONS] [KEY=VALUE[,VALUE...] ...]",
        details=arguments.override_details,
        composed=True,
    )
    parser.add_argument("--json", action="store_true", help="print it for machines")
    add_inspection(parser)


def run(options: Options) -> int:
    if inspected(options):
        return 0
    from pipelines.grid import launcher, preview
    from pipelines.report.terminal import console

    result = launcher.preview(arguments.overrides(options))
    if options.json:
        print(preview.as_json(result))
    else:
        preview.show(console, result)
    return 2 if result.invalid else 0
