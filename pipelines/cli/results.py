"""`ropewalk results`: its command line."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli import arguments, meanings
from pipelines.cli.arguments import STORE, Options, Verbs
from pipelines.records.refusal import Refusal

if TYPE_CHECKING:
    from pipelines.records.removal import Removable
    from pipelines.records.results import Store

DESCRIPTION = """
What was measured: without a word the sweeps of the store, with `cells` its cells (of the sweeps named, or all), with
filters those that they leave.
  ropewalk results
  ropewalk results cells latest
  ropewalk results cells model=smollm2 strategy=none,yarn length=16384 --csv > cells.csv
  ropewalk results cells status=failed,oom --json
  ropewalk results cells --parquet cells.parquet
`methods` puts every strategy of a model and task on one line: context gain, effective length, perplexity of key tokens
(of task.evaluator=...) and cost at the trained length.
  ropewalk results methods latest --markdown
`rm` takes away sweeps (with those of their cells that no other sweep or search names) or cells, by the beginning of
their ids or by filters; `clean` what nothing names: damaged and temporary files, folders without a result, orphaned
cells. Both say first what goes and its size on disk, and ask unless --yes. `ropewalk sync` takes removed sweeps out of
MLflow too.
  ropewalk results rm 2026-11-26T0911 3f9c02ab
  ropewalk results rm status=failed --yes
  ropewalk results clean
"""

ACTIONS = ("sweeps", "cells", "methods", "rm", "clean")


def add(verbs: Verbs) -> None:
    parser = arguments.add_verb(
        verbs,
        "results",
        "list sweeps and cells as a table, JSON, CSV or Parquet; remove them",
        DESCRIPTION,
        run,
        usage="[sweeps|cells|methods|rm|clean] [SWEEP|CELL ...] [OPTIONS] [FILTER=VALUE[,VALUE...] ...]",
        keys=[*meanings.filters(), STORE],
    )
    parser.add_argument("--json", action="store_true", help="print it for machines: a record a sweep or cell")
    parser.add_argument("--csv", action="store_true", help="print it as CSV")
    parser.add_argument("--parquet", metavar="FILE", help="write it to a Parquet file")
    parser.add_argument("--markdown", action="store_true", help="of methods: print it as Markdown")
    parser.add_argument("--yes", action="store_true", help="of rm and clean: do not ask")


def run(options: Options) -> int:
    own, words = arguments.own_keys(options)
    for word in words:
        if "=" in word:
            arguments.refuse_word(options, word)
    action, names = (words[0], words[1:]) if words and words[0] in ACTIONS else ("sweeps", words)
    if action == "sweeps" and names:
        raise Refusal(f"{names[0]}: give {', '.join(ACTIONS)}, or nothing; cells of a sweep: results cells {names[0]}")
    if sum(map(bool, (options.json, options.csv, options.parquet, options.markdown))) > 1:
        raise Refusal("give one of --json, --csv, --parquet and --markdown")
    if options.markdown and action != "methods":
        raise Refusal("--markdown is of results methods: give --csv or --json")
    from pipelines.records.results import Store
    from pipelines.report import stored

    store = Store.at(own.get("store"))
    if not store.root.is_dir():
        raise Refusal(f"there is no folder {store.root}; start with `ropewalk grid`, or give store=FOLDER")
    filters = {key: own[key] for key in stored.FILTERS if key in own}
    if action in ("rm", "clean"):
        return _remove(store, _going(store, action, names, filters), yes=options.yes)
    if action == "sweeps":
        _list_sweeps(options, store, filters)
    else:
        found = [row for name in names for row in stored.selected(name, store)] if names else stored.rows_of(store)
        listed = _list_methods if action == "methods" else _list_cells
        listed(options, stored.filtered(found, filters))
    return 0


def _list_sweeps(options: Options, store: Store, filters: dict[str, str]) -> None:
    from pipelines.records.numbers import memory
    from pipelines.report import listing
    from pipelines.report.terminal import console

    records = listing.sweeps(store, filters)
    if not _written(options, records, listing.sweeps_frame(records) if options.csv or options.parquet else None):
        listing.show_sweeps(console, records)
        console.print(
            f"{len(records)} sweep{'s'[: len(records) != 1]} in {store.root}, {memory(listing.size_of(store))} on disk"
        )


def _list_cells(options: Options, rows: Sequence[Any]) -> None:
    from pipelines.report import listing
    from pipelines.report.terminal import console

    records = [
        {**cell.spec(), "label": cell.label, "status": result.status, "metrics": result.metrics, "cost": result.cost}
        | {"error": result.error_line or None, "digest": result.digest, "provenance": result.provenance}
        for cell, result in rows
    ]
    if not _written(options, records, listing.cells_frame(rows) if options.csv or options.parquet else None):
        listing.show_cells(console, rows)
        console.print(f"{len(rows)} cell{'s'[: len(rows) != 1]}")


def _list_methods(options: Options, rows: Sequence[Any]) -> None:
    from pipelines.report.methods import markdown, methods_tables
    from pipelines.report.terminal import console, table

    if options.json or options.parquet:
        raise Refusal("results methods prints a table, --markdown or --csv; of single numbers: results cells --json")
    shown = methods_tables(rows)
    if not shown:
        raise Refusal("nothing here is cropped beyond its trained length: measure strategy=crop beside the others")
    if options.markdown:
        print(markdown(shown))
    for one in () if options.markdown else shown:
        if options.csv:
            csv.writer(sys.stdout).writerows([one.header, *one.rows])
        else:
            table(console, one.title, one.header, one.rows)


def _written(options: Options, records: Sequence[Any], frame: Any) -> bool:
    """Whether it was written in one of the forms for machines."""
    if options.json:
        print(json.dumps(records, indent=1))
    elif options.csv:
        frame.to_csv(sys.stdout, index=False)
    elif options.parquet:
        target = Path(options.parquet).expanduser()
        try:
            frame.to_parquet(target, index=False)
        except OSError as error:
            raise Refusal(f"--parquet {target}: it cannot be written ({error.strerror})") from error
        print(f"{len(frame)} rows in {target}")
    else:
        return False
    return True


def _going(store: Store, action: str, names: Sequence[str], filters: dict[str, str]) -> list[Removable]:
    """What is to be removed.

    Raises:
        Refusal: nothing is named, or something that is not there.
    """
    from pipelines.records import removal
    from pipelines.report import stored

    if action == "clean":
        if names or filters:
            raise Refusal(f"{(*names, *filters)[0]}: results clean takes no names and no filters; rm does")
        return list(removal.orphans(store))
    if bool(names) == bool(filters):
        raise Refusal("give either ids of sweeps and cells, or filters such as status=failed: ropewalk results --help")
    if filters:
        found = stored.filtered(stored.everything(store), filters)
        return list(removal.of_cells(store, {cell.id for cell, _ in found}))
    sweeps, cells = stored.ids(names, store)
    return [*removal.of_sweeps(store, sweeps), *removal.of_cells(store, cells)]


def _remove(store: Store, going: Sequence[Removable], *, yes: bool) -> int:
    from pipelines.records import removal
    from pipelines.records.numbers import memory

    if not going:
        print("there is nothing to remove")
        return 0
    for part in going:
        print(f"{memory(part.bytes):>10}  {part.reason}")
    print(f"{memory(sum(part.bytes for part in going)):>10}  in all, of {store.root}", flush=True)
    if not yes:
        if not sys.stdin.isatty():
            raise Refusal("nothing was removed: give --yes, as nobody can be asked here")
        if input("Remove? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return 1
    removal.remove(store, going)
    print("removed; `ropewalk sync` takes sweeps that are gone out of MLflow too; runs of single cells stay there")
    return 0
