"""A search as it is kept: what decides it, and best.yaml, patched_config.json, figures and study.json in its folder."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.choices import sweep
from pipelines.records import provenance
from pipelines.records.results import Store
from pipelines.report import drawing
from pipelines.tune import search, verdict
from pipelines.tune.bench import Bench, Recipe
from pipelines.tune.search import Settings, Trial
from pipelines.tune.space import Space, seeds
from pipelines.tune.verdict import Verdict
from rope.geometry import Geometry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study:
    """One search: all that decides what it finds, and where that is kept."""

    bench: Bench
    space: Space
    geometry: Geometry
    settings: Settings
    short: int | None
    command: str
    store: Store
    device: str
    id: str

    @property
    def strategy(self) -> str:
        return self.space.strategy

    @property
    def length(self) -> int:
        return self.bench.choice.length

    @property
    def label(self) -> str:
        return f"{self.bench.choice.model.name}: {self.strategy} @{self.length} {self.bench.choice.task['name']}"

    @property
    def defaults(self) -> list[Recipe]:
        return verdict.defaults_of(self.space)

    @property
    def folder(self) -> Path:
        return self.store.study(self.id)

    @property
    def params(self) -> dict[str, Any]:
        choice, documents = self.bench.choice, self.bench.documents
        return {
            "model": choice.model.name, "strategy": self.strategy, "length": self.length, "ranges": self.space.told,
            "task": choice.task["name"], "text": choice.task.get("text", ""), "documents": documents.count,
            "rungs": list(documents.rungs), "trials": self.settings.trials, "sampler": self.settings.sampler,
            "seed": self.settings.seed, "batch": self.settings.batch, "short": self.short,
        }  # fmt: skip

    def spec(self) -> dict[str, Any]:
        return {"id": self.id, "label": self.label, "command": self.command, "params": self.params,
                "code": provenance.code()}  # fmt: skip


def keep(study: Study, trials: Sequence[Trial], judged: Verdict) -> dict[str, Any]:
    """Everything that was found, as files of the study's folder; returns what study.json says."""
    folder = study.folder
    folder.mkdir(parents=True, exist_ok=True)
    shares = search.importances(study.space, trials)
    spec = {
        **study.spec(),
        "trials": [trial.spec() for trial in trials],
        "chosen": {"name": judged.chosen[0], **judged.chosen[1]},
        "importances": shares,
        "verdict": judged.spec(),
        "confirm": confirm(study, judged),
    }
    notes = [f"For {study.label}, found by", f"  {study.command}", *judged.sentences]
    (folder / "best.yaml").write_text(verdict.best_yaml(judged.chosen, notes), encoding="utf-8")
    if study.settings.two_aims:
        measured = study.bench.measure.name if study.bench.measure.lower else "share missed"
        for place, trial in enumerate(search.front(trials), start=1):
            said = [f"{measured} {trial.value:.4f} at {study.length:,} tokens, {trial.cost:.4f} at {study.short:,}"]
            recipe = verdict.known((study.strategy, trial.options))
            (folder / f"front_{place}.yaml").write_text(verdict.best_yaml(recipe, said), encoding="utf-8")
    _patched(study, judged, folder / "patched_config.json")
    _draw(study, trials, shares, judged, folder)
    study.store.save_study(spec)
    return spec


def _patched(study: Study, judged: Verdict, path: Path) -> None:
    cell = study.bench.cell(judged.chosen, "report", 0, study.bench.documents.count)
    try:
        path.write_text(json.dumps(sweep.patched_config(cell), indent=1), encoding="utf-8")
    except ValueError as reason:  # no words for it
        path.unlink(missing_ok=True)
        log.warning("no patched_config.json: %s", reason)


def confirm(study: Study, judged: Verdict) -> str:
    """The grid that measures the chosen options beside the defaults, on the documents that judged."""
    choice, count = study.bench.choice, study.bench.documents.count
    names = [strategy for strategy, options in study.defaults if not options]
    lengths = ",".join(map(str, [*([study.short] if study.short else []), study.length]))
    half = [f"seed={choice.seed + 1}", f"task.keys={count}"] if choice.task["name"] == "passkey" else [
        "task.part=report"
    ]  # fmt: skip
    strategies = ",".join(["none", *names, str(study.folder / "best.yaml")])
    return shlex.join(
        ["ropewalk", "grid", *study.bench.typed, f"strategy={strategies}", f"length={lengths}", *half, f"limit={count}"]
    )


def _draw(
    study: Study, trials: Sequence[Trial], shares: Mapping[str, float], judged: Verdict, folder: Path
) -> list[Path]:
    """What mattered, where the good values lie, and of two aims what none beats."""
    seen = [trial for trial in trials if trial.rungs]
    if not seen:
        return []
    made, name = [], study.bench.measure.name if study.bench.measure.lower else "share missed"
    if shares:
        title = f"{study.label}: what mattered (PED-ANOVA)"
        made.append(drawing.importance(shares, title, folder / "importance.png"))
    starts = seeds(study.space, study.geometry, study.length)
    start = starts[0] if len(starts) == 1 else {}
    drawn = [
        drawing.Slice(
            one.name, [t.values[one.name] for t in seen], one.log, None if one.choices else start.get(one.name)
        )
        for one in study.space.searched
    ]
    # as screened: values over more documents are of other documents
    ys, far = [t.rungs[0][1] for t in seen], [t.rungs[-1][0] for t in seen]
    label = f"{name} over {seen[0].rungs[0][0]} documents"
    made.append(drawing.slices(drawn, ys, far, label, f"{study.label}: every trial", folder / "slices.png"))
    points = [(t.cost, t.value) for t in seen if t.cost is not None and t.value is not None]
    if points:
        best = [(t.cost, t.value) for t in search.front(trials) if t.cost is not None and t.value is not None]
        labels = (f"{name} at {study.short:,}", f"{name} at {study.length:,}")
        made.append(drawing.pareto(points, best, {}, labels, f"{study.label}: two aims", folder / "pareto.png"))
    return made
