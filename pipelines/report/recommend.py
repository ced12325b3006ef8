"""Results -> what to deploy, or why nothing is said to be: a pure function, in sentences with their numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pipelines.choices.deployed import PLAIN
from pipelines.choices.sweep import geometry_for
from pipelines.records.cells import Cell, Refusal, option_text
from pipelines.records.phases import timed
from pipelines.records.places import CONF
from pipelines.report import amounts, curves, power, statistics
from pipelines.report.curves import Results
from pipelines.report.gain import CROP, Gain, gains
from pipelines.report.short import ShortCost, apart, short_costs, trained_or_none
from pipelines.report.tables import headlines
from pipelines.tasks import registry
from rope.dialects import ENGINES, deploy
from rope.strategies import CROPS_TEXT, STRATEGIES

MAX_SHORT_COST = 0.02
"""What a deployed strategy may cost at short lengths: a share of perplexity, or of the score's range."""

LARGEST = 16
"""A grid is not asked for again where it would take more than so many times its documents."""

SMALLEST = 0.01
"""A gain that can hardly be as large, by its interval, is none that is worth more documents."""

Kind = Literal["use", "none", "more documents", "incomplete"]
"""use: `choice` is worth more than cropping. none: nothing that was measured is. more documents: there are too few to
tell; `command` says how many. incomplete: what decides was not measured (no crop, no length beyond the trained one)."""


@dataclass(frozen=True)
class Recommendation:
    """The answer that results of one model give.

    kind: which answer it is. choice: the strategy with its options (Cell.strategy_label) to deploy; None: none of them.
    sentences: the answer with its numbers: what to do, and why or what it costs. command: what to type next: the
    export of the choice, or the grid that would tell; "" where there is nothing to do. model, task, target: whose
    answer it is, and for how many tokens; None: there is no length beyond the trained one. gain: of the choice, or of
    what comes closest, over cropping. cost: of the choice at short lengths; None: not measured.
    """

    kind: Kind
    choice: str | None
    sentences: tuple[str, ...]
    command: str = ""
    model: str = ""
    task: str = ""
    target: int | None = None
    gain: Gain | None = None
    cost: ShortCost | None = None


def recommend(
    rows: Results, *, max_short_cost: float = MAX_SHORT_COST, command: str = "ropewalk grid"
) -> Recommendation:
    """What the results of one model say to deploy at their longest length.

    The task that decides is the first of which strategies are compared with cropping. Best by context gain there, of
    those that cost at most `max_short_cost` at short lengths when deployed, and that no other task shows to be broken;
    among those that do not differ from the best by more than chance the one that most engines express, and of these
    the simplest: the first of rope.strategies.STRATEGIES, with the fewest options.

    rows: of one model; of several, those of the first. command: what measured them; the command of an answer is made
    of it.
    """
    model = rows[0][0].model.name if rows else ""
    if not rows:
        return Recommendation("incomplete", None, ("Nothing is recommended: nothing was measured.",))
    rows = [row for row in rows if row[0].model.name == model]
    trained = trained_or_none(rows[0][0])
    by_task = {task: group for (_, task), group in curves.by_task(rows).items()}
    target = max(cell.length for cell, _ in rows)
    if trained is None or target <= trained:
        why = "the model is not here" if trained is None else f"no length beyond the trained {trained:,} was measured"
        return Recommendation("incomplete", None, (f"{model}: nothing is recommended: {why}.",), "", model)
    compared = {task: _at(group, target, trained) for task, group in by_task.items()}
    decides = next((task for task, found in compared.items() if found), None)
    if decides is None:
        return _incomplete(rows, model, target, command)
    broken = {
        one.cell.strategy_label: task
        for task, found in compared.items()
        if task != decides
        for one in found
        if one.verdict == "broken" and one.significant
    }
    return _Answer(model, decides, target, trained, by_task[decides], compared[decides], broken).given(
        max_short_cost, command
    )


@timed("recommendations")
def recommendations(
    rows: Results, *, max_short_cost: float = MAX_SHORT_COST, command: str = "ropewalk grid"
) -> list[Recommendation]:
    """One answer a model, as `recommend`."""
    models = curves.grouped(rows, lambda cell: cell.model.name)
    return [recommend(of_one, max_short_cost=max_short_cost, command=command) for of_one in models.values()]


def _metric(rows: Results) -> str | None:
    return next(iter(headlines(rows[0][0].task.name, rows)), None)


def _at(rows: Results, target: int, trained: int) -> list[Gain]:
    """The gains over cropping at the target of everything but the plain model; p adjusted among those of the table."""
    asked, _ = apart(rows, trained)
    found = gains(asked, _metric(rows))
    return [one for one in found if one.cell.length == target and one.cell.strategy != PLAIN and not one.refusal]


def _incomplete(rows: Results, model: str, target: int, command: str) -> Recommendation:
    names = list(dict.fromkeys(cell.strategy for cell, _ in rows))
    if CROP in names:
        why = f"at {target:,} tokens no result compares with that of crop"
        return Recommendation("incomplete", None, (f"{model}: nothing is recommended: {why}.",), "", model, "", target)
    said = f"{model}: nothing is recommended: whether the far text is worth anything takes crop among the strategies."
    typed = with_overrides(command, {"strategy": ",".join([*names, CROP])})
    return Recommendation("incomplete", None, (said,), typed, model, "", target)


@dataclass(frozen=True)
class _Answer:
    """What the answer for one model is made of. found: gains at the target. broken: strategies that another task shows
    to be broken, with that task."""

    model: str
    task: str
    target: int
    trained: int
    rows: Results
    found: Sequence[Gain]
    broken: dict[str, str]

    def given(self, max_short_cost: float, command: str) -> Recommendation:
        useful = [one for one in self.found if one.verdict == "useful"]
        costs = self._costs()
        dear = [one for one in useful if (self._cost(costs, one) or 0.0) > max_short_cost]
        fit = [one for one in useful if one not in dear and one.cell.strategy_label not in self.broken]
        if fit:
            return self._use(fit, costs, command)
        best = max(self.found, key=lambda one: one.gain)
        if useful:
            return self._too_dear(max(useful, key=lambda one: one.gain), costs, max_short_cost)
        count = self._documents(best)
        if count is not None:
            return self._more(best, count, command)
        return self._none(best)

    def _costs(self) -> dict[str, ShortCost]:
        """The dearest short cost of each strategy when it is deployed for the target."""
        found: dict[str, ShortCost] = {}
        for one in short_costs(self.rows, _metric(self.rows), self.trained):
            if one.target == self.target and one.share is not None:
                known = found.get(one.strategy)
                if known is None or (known.share or 0.0) < one.share:
                    found[one.strategy] = one
        return found

    @staticmethod
    def _cost(costs: dict[str, ShortCost], gain: Gain) -> float | None:
        cost = costs.get(gain.cell.strategy_label)
        return None if cost is None else cost.share

    def _use(self, fit: Sequence[Gain], costs: dict[str, ShortCost], command: str) -> Recommendation:
        best = max(fit, key=lambda one: one.gain)
        ties = [one for one in fit if one is best or not self._differs(best, one, len(fit) - 1)]
        chosen = min(ties, key=lambda one: _preference(one.cell))
        label = chosen.cell.strategy_label
        cost = costs.get(label)
        first = f"{self._head} use {label}: worth {amounts.amount(chosen)} over cropping to {self.trained:,} tokens"
        if chosen is not best:
            first += f", no less by more than chance than {best.cell.strategy_label} ({amounts.value(best)})"
        elif len(ties) > 1:
            others = ", ".join(f"{one.cell.strategy_label} {amounts.value(one)}" for one in ties if one is not chosen)
            first += f"; {others} may be as good, but is less simple or runs in fewer engines"
        typed = export_command(chosen.cell)
        engines = engines_of(chosen.cell)
        where = f"{len(engines)} engines express it ({', '.join(engines)})" if engines else "no engine expresses it"
        second = f"{_cost_sentence(cost)}; {where}."
        return self._answer("use", label, (f"{first}.", second), typed, chosen, cost)

    def _differs(self, best: Gain, other: Gain, family: int) -> bool:
        """Whether the best is better than another one by more than chance, among so many comparisons."""
        rows = {cell.id: (cell, result) for cell, result in self.rows}
        found = statistics.compare(rows[best.cell.id], rows[other.cell.id], _metric(self.rows))
        return found.p is not None and found.p * family < statistics.ALPHA

    def _too_dear(self, best: Gain, costs: dict[str, ShortCost], most: float) -> Recommendation:
        label = best.cell.strategy_label
        cost = costs.get(label)
        first = f"{self._head} none of them: {label} is worth {amounts.amount(best)} over cropping,"
        if label in self.broken:
            first += f" but {self.broken[label]} shows it to be broken there."
        else:
            first += f" but costs more than {100 * most:g} % at short lengths (report.max_short_cost)."
        second = f"{_cost_sentence(cost)}; crop the texts, or serve it for long ones alone."
        return self._answer("none", None, (first, second), "", best, cost)

    def _documents(self, best: Gain) -> int | None:
        """How many documents would show the best gain, if it is one; None where it is none, or takes too many."""
        comparisons = len({one.cell.id for one in self.found})
        if best.high is not None and best.high < SMALLEST:
            return None
        least = statistics.needed(_family(self.rows, self.trained))
        if best.count < least:
            return least
        if best.gain <= 0 or best.measure is None:
            return None
        rows = {cell.id: (cell, result) for cell, result in self.rows}
        differences = statistics.paired(rows[best.cell.id], rows[best.crop.id], _metric(self.rows))
        count = power.units_for(abs(float(differences.mean())), float(differences.std(ddof=1)), comparisons)
        return count if best.count < count <= LARGEST * best.count else None

    def _more(self, best: Gain, count: int, command: str) -> Recommendation:
        units = best.measure.units if best.measure else "documents"
        options, limit = registry.kind(self.task).enlarged(count)
        overrides = {**{f"task.{name}": str(value) for name, value in options.items()}, "limit": str(limit)}
        first = (
            f"{self._head} not enough {units}: {best.cell.strategy_label} comes closest, {amounts.amount(best)} over "
            f"cropping, which {best.count} {units} do not tell from chance."
        )
        second = f"About {count} would; those that are there already are not computed again. Run:"
        return self._answer("more documents", None, (first, second), with_overrides(command, overrides), best)

    def _none(self, best: Gain) -> Recommendation:
        first = (
            f"{self._head} none of them: no gain over cropping to the last {self.trained:,} tokens is shown; "
            f"{best.cell.strategy_label} comes closest, {amounts.amount(best)}."
        )
        second = "Crop the texts, fine-tune (ropewalk train), or search for options (ropewalk tune)."
        return self._answer("none", None, (first, second), "", best)

    @property
    def _head(self) -> str:
        return f"{self.model} at {self.target:,} tokens, by {self.task}:"

    def _answer(
        self,
        kind: Kind,
        choice: str | None,
        sentences: tuple[str, ...],
        command: str,
        gain: Gain,
        cost: ShortCost | None = None,
    ) -> Recommendation:
        return Recommendation(kind, choice, sentences, command, self.model, self.task, self.target, gain, cost)


def _family(rows: Results, trained: int) -> int:
    """Comparisons with cropping among which p is adjusted."""
    asked, _ = apart(rows, trained)
    return max(1, len({one.cell.id for one in gains(asked, _metric(rows))}))


def _cost_sentence(cost: ShortCost | None) -> str:
    if cost is None:
        return "What it costs at short lengths was not measured (short=auto)"
    where = f"at {cost.length:,} tokens when deployed for {cost.target:,}"
    if cost.gain is None:
        return f"It costs nothing {where}, where it is the plain model"
    if cost.gain.gain >= 0:
        return f"It costs nothing {where} ({amounts.amount(cost.gain)})"
    return f"It costs {amounts.cost_in_words(cost.gain)} {where}"


def _preference(cell: Cell) -> tuple[int, int, int]:
    """Less is better: engines that do not express it, its place among the strategies, its options."""
    names = list(STRATEGIES)
    place = names.index(cell.strategy) if cell.strategy in names else len(names)
    return len(ENGINES) - len(engines_of(cell)), place, len(cell.options)


@lru_cache(maxsize=256)
def engines_of(cell: Cell) -> tuple[str, ...]:
    """The engines that express a cell's strategy on its model; () where the model is not here."""
    try:
        _, config, geometries = geometry_for(cell.model)
    except Refusal:
        return ()
    found = []
    for engine in ENGINES:
        try:
            deploy(engine, config, cell.strategy, dict(cell.options), geometries, cell.length)
        except ValueError:
            continue
        found.append(engine)
    return tuple(found)


def export_command(cell: Cell) -> str:
    """The command that writes what the first engine that can takes; "" where none can, or nothing is to be written."""
    engines = [engine for engine in engines_of(cell) if cell.strategy not in CROPS_TEXT]
    if not engines:
        return ""
    known = (CONF / "model" / f"{cell.model.name}.yaml").is_file()
    engine = next((name for name in ("vllm", *engines) if name in engines), engines[0])
    parts = [f"model={cell.model.name if known else cell.model.path}", f"strategy={cell.strategy}"]
    parts += [f"strategy.{name}={option_text(value)}".replace(" ", "") for name, value in cell.options]
    return " ".join(["ropewalk export", *parts, f"length={cell.length}", f"--to {engine}"])


def with_overrides(command: str, overrides: dict[str, str]) -> str:
    """A command with other values of some keys.

    >>> with_overrides("ropewalk grid limit=2 length=512", {"limit": "9"})
    'ropewalk grid length=512 limit=9'
    """
    for key in overrides:
        command = re.sub(rf" '?{re.escape(key)}=\S+", "", command)
    return " ".join([command, *(f"{key}={value}" for key, value in overrides.items())])
