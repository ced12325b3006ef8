"""`ropewalk report`: its command line."""

from __future__ import annotations

from pipelines.cli import arguments
from pipelines.cli.arguments import STORE, Options, Verbs
from pipelines.records.refusal import Refusal

DESCRIPTION = """
One page that answers with its numbers: a self-contained HTML file, and beside it every figure as PNG, SVG and CSV.
Every grid writes its own at its end; this writes it anew, or one of several sweeps. Without SWEEP it is of the latest.
  ropewalk report
  ropewalk report 2026-11-26T112437-789da3 2026-11-26T131502-0c11f2 --out both
SWEEP is the name of a folder in STORE/sweeps; its first characters will do.
"""


def add(verbs: Verbs) -> None:
    parser = arguments.add_verb(
        verbs,
        "report",
        "write a page of one sweep or several: the answer, every table and figure",
        DESCRIPTION,
        run,
        usage="[SWEEP ...] [--out FOLDER] [store=FOLDER]",
        keys=[STORE],
    )
    parser.add_argument("--out", metavar="FOLDER", help="where it is written; default: the sweep's folder")


def run(options: Options) -> int:
    own, names = arguments.own_keys(options)
    for word in names:
        if "=" in word:
            arguments.refuse_word(options, word)
    from pathlib import Path

    from pipelines.choices.sweep import Sweep
    from pipelines.records.cells import digest_of
    from pipelines.records.results import Store
    from pipelines.report import page, stored

    store = Store.at(own.get("store"))
    specs = {str(spec["id"]): spec for spec in store.sweeps()}
    if not specs:
        raise store.without_sweeps()
    chosen, cells = stored.ids(names, store)
    if cells:
        raise Refusal(f"{names[0]}: ropewalk report takes sweeps; `ropewalk results` lists them")
    chosen = list(dict.fromkeys(chosen)) or [max(specs)]
    try:
        sweeps = [Sweep.of(specs[name]) for name in chosen]
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(f"a sweep among {', '.join(chosen)} is of a version that cannot be read: {error!r}") from error
    several = store.root / "reports" / f"{max(chosen)[:17]}-{len(chosen)}-sweeps-{digest_of(sorted(chosen))[:6]}"
    folder = Path(options.out).expanduser() if options.out else several if len(chosen) > 1 else store.sweep(chosen[0])
    rows = [
        (cell, result)
        for cell in dict.fromkeys(cell for sweep in sweeps for cell in sweep.cells)
        if (result := store.read(cell.id)) is not None
    ]
    if folder.exists() and not folder.is_dir():
        raise Refusal(f"--out {folder} is a file; give a folder")
    print(page.write(rows, folder, sweeps=sweeps))
    return 0
