"""A cluster of Ray on this machine, in a process of its own: a head without room for workers, and nodes for one each.

On standard input: `add`, with VARIABLE=VALUE for its workers, and `lose`, which kills the node that was added last.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress

import psutil
from support import PROJECT

from pipelines.workers import agents

SECRET = "0123456789abcdef" * 4
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": SECRET}


class Nodes:
    """The cluster, for tests."""

    def __init__(self) -> None:
        variables = {**os.environ, **TOKEN, "PYTHONPATH": str(PROJECT / "tests")}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=tempfile.gettempdir(),
            env=variables,
        )
        self.address = self.process.stdout.readline().strip()
        assert self.address, "the head of the cluster did not start"
        self.added = 0

    def add(self, **variables: str) -> None:
        self._do("add", *(f"{name}={value}" for name, value in variables.items()))
        self.added += 1

    def lose(self) -> None:
        self._do("lose")
        self.added -= 1

    def _do(self, *words: str) -> None:
        print(*words, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline().strip() == words[0]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


def _excuse(ray) -> None:
    """As ropewalk does of its own Ray: on a busy machine no node would start otherwise."""
    seen = set()
    while True:
        for part in psutil.Process().children():
            with suppress(psutil.Error):
                if part.pid not in seen and part.name() == "raylet":
                    agents.excuse(ray, part.cmdline())
                    seen.add(part.pid)
        time.sleep(0.1)


def main() -> None:
    agents.sweep_after("none of these")  # by the names of its sessions
    import ray
    from ray.cluster_utils import Cluster

    threading.Thread(target=_excuse, args=(ray,), daemon=True).start()

    def node(**options):
        with agents.few(ray):
            return cluster.add_node(include_dashboard=False, **options)

    cluster, added = Cluster(), []
    node(num_cpus=0)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        verb, *variables = line.split()
        if verb == "add":
            added.append(node(num_cpus=1, env_vars=dict(word.split("=", 1) for word in variables)))
        else:
            cluster.remove_node(added.pop(), allow_graceful=False)
        print(verb, flush=True)


if __name__ == "__main__":
    main()
