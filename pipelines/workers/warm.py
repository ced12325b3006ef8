"""The workers that `ropewalk up` keeps between commands: found, asked, and left.

    <user's cache>/up-<machine>.json    where they answer, with the key that lets a command in; its user's alone

They are a process of their own (pipelines/workers/keeper.py) that answers at a socket in a folder of this user's alone.
Whoever may write there could as well change this code: cells come pickled, and only with the key.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from pipelines.records import meter, provenance
from pipelines.records.cells import Cell, Refusal
from pipelines.records.places import cache_folder
from pipelines.records.processes import is_running, machine
from pipelines.records.results import Store
from pipelines.workers.schedule import CellResults, Evaluator, Workers
from pipelines.workers.signals import interruptible

SETTINGS = ("CUDA_", "HF_", "LM_", "MKL_", "NVIDIA_", "OMP_", "PYTORCH_", "ROPEWALK_CACHE", "TORCH", "TRANSFORMERS_")
"""Beginnings of the names of environment variables that a worker reads; a command with others computes by itself."""

PATIENCE = 10.0
"""Seconds within which workers that are told to end must have ended."""

Say = Callable[[str], object]


class Gone(RuntimeError):
    """The workers have ended, or do not answer."""


@dataclass(frozen=True)
class Kept:
    """What is known of the workers that are kept.

    process: of their keeper. since: local time. address, key: where it answers, and what lets a command in.
    workers: as conf/cluster had them, and their device. code: of `code_digest`. versions: of provenance.environment.
    settings: digests of environment variables by name. trouble: why their model did not load, "" where it did.
    """

    process: str
    since: str
    address: str
    key: str
    workers: Mapping[str, Any]
    code: str
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    trouble: str = ""

    @property
    def pid(self) -> int:
        return int(self.process.rsplit(":", 2)[1])


def file() -> Path:
    """Where is written how to reach the workers of this machine."""
    return cache_folder() / f"up-{machine()}.json"


def write(kept: Kept) -> None:
    file().parent.mkdir(parents=True, exist_ok=True)
    temporary = file().with_suffix(f".{os.getpid()}.tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        json.dump(asdict(kept), stream)
    temporary.replace(file())


def read(say: Say = lambda text: None) -> Kept | None:
    """The workers that are kept; None where there are none, after a sentence where there should be."""
    try:
        if file().stat().st_uid != os.getuid():
            say(f"the workers that {file()} names are another user's: they are not used")
            return None
        kept = Kept(**json.loads(file().read_text(encoding="utf-8")))
        running = is_running(kept.process)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        say(f"{file()} says nothing of workers that is understood: it is removed (`ropewalk up` starts them anew)")
        file().unlink(missing_ok=True)
        return None
    if not running:
        say(f"the workers of `ropewalk up` (since {kept.since}) have ended: start them anew with `ropewalk up`")
        file().unlink(missing_ok=True)
        return None
    return kept


def code_digest() -> str:
    """What is other when any file of ours is."""
    return provenance.state(("rope", "pipelines"))


def settings() -> dict[str, str]:
    """Digests of the environment variables that workers read: values may be secrets."""
    names = (name for name in os.environ if name.startswith(SETTINGS))
    return {name: hashlib.sha256(os.environ[name].encode()).hexdigest()[:12] for name in names}


def differences(kept: Kept, workers: Workers) -> str:
    """Why a command cannot use the workers, in a line; "" where it can."""
    wanted = place(workers)
    if other := [name for name in wanted if kept.workers.get(name) != wanted[name]]:
        return ", ".join(f"{name}={kept.workers.get(name)} there and {wanted[name]} here" for name in other)
    if kept.code != code_digest():
        return "the code has changed since they were started"
    now = provenance.environment()
    if other := [name for name in now if kept.versions.get(name) != now[name]]:
        return ", ".join(f"{name} {kept.versions.get(name)} there and {now[name]} here" for name in other)
    here = settings()
    if other := sorted(name for name in {*here, *kept.settings} if here.get(name) != kept.settings.get(name)):
        return f"other values of {', '.join(other)} in the environment"
    return ""


def place(workers: Workers) -> dict[str, Any]:
    """Of workers what cannot be changed while they run."""
    return {"device": workers.device, "workers": workers.count, "cpus": workers.cpus, "gpus": workers.gpus}


class Warm:
    """A connection to the workers, of one command."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        try:
            self._connection: Connection = Client(kept.address, "AF_UNIX", authkey=bytes.fromhex(kept.key))
            self.busy = str(self._receive()[1])
        except (OSError, EOFError, ValueError) as error:
            raise Gone(str(error)) from error

    def _receive(self) -> tuple[Any, ...]:
        try:
            answer: tuple[Any, ...] = self._connection.recv()
        except (OSError, EOFError) as error:
            raise Gone(type(error).__name__) from error
        return answer

    def ask(self, *message: Any) -> tuple[Any, ...]:
        """One message, and its answer.

        Raises:
            Gone: there is none.
        """
        try:
            self._connection.send(message)
        except OSError as error:
            raise Gone(type(error).__name__) from error
        return self._receive()

    def prepare(self, cells: Sequence[Cell]) -> None:
        """`ready.prepare`, where transformers is loaded already.

        Raises:
            Refusal: as there.
            Gone: the workers have ended.
        """
        kind, text = self.ask("prepare", os.getcwd(), list(cells))
        if kind == "refused":
            raise Refusal(text)
        if kind == "failed":
            raise RuntimeError(text)

    def run(
        self,
        cells: Sequence[Cell],
        workers: Workers,
        evaluator: Evaluator | None,
        store: Store,
        sent: Callable[[], object] = lambda: None,
    ) -> CellResults:
        """Every cell with its result, in the order of finishing. sent: called when the workers have the cells.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when the cells that were running are finished and yielded.
            Gone: the workers have ended; what was not yielded has no result.
        """
        by_id, stopped = {cell.id: cell for cell in cells}, False
        with interruptible() as interruption:
            try:
                self._connection.send(
                    ("run", os.getcwd(), list(cells), workers, evaluator, str(store.root), meter.is_heard())
                )
                sent()
                while True:
                    while not self._connection.poll(0.2):
                        if interruption.asked.is_set() and not stopped:
                            stopped = True
                            self._connection.send(("stop",))
                    kind, *content = self._receive()
                    if kind == "result":
                        yield by_id[content[0].cell_id], content[0]
                    elif kind == "far":
                        meter.report(*content)
                    elif kind == "lost":
                        raise Gone(content[0])
                    else:
                        break
            except (OSError, EOFError) as error:
                raise Gone(type(error).__name__) from error
            if interruption.asked.is_set():
                raise KeyboardInterrupt

    def close(self) -> None:
        with suppress(OSError):
            self._connection.close()


def find(workers: Workers, say: Say) -> Warm | None:
    """The workers of `ropewalk up`, where there are any that this command can use; says which, or why not."""
    if "RAY_ADDRESS" in os.environ or (kept := read(say)) is None:
        return None
    if reason := differences(kept, workers):
        say(
            f"computing without the workers of `ropewalk up`: {reason} (`ropewalk down`, and `up` again, gives such "
            "workers)"
        )
        return None
    try:
        warm = Warm(kept)
    except Gone as reason_gone:
        say(f"computing without the workers of `ropewalk up`, which do not answer ({reason_gone})")
        return None
    if warm.busy:
        say("computing without the workers of `ropewalk up`: they are busy with another command")
        warm.close()
        return None
    say(f"computing on the workers of `ropewalk up` (since {kept.since})")
    return warm


def failure(error: BaseException) -> tuple[str, str]:
    """How an error is told to a command."""
    if isinstance(error, Refusal):
        return "refused", str(error)
    return "failed", "".join(traceback.format_exception(error))


def down() -> str:
    """End the workers that are kept; what to say of it."""
    said = list[str]()
    kept = read(said.append)
    if kept is None:
        return said[0] if said else "no workers are up (`ropewalk up` starts them)"
    with suppress(Gone):  # as it ends
        Warm(kept).ask("down")
    deadline = time.monotonic() + PATIENCE
    while is_running(kept.process) and time.monotonic() < deadline:
        time.sleep(0.05)
    if is_running(kept.process):
        os.kill(kept.pid, signal.SIGKILL)  # what it started ends with it
    file().unlink(missing_ok=True)
    return f"the workers of `ropewalk up` (since {kept.since}) have ended"
