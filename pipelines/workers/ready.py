"""Whether cells have all that they need, before any model loads.

python -m pipelines.workers.ready: takes cells through stdin and says so on stdout, in a process of its own.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from pipelines.models import light, load
from pipelines.records import apart
from pipelines.records.cells import Cell, Model, Refusal
from pipelines.records.phases import timed
from pipelines.tasks import registry


@timed("cells prepared")
def prepare(cells: Sequence[Cell]) -> None:
    """Find out before any model loads whether every cell has the files and the text that it needs.

    Raises:
        Refusal: one line for each distinct reason.
    """
    light.load()  # before anything imports transformers whole
    refused = dict[str, None]()
    whole = set[Model]()
    for model in dict.fromkeys(cell.model for cell in cells):
        try:
            load.check(model)
            whole.add(model)
        except Refusal as reason:
            refused[str(reason)] = None
    needed = {(cell.model, cell.task, cell.length, cell.limit, cell.seed) for cell in cells if cell.model in whole}
    # Task by task: the text that one encodes is still remembered for the next length, a shorter one.
    for model, task, length, limit, seed in sorted(needed, key=lambda row: (row[1].name, -row[2])):
        try:
            registry.prepare(task, load.tokenizer(model), length=length, limit=limit, seed=seed)
        except Refusal as reason:
            refused[str(reason)] = None
    if refused:
        raise Refusal("\n".join(refused))


class Apart:
    """`prepare` in a process of its own, beside whatever this one does meanwhile: it converts files and imports
    transformers, and this one need not. Begins at once."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = cells
        self._process = apart.begin("pipelines.workers.ready", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with suppress(OSError):  # it has ended already: `finish` says how
            assert self._process.stdin is not None
            self._process.stdin.write(pickle.dumps(list(cells)))
            self._process.stdin.close()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def finish(self) -> None:
        """Wait for it. Where its process was killed, this one does the same.

        Raises:
            Refusal: as `prepare`.
        """
        assert self._process.stdout is not None
        answer = self._process.stdout.read()
        if self._process.wait() or not answer:
            return prepare(self._cells)
        if reason := pickle.loads(answer):
            raise Refusal(reason)
        return None

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()


def main(driver: int) -> None:
    """Prepare what stdin says, and answer with the reason why that cannot be, or ""; what else goes wrong is not said:
    the driver sees it for itself."""
    apart.begun(driver)
    light.own()
    answer, reason = sys.stdout.buffer, ""
    sys.stdout = sys.stderr  # whatever a library prints
    try:
        prepare(pickle.loads(sys.stdin.buffer.read()))
    except Refusal as refused:
        reason = str(refused)
    except BaseException:
        os._exit(1)
    answer.write(pickle.dumps(reason))
    answer.flush()
    os._exit(0)  # taking torch apart takes a second


if __name__ == "__main__":
    main(int(sys.argv[1]))
