"""What the forwards of a cell have answered so far, so that a cell that is cut short goes on where it stood.

    mlruns/cells/<id>/answers.jsonl

The process that computes a cell appends a line as each forward ends: a digest, and what it is of. The first line of
each launch says what computed it and when. A line that is torn or damaged is none. The file goes when the cell has a
number.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.records.results import ANSWERS, STARTED

log = logging.getLogger(__name__)


class Answers:
    """The answers of one cell: those of launches that were cut short, and new ones.

    folder: of the cell, in the store of the launch. Where the launch has not noted its start there, as on a machine
        that does not share the store, nothing is read or written.
    origin: what decides the numbers where they are computed; answers of any other are left alone.

    taken: by the time at which a launch began that was cut short, how many of its answers were used.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any]) -> None:
        self.taken = Counter[str]()
        self._file, self._origin = folder / ANSWERS, json.loads(json.dumps(origin))
        self._begun, self._writes = False, (folder / STARTED).is_file()
        self._kept = self._read() if self._writes else {}

    def recall(self, key: str) -> Any | None:
        """What was answered, as `keep` was given it; None where nothing was."""
        if key not in self._kept:
            return None
        at, answer = self._kept[key]
        self.taken[at] += 1
        return answer

    def keep(self, key: str, answer: Any) -> None:
        """Append an answer (plain data). A disk that takes nothing costs no cell its number."""
        if not self._writes:
            return
        try:
            with self._file.open("ab") as file:
                if not self._begun:
                    at = datetime.now().astimezone().isoformat()
                    # what is torn ends here
                    file.write(b"\n" + _line({"origin": self._origin, "at": at}))
                    self._begun = True
                file.write(_line({"key": key, "answer": answer}))
        except OSError as error:
            self._writes = False
            log.warning("what this cell computes is not kept should it be cut short: %s", error)

    def _read(self) -> dict[str, tuple[str, Any]]:
        try:
            lines = self._file.read_bytes().split(b"\n")
        except OSError:
            return {}
        found, at = dict[str, tuple[str, Any]](), None
        for body in filter(None, map(_body, lines)):
            if "origin" in body:
                at = body["at"] if body["origin"] == self._origin else None
            elif at is not None:
                found[body["key"]] = at, body["answer"]
        return found


def _line(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body).encode()
    return hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n"


def _body(line: bytes) -> dict[str, Any] | None:
    """What a line says; None where it is not whole."""
    digest, _, text = line.partition(b" ")
    if not text or hashlib.sha256(text).hexdigest()[:16].encode() != digest:
        return None
    body: dict[str, Any] = json.loads(text)
    return body
