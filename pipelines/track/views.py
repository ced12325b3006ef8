"""Saved views of MLflow's run list: what an experiment opens on, as data that its page reads from its tags.

The keys are those of MLflow's own page (3.15 and later): a tag `mlflow.sharedViewState.<id>` holds a name, times and
the page's state, which `?viewStateShareKey=<id>` opens. The experiment's menu lists them by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TAG = "mlflow.sharedViewState."

LINES = "ropewalk-lines"
"""The view that `ropewalk ui` opens."""

LIMIT = 20_000
"""Characters that MLflow keeps of an experiment's tag; longer ones it refuses."""

GAIN = "gain over crop"
"""Name of the metric of a curve that says what the strategy is worth over cropping: a share, or points."""

ALL = 100
"""Runs that one chart shows: as many as the page loads at first."""


DECADES = re.compile("^ppl|perplexity")
"""Names of metrics whose values span decades."""


@dataclass(frozen=True)
class Score:
    """A number of a task. metric, by_length: what MLflow calls it in the runs of cells, and of curves."""

    task: str
    name: str
    lower: bool

    @property
    def metric(self) -> str:
        return f"{self.task}/{self.name}"

    @property
    def by_length(self) -> str:
        return f"{section(self.task)}/{self.name}"

    @property
    def of_cells(self) -> bool:
        """Whether the runs of cells have it, too."""
        return self.name != GAIN

    @property
    def logarithmic(self) -> bool:
        """Whether its values span decades, as perplexities do."""
        return DECADES.search(self.name) is not None

    @property
    def title(self) -> str:
        return f"{self.task}: {self.name}, {'lower' if self.lower else 'higher'} is better"


def section(task: str) -> str:
    """What stands before the slash in the names of a curve's metrics: MLflow's page makes a section of it."""
    return f"{task} by length"


@dataclass(frozen=True)
class View:
    """A saved view. id: unlike that of any other of the experiment. name: what the menu calls it. state: the page's."""

    id: str
    name: str
    state: Mapping[str, Any]

    def tag(self, at: int) -> tuple[str, str]:
        """Name and value of the experiment's tag. at: milliseconds."""
        state = json.dumps(self.state, separators=(",", ":"))
        return TAG + self.id, json.dumps({"name": self.name, "createdAt": at, "updatedAt": at, "state": state})


def views(
    scores: Sequence[Score], options: Mapping[str, Sequence[str]], baselines: Mapping[str, tuple[str, str]]
) -> list[View]:
    """The views of an experiment: of every task its scores against length, and of all of them the options.

    scores: what is drawn, the most important first. options: of each strategy that was run with several values of an
    option, the parameters that differ. baselines: of each task the strategy that the others are compared with, and the
    id of its curve's run.
    """
    tasks = list(dict.fromkeys(score.task for score in scores))
    found = [
        _lines(LINES if task == tasks[0] else f"{LINES}-{task}", task, scores, baselines.get(task)) for task in tasks
    ]
    found += [_parallel(scores, options)] if scores else []
    return [view for view in found if len(view.tag(0)[1]) <= LIMIT]


def _lines(key: str, task: str, scores: Sequence[Score], baseline: tuple[str, str] | None) -> View:
    """Of one task alone: a chart's legend names every run of the view, also those without its metric."""
    charts = [
        {
            **_chart("LINE", score.by_length, score.title, "scores"),
            "metricKey": score.by_length,
            "xAxisKey": "step",
            "xAxisScaleType": "log",
            "scaleType": "log" if score.logarithmic else "linear",
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "selectedXAxisMetricKey": "",
            "useGlobalXaxisKey": False,
            "lineSmoothness": 0,
            "useGlobalLineSmoothing": False,
            "displayPoints": True,
            "ignoreOutliers": False,
            "range": {},
        }
        for score in scores
        if score.task == task
    ]
    sections = [_section("scores", "Score against length", columns=2)]
    if baseline is not None:
        strategy, run = baseline
        charts.append(
            {
                **_chart("DIFFERENCE", "difference", f"Difference from {strategy}", "difference"),
                "chartName": f"Difference from {strategy}",
                "compareGroups": ["Model metrics"],
                "showChangeFromBaseline": True,
                "showDifferencesOnly": False,
                "baselineColumnUuid": run,
            }
        )
        sections.append(_section("difference", f"Difference from {strategy}"))
    sections.append(_section("more", section(task), shown=False))  # where MLflow's page puts all other metrics
    return _view(key, f"{task} against length", f"{_of_kind('curve')} AND params.task = '{task}'", charts, sections)


def _parallel(scores: Sequence[Score], options: Mapping[str, Sequence[str]]) -> View:
    # A run without one of the columns is not drawn; so each strategy's own options have a chart of their own.
    columns = {"every strategy": ["strategy", "length"]}
    columns |= {strategy: [*names, "length"] for strategy, names in options.items()}
    charts = [
        {
            **_chart("PARALLEL", f"{name}-{score.metric}", f"{score.title}: {name}", "options"),
            "selectedParams": params,
            "selectedMetrics": [score.metric],
            "showAllRuns": True,
        }
        for name, params in columns.items()
        for score in scores
        if score.of_cells
    ]
    sections = [_section("options", "A line a cell", columns=2)]
    return _view("ropewalk-options", "Options and scores", _of_kind("cell"), charts, sections)


def _of_kind(kind: str) -> str:
    return f"tags.`ropewalk.kind` = '{kind}'"


def _view(key: str, name: str, search: str, charts: Sequence[Mapping[str, Any]], sections: Sequence[Any]) -> View:
    state = {
        "searchFilter": search,
        # In any other order than by name, runs below a sweep's are folded away.
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
        "lifecycleFilter": "Active",
        "startTime": "ALL",
        "runsHiddenMode": "SHOW_ALL",
        "runListHidden": True,  # room for the charts, whose legends name the runs
        "selectedColumns": [],
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunCharts": charts,
        "compareRunSections": sections,
    }
    return View(key, name, state)


def _chart(kind: str, key: str, title: str, section_id: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"ropewalk-{key}",
        "displayName": title,
        "metricSectionId": section_id,
        "runsCountToCompare": ALL,
        "deleted": False,
        "isGenerated": False,
    }


def _section(key: str, name: str, *, columns: int = 1, shown: bool = True) -> dict[str, Any]:
    fixed = {"isReordered": True, "deleted": False, "isGenerated": False, "cardHeight": 420}
    return {"uuid": key, "name": name, "display": shown, "columns": columns, **fixed}
