"""An experiment's own page in MLflow: its saved views, what it says of itself, and the colours of its curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.records.results import Store
from pipelines.report import palette
from pipelines.tasks import registry
from pipelines.tasks.kinds import HIGHER
from pipelines.track.curve_runs import IS_CURVE
from pipelines.track.database import last_tagged, now, pages, tracking_uri
from pipelines.track.views import GAIN, LINES, TAG, Score, section, views

NOTE = "mlflow.note.content"
LAST = "ropewalk.last_sweep"
"""When the last of its sweeps began, in milliseconds."""

HEAD = "Which RoPE scaling keeps the model useful beyond its trained length?"
"""A note that begins so is ours, and written anew; any other is the user's."""

IN_NAMES = {
    "model": "{}",
    "task.text": "of {}",
    "limit": "limit {}",
    "seed": "seed {}",
    "dtype": "{}",
    "device": "{}",
}
"""Parameters in which curves of one strategy and task differ, and how their names say so."""

BODY = """
Open a saved view (above, or `ropewalk ui`): **... against length** has a line a strategy and the difference from the
baseline; **Options and scores** has a line a cell.

To list them, search for ``tags.`ropewalk.kind` = 'curve'``, `cell` or `sweep`:

| runs | what they are |
|---|---|
| curve | a strategy's scores by length, of all grids in the store |
| cell | model x strategy x length x task: its numbers, config and result |
| sweep | a launch of a grid, above its cells; its page has report.html and figures |

- Perplexity: lower is better. Accuracy: higher is better.
- **gain over crop**: what the strategy is worth over throwing the far text away: 0.1 is 10 % less perplexity, or 0.1
  more accuracy; at or below 0 the far text is of no use.
- A difference may be chance: MLflow draws no intervals. The sweep's report.html and tables.md have them.
- The parameter **factor** is the one in effect; `strategy.factor` None means that it follows the length.
"""


def describe(client: Any, experiment: str, begun: int) -> None:
    """Write the tags of an experiment, given by its id, for the curves that it has; only what differs is written.

    begun: when the sweep began that was written just now, in milliseconds.
    """
    curves = pages(client, experiment, IS_CURVE)
    if not curves:
        return
    _name(client, curves)
    _colour(client, curves)
    scores = _scores(curves)
    tags = dict(view.tag(now()) for view in views(scores, _options(curves), _baselines(curves)))
    old = dict(client.get_experiment(experiment).tags)
    if old.get(NOTE, HEAD).startswith(HEAD):
        tags[NOTE] = f"{HEAD}\n{BODY}"
    if scores:
        tags["mlflow.experiment.primaryMetric.name"] = scores[0].by_length
        tags["mlflow.experiment.primaryMetric.greaterIsBetter"] = str(not scores[0].lower).lower()
    tags[LAST] = max(str(begun), old.get(LAST, ""))
    tags["mlflow.experimentKind"] = "custom_model_development"  # not MLflow's pages for prompts and traces
    for name in set(old) - set(tags):
        if name.startswith(f"{TAG}ropewalk-"):
            client.delete_experiment_tag(experiment, name)  # of a task that no grid has any more
    for name, value in tags.items():
        if not _same(old.get(name, ""), value):
            client.set_experiment_tag(experiment, name, value)


def _same(old: str, new: str) -> bool:
    """Whether two tags are alike but for the time in a view."""
    start = old.find('"state":')
    return old == new or (start >= 0 and old[start:] == new[new.find('"state":') :])


def _name(client: Any, curves: Sequence[Any]) -> None:
    """What the legend calls each curve: its strategy, and of all else only what curves of its task differ in."""
    values: dict[str, dict[str, set[str]]] = {}
    for run in curves:
        for name in IN_NAMES:
            values.setdefault(run.data.params["task"], {}).setdefault(name, set()).add(run.data.params.get(name, ""))
    for run in curves:
        params, among = run.data.params, values[run.data.params["task"]]
        parts = [
            text.format(params[name]) for name, text in IN_NAMES.items() if len(among[name]) > 1 and params.get(name)
        ]
        label = run.data.tags.get("strategy_label", params["strategy"])
        name = ", ".join([f"{label} {params['task']}" if len(values) > 1 else label, *parts])
        if run.info.run_name != name:
            client.update_run(run.info.run_id, name=name)


def _colour(client: Any, curves: Iterable[Any]) -> None:
    """The colour of each strategy, and a shade of it for each further choice of its options."""
    labels = {run.info.run_id: run.data.tags.get("strategy_label", run.data.params["strategy"]) for run in curves}
    styles = palette.styles(sorted(labels.values(), key=lambda label: (len(label.split()), label)))
    for run in curves:
        colour = styles[labels[run.info.run_id]].colour
        if run.data.tags.get("mlflow.runColor") != colour:
            client.set_tag(run.info.run_id, "mlflow.runColor", colour)


def _scores(curves: Iterable[Any]) -> list[Score]:
    """The headlines of each task, and what it is worth over cropping; of lm-eval's tasks the first score."""
    names: dict[str, dict[str, None]] = {}
    for run in curves:
        task = run.data.params["task"]
        prefix = f"{section(task)}/"
        there = (name.removeprefix(prefix) for name in run.data.metrics if name.startswith(prefix))
        names.setdefault(task, {}).update(dict.fromkeys(there))
    scores = []
    # Perplexities first, as the first chart is what one sees first: a score of few documents is coarse.
    for task in sorted(names, key=lambda task: (_coarse(task), task)):
        wanted = [*(registry.kind(task).headlines or [name for name in names[task] if name in HIGHER][:1]), GAIN]
        scores += [Score(task, name, _lower(task, name)) for name in wanted if name in names[task]]
    return scores


def _coarse(task: str) -> bool:
    measure = registry.kind(task).measure
    return measure is None or not measure.exp


def _lower(task: str, name: str) -> bool:
    measure = registry.kind(task).measure
    return name != GAIN and name not in HIGHER and (measure is None or measure.lower)


def _options(curves: Iterable[Any]) -> dict[str, list[str]]:
    """Of every strategy the options of which its curves have several values."""
    values: dict[str, dict[str, set[str]]] = {}
    for run in curves:
        own = values.setdefault(run.data.params["strategy"], {})
        for name, value in run.data.params.items():
            if name.startswith("strategy."):
                own.setdefault("factor" if name == "strategy.factor" else name, set()).add(value)
    varied = {strategy: sorted(name for name, of in own.items() if len(of) > 1) for strategy, own in values.items()}
    return {strategy: names for strategy, names in varied.items() if names}


def _baselines(curves: Sequence[Any]) -> dict[str, tuple[str, str]]:
    """Of each task what is compared with: `none`, else `crop`, else nothing; the newest curve of it."""
    found: dict[str, tuple[str, str]] = {}
    for strategy in ("none", "crop"):
        for run in sorted(curves, key=lambda run: -run.info.start_time):
            if run.data.params["strategy"] == strategy:
                found.setdefault(run.data.params["task"], (strategy, run.info.run_id))
    return found


def page(experiment: str) -> str:
    """The address of an experiment's saved view, below a server's; of "" that of all experiments."""
    mode = "workflowType=machine_learning&compareRunsMode=CHART"
    if not experiment:
        return "/#/experiments?workflowType=machine_learning"
    return f"/#/experiments/{experiment}/runs?{mode}&viewStateShareKey={LINES}"


def newest(store: Store) -> str:
    """The id of the experiment with a saved view whose last sweep is the newest; "" where there is none."""
    if tracking_uri(store).startswith("sqlite:"):
        return last_tagged(store, LAST)  # at once: importing MLflow takes seconds
    from mlflow import MlflowClient

    known = [one for one in MlflowClient(tracking_uri(store)).search_experiments() if LAST in one.tags]
    return str(max(known, key=lambda one: one.tags[LAST]).experiment_id) if known else ""
