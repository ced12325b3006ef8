"""A search on disk: what decides it, and best.yaml, patched_config.json, figures and study.json in its folder."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.choices import sweep
from pipelines.records import provenance
from pipelines.report import drawing
from pipelines.tune import search, verdict
from pipelines.tune.bench import Bench, StrategyChoice
from pipelines.tune.search import SearchSettings, Trial
from pipelines.tune.space import Space
from pipelines.tune.verdict import TuneVerdict
from rope.geometry import Geometry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneStudy:
    """One search: all that decides what it finds, and where that is written. short: None where it is no shorter."""

    bench: Bench
    space: Space
    geometry: Geometry
    settings: SearchSettings
    short: int | None
    command: str
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
    def defaults(self) -> list[StrategyChoice]:
        crop = [StrategyChoice("crop", {})] if self.settings.objective == "context_gain" else []
        return [*verdict.defaults_of(self.space), *crop]

    @property
    def folder(self) -> Path:
        return self.bench.store.study(self.id)

    @property
    def objective(self) -> str:
        """What a trial's value is called."""
        return self.bench.measure.name if self.bench.measure.lower else "share missed"

    def spec(self) -> dict[str, Any]:
        choice, screening = self.bench.choice, self.bench.screening
        params = {
            "model": choice.model.name,
            "strategy": self.strategy,
            "length": self.length,
            "ranges": self.space.text,
            "task": choice.task["name"],
            "text": choice.task.get("text", ""),
            "documents": screening.count,
            "rungs": list(screening.rungs),
            "trials": self.settings.trials,
            "sampler": self.settings.sampler,
            "seed": self.settings.seed,
            "batch": self.settings.batch,
            "short": self.short,
        }
        return {
            "id": self.id,
            "label": self.label,
            "command": self.command,
            "params": params,
            "code": provenance.code(),
        }


def write(study: TuneStudy, trials: Sequence[Trial], judged: TuneVerdict) -> dict[str, Any]:
    """The files of the study's folder; returns the content of study.json."""
    folder = study.folder
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        **study.spec(),
        "trials": [trial.spec() for trial in trials],
        "chosen": {"name": judged.chosen.strategy, **judged.chosen.options},
        "importances": search.importances(study.space, trials),
        "verdict": judged.spec(),
        "confirm": confirm(study, judged),
    }
    notes = [f"For {study.label}, found by", f"  {study.command}", *judged.sentences]
    (folder / "best.yaml").write_text(judged.chosen.yaml(notes), encoding="utf-8")
    if study.settings.two_aims:
        for place, trial in enumerate(search.front(trials), start=1):
            note = (
                f"{study.objective} {trial.value:.4f} at {study.length:,} tokens, {trial.cost:.4f} at {study.short:,}"
            )
            chosen = StrategyChoice(study.strategy, trial.options).without_defaults()
            (folder / f"front_{place}.yaml").write_text(chosen.yaml([note]), encoding="utf-8")
    cell = study.bench.cell(judged.chosen, "report", 0, study.bench.screening.count)
    patched = folder / "patched_config.json"
    try:
        patched.write_text(json.dumps(sweep.patched_config(cell), indent=1), encoding="utf-8")
    except ValueError as reason:  # transformers cannot express it
        patched.unlink(missing_ok=True)
        log.warning("no patched_config.json: %s", reason)
    screened = f"{study.objective} over {study.bench.screening.rungs[0]} documents"
    aims = (f"{study.objective} at {study.length:,}", f"{study.objective} at {study.short or study.length:,}")
    for name, draw in search.figures(study.space, trials, screened, aims).items():
        drawing.save(draw, f"{study.label}: {TITLES[name]}", folder / name)
    study.bench.store.save_study(spec)
    return spec


TITLES = {"importance.png": "what mattered (PED-ANOVA)", "slices.png": "every trial", "pareto.png": "two aims"}


def confirm(study: TuneStudy, judged: TuneVerdict) -> str:
    """The grid that measures the chosen options beside the defaults, on the documents that judged."""
    cell = study.bench.cell(judged.chosen, "report", 0, study.bench.screening.count)
    names = [default.strategy for default in study.defaults if not default.options]
    strategies = ",".join(["none", *names, str(study.folder / "best.yaml")])
    lengths = ",".join(map(str, [*([study.short] if study.short else []), study.length]))
    place = [f"strategy={strategies}", f"length={lengths}", *study.bench.selection(cell)]
    return shlex.join(["ropewalk", "grid", *study.bench.typed, *place])
