"""`ropewalk sync`: MLflow rebuilt from the results on disk, which are the truth."""

from __future__ import annotations

from pipelines.records.cells import Refusal
from pipelines.records.results import Store
from pipelines.track import rebuild

HELP = """ropewalk sync [store=FOLDER] [force=true]

Brings MLflow to what the results on disk say: sweeps that it lacks, or has in part (after a crash, or when mlflow.db
was deleted), are recorded from the results, and sweeps that are no longer on disk are deleted; nothing is computed.
force=true records all of them anew. Exit code 1: some could not be rebuilt in full, as their strategy or model is gone.
"""


def main(arguments: list[str]) -> int:
    """One command line; returns the exit code."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP, end="")
        return 0
    options = dict(argument.partition("=")[::2] for argument in arguments)
    if set(options) - {"store", "force"} or options.get("force", "false") not in ("true", "false"):
        raise Refusal(f"ropewalk sync takes store=FOLDER and force=true; given: {' '.join(arguments)}")
    store = Store.at(options.get("store"))
    code = 0
    for rebuilt in rebuild.rebuild(store, force=options.get("force") == "true"):
        print(rebuilt, flush=True)
        code = code if rebuilt.complete else 1
    return code
