"""`ropewalk ui`: the MLflow UI on the store that grids write to, on this machine's loopback."""

from __future__ import annotations

import os
import sys

from pipelines.records.cells import Refusal
from pipelines.records.results import Store

HELP = """ropewalk ui [PORT] [store=FOLDER]

Opens the MLflow UI (default port 5000) on the results of this project's grids, or on MLFLOW_TRACKING_URI where set.
"""


def main(arguments: list[str]) -> int:
    """Become the MLflow server. Returns only where there is nothing to show."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP, end="")
        return 0
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    ports = [argument for argument in arguments if "=" not in argument]
    if set(options) - {"store"} or len(ports) > 1 or not all(port.isdigit() for port in ports):
        raise Refusal(f"ropewalk ui takes a port and store=FOLDER; given: {' '.join(arguments)}")
    from pipelines.track import tracking_uri

    store = Store.at(options.get("store"))
    uri = tracking_uri(store)
    if uri.startswith("sqlite:") and not (store.root / "mlflow.db").is_file():
        raise Refusal(f"there are no runs in {store.root} yet; start with `ropewalk grid`")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        *(ports or ["5000"]),
    ]
    print(f"starting; then open http://127.0.0.1:{(ports or ['5000'])[0]} (Ctrl-C ends it)", flush=True)
    os.execv(sys.executable, command)
