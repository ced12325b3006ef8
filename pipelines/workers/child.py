"""A cell in a process of its own, so that the driver lives on where the kernel kills for memory.

python -m pipelines.workers.child FD: evaluates the cells that come through that socket, and answers with results.
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection, Pipe

from pipelines.models import light
from pipelines.records import apart, meter
from pipelines.records.cells import Cell, Result
from pipelines.workers.schedule import Evaluator, evaluate, one


class Child:
    """A process that evaluates cells one at a time, and keeps its model loaded in between."""

    def __init__(self, evaluator: Evaluator | None = None) -> None:
        self.code = 0
        self._connection, theirs = Pipe()
        self._process = apart.begin(
            "pipelines.workers.child", str(theirs.fileno()), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        self.evaluator = evaluator

    def run(self, cell: Cell) -> Result | str:
        """The cell's result; where the process died on it, how."""
        try:
            self._connection.send_bytes(pickle.dumps((self.evaluator, meter.is_heard(), cell)))
            while True:
                while not self._connection.poll(0.2):  # short, so that Ctrl-C is seen
                    pass
                answer: Result | tuple[str, float] = self._connection.recv()
                if isinstance(answer, Result):
                    return answer
                meter.report(*answer)
        except (EOFError, OSError):
            self.code = self._process.wait()
            how = signal.Signals(-self.code).name if self.code < 0 else f"exit code {self.code}"
            return f"its process ended with {how}"

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._connection.close()


def main(descriptor: int, driver: int) -> None:
    """Evaluate what comes until the driver is gone."""
    apart.begun(driver)
    light.own()
    connection = Connection(descriptor)
    with suppress(EOFError):
        while True:
            evaluator, heard, cell = pickle.loads(connection.recv_bytes())
            with meter.listening(lambda *far: connection.send(far)) if heard else nullcontext():
                result = one(evaluator or evaluate, cell)
            connection.send(result)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
