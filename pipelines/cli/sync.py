"""`ropewalk sync`: its command line."""

from __future__ import annotations

from pipelines.cli import arguments
from pipelines.cli.arguments import STORE, Options, Verbs
from pipelines.cli.meanings import Key
from pipelines.records.refusal import Refusal

DESCRIPTION = """
Brings MLflow to what the results on disk say: sweeps and searches that it lacks, or has in part (after a crash, or when
mlflow.db was deleted), are recorded from the results, and sweeps that are no longer on disk are deleted; nothing is
computed. Exit code 1: some could not be rebuilt in full, as their strategy or model is gone.
"""


def add(verbs: Verbs) -> None:
    arguments.add_verb(
        verbs,
        "sync",
        "rebuild MLflow from the results on disk",
        DESCRIPTION,
        run,
        usage="[store=FOLDER] [force=true]",
        keys=[STORE, Key("force", "bool", "false", "record all of them again")],
    )


def run(options: Options) -> int:
    own = arguments.only_keys(options)
    from pipelines.records.results import Store
    from pipelines.track import rebuild

    force = own.get("force", "false")
    if force not in ("true", "false"):
        raise Refusal(f"force={force}: give true or false")
    code = 0
    for rebuilt in rebuild.rebuild(Store.at(own.get("store")), force=force == "true"):
        print(rebuilt, flush=True)
        code = code if rebuilt.complete else 1
    return code
