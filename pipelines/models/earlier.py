"""Results that were kept when a model was known by samples of its files: taken over where the files are still those.

Earlier versions read of a file above 16 MiB 16 samples, and no merges.txt: two models could have one fingerprint. A
result of theirs is of the files that lie there now where it was measured in this very place, and none of them changed
since then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from pipelines.models import find
from pipelines.records.cells import Cell, Model, Result
from pipelines.records.refusal import Refusal
from pipelines.records.results import Store


@dataclass(frozen=True)
class Earlier:
    """taken: by the ids that the cells have now. unproven: how many results may be of other files."""

    taken: dict[str, Result]
    unproven: int = 0

    @property
    def sentence(self) -> str:
        """What became of them; "" where there are none."""
        if not self.unproven:
            return ""
        one = self.unproven == 1
        results = f"{self.unproven} result{'' if one else 's'} of an earlier version {'is' if one else 'are'}"
        why = "the model was known by samples of its files then, and these changed since, or lie elsewhere"
        return f"{results} computed again: {why}"


def results(cells: Iterable[Cell], store: Store) -> Earlier:
    """What earlier versions kept of these cells; nothing is written."""
    taken, unproven, known = {}, 0, dict[Model, tuple[str | None, float]]()
    for cell in cells:
        if cell.model not in known:
            known[cell.model] = _known(cell.model, find.state(cell.model)) if _is_local(cell.model) else (None, 0.0)
        fingerprint, changed = known[cell.model]
        if fingerprint is None:
            continue
        before = replace(cell, model=replace(cell.model, fingerprint=fingerprint))
        spec, result = store.row(before.id) or ({}, None)
        if result is None or not result.finished:
            continue
        here = _place(spec["model"]["path"]) == _place(cell.model.path)
        if here and changed < _began(result.provenance, result.cost):
            taken[cell.id] = replace(result, cell_id=cell.id, provenance={**result.provenance, "kept_as": before.id})
        else:
            unproven += 1
    return Earlier(taken, unproven)


def _is_local(model: Model) -> bool:
    try:
        return find.state(model) != ()
    except Refusal:
        return False


@lru_cache(maxsize=16)
def _known(model: Model, state: tuple[Any, ...]) -> tuple[str | None, float]:
    return find.earlier_fingerprint(model), find.changed_at(model)


def _place(path: str) -> str:
    return os.path.expanduser(path)


def _began(provenance: dict[str, Any], cost: dict[str, float]) -> float:
    """When a result's computing began, in seconds since 1970; 0 where that is not known."""
    try:
        return datetime.fromisoformat(provenance["at"]).timestamp() - cost.get("seconds", 0.0)
    except (KeyError, TypeError, ValueError):
        return 0.0
