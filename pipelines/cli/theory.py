"""`ropewalk theory`: its command line."""

from __future__ import annotations

from pipelines.cli import arguments
from pipelines.cli.arguments import Options, Verbs
from pipelines.cli.meanings import Key

DESCRIPTION = """
What each plan does, from the model's config alone: wavelengths, turns within the trained length, the stretch of every
pair, out-of-distribution angles, how far the long-range sum stays positive, precision; in tables and a figure.
  ropewalk theory strategy=none,linear,yarn length=2048
  ropewalk theory model=smollm2 strategy=yarn strategy.beta_fast=16,32 length=32768
  ropewalk theory strategy=per_layer 'strategy.layers={0-3: 2}' length=2048
"""


def add(verbs: Verbs) -> None:
    parser = arguments.add_verb(
        verbs,
        "theory",
        "analyse plans without a model: wavelengths, stretch, out-of-distribution angles",
        DESCRIPTION,
        run,
        usage="[OPTIONS] [KEY=VALUE[,VALUE...] ...]",
        keys=[Key("out", "folder", "null", "of the figure; null: theory/ in the store")],
        details=arguments.override_details,
        composed=True,
    )
    parser.add_argument("--json", action="store_true", help="print every number in place of tables")


def run(options: Options) -> int:
    own, words = arguments.own_keys(options)
    overrides = arguments.overrides(options, words)
    from pipelines.choices.compose import expand
    from pipelines.cli import outlooks

    return outlooks.main(expand(overrides), as_json=options.json, out=own.get("out"))
