"""`ropewalk ui`: the MLflow UI on the store that grids write to, on this machine's loopback."""

from __future__ import annotations

import os
import socket
import sys

from pipelines.cli import arguments
from pipelines.cli.arguments import STORE, Options, Verbs
from pipelines.records.refusal import Refusal

DESCRIPTION = """
Browse the results: starts MLflow's UI on the results of grids and prints the address of the latest one's curves. Where
MLFLOW_TRACKING_URI names a server, only the address is printed.
  ropewalk ui 5001
"""


def add(verbs: Verbs) -> None:
    arguments.add_verb(
        verbs,
        "ui",
        "browse the results in MLflow's UI",
        DESCRIPTION,
        run,
        usage="[PORT (default 5000)] [store=FOLDER]",
        keys=[STORE],
    )


def run(options: Options) -> int:
    """Become the MLflow server. Returns only where there is nothing to show."""
    own, ports = arguments.own_keys(options)
    port, *rest = ports or ["5000"]
    number = port.isascii() and port.isdigit() and len(port) <= 5
    if rest or not number or not 0 < int(port) < 2**16:
        raise Refusal(
            f"{rest[0] if rest else port[:60]}: ropewalk ui takes one port, from 1 to 65535, and store=FOLDER"
        )
    from pipelines.records.results import Store
    from pipelines.track import tracking_uri
    from pipelines.track.database import unreadable
    from pipelines.track.experiments import newest, page

    store = Store.at(own.get("store"))
    uri = tracking_uri(store)
    if uri.startswith(("http:", "https:")):
        print(f"MLFLOW_TRACKING_URI names a server: open {uri.rstrip('/')}{page(newest(store))}")
        return 0
    if uri.startswith("sqlite:") and not (store.root / "mlflow.db").is_file():
        raise Refusal(f"there are no runs in {store.root} yet; start with `ropewalk grid`")
    if uri.startswith("sqlite:") and (reason := unreadable(store.root / "mlflow.db")):
        raise Refusal(
            f"{store.root / 'mlflow.db'} cannot be read ({reason}); `ropewalk sync` makes it anew from results"
        )
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("127.0.0.1", int(port)))
    except OSError as error:
        raise Refusal(f"port {port}: {error.strerror}; give a free one, such as ropewalk ui 5001") from error
    print(f"starting; in some seconds open http://127.0.0.1:{port}{page(newest(store))}", flush=True)
    print("Ctrl-C ends it", flush=True)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # its workers for prompts and traces: three processes more
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    address = ["--host", "127.0.0.1", "--port", port, "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, *address])
