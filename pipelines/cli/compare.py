"""`ropewalk compare`: its command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipelines.cli import arguments, meanings
from pipelines.cli.arguments import STORE, Options, Verbs
from pipelines.cli.meanings import Key
from pipelines.records.refusal import Refusal

if TYPE_CHECKING:
    from pipelines.report.compare import Comparison

DESCRIPTION = """
Compares two sides cell by cell over the same documents: by how much B differs from A, in % of perplexity or points of a
score, with 95 % intervals and p values, by length and by position; and all in which their configs differ.
A and B are each a sweep or a cell (the beginning of its id, or `latest`), a result.json, or another store. Or give an
axis, along which every value is compared with the first one:
  ropewalk compare 2026-11-26T09 2026-11-26T11
  ropewalk compare axis=dtype model=smollm2 --margin 1%
  ropewalk compare axis=model baseline=SmolLM2-F32 strategy=yarn
  ropewalk compare mlruns ~/old/mlruns --json
An axis is any choice of a cell (dtype, model, model.revision, strategy, strategy.OPTION, task.text, seed, ...) or of
its place (attention, torch, transformers, device). Over other texts means are compared, unpaired; other documents else
are refused. Exit codes: 0; with --margin 1 where equivalence was not shown.
"""


def add(verbs: Verbs) -> None:
    parser = arguments.add_verb(
        verbs,
        "compare",
        "compare two sweeps, cells or stores, or values of an axis such as dtype",
        DESCRIPTION,
        run,
        usage="A B|axis=NAME [SWEEP ...] [OPTIONS] [FILTER=VALUE[,VALUE...] ...]",
        keys=[
            Key("axis", "name", "null", "what is compared where one side is given, or none"),
            Key("baseline", "value", "null", "of the axis; null: the one that was measured first"),
            *meanings.filters(),
            STORE,
        ],
    )
    margin = "also test that they differ by less than this (two one-sided tests): a share of perplexity, or points"
    parser.add_argument("--margin", metavar="PERCENT", help=margin)
    parser.add_argument("--json", action="store_true", help="print every number in place of tables")


def run(options: Options) -> int:
    own, words = arguments.own_keys(options)
    for word in words:
        if "=" in word:
            arguments.refuse_word(options, word)
    if not options.words:
        print(arguments.help_text(options), end="")
        return 0
    from pipelines.records.results import Store
    from pipelines.report import compare, stored

    margin = None if options.margin is None else compare.margin_read(options.margin)
    store = Store.at(own.get("store"))
    filters = {key: own[key] for key in stored.FILTERS if key in own}

    def rows(word: str) -> list[Any]:
        return stored.filtered(stored.selected(word, store), filters)

    if (axis := own.get("axis")) is not None:
        found = [row for word in words for row in rows(word)]
        found = found if words else stored.filtered(stored.rows_of(store), filters)
        comparisons = compare.along(found, axis, own.get("baseline"), margin)
    elif len(words) == 2:
        comparisons = [compare.sides(rows(words[0]), rows(words[1]), (words[0], words[1]), margin)]
    else:
        given = " ".join(words) or "nothing"
        raise Refusal(f"{given}: give two sides, A B, or axis=NAME, such as axis=dtype (ropewalk compare --help)")
    _print(comparisons, as_json=options.json)
    return int(margin is not None and not all(one.equivalent for one in comparisons))


def _print(comparisons: list[Comparison], *, as_json: bool) -> None:
    from pipelines.report import compare, compare_table
    from pipelines.report.terminal import console

    if as_json:
        print(json.dumps([compare.as_data(one) for one in comparisons], indent=1))
        return
    for number, one in enumerate(comparisons):
        if number:
            console.print()
        compare_table.show(console, one)
