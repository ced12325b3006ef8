"""What a factor costs at short lengths once it is deployed: the cells that measure it, beside those of a grid.

Where no factor is given it follows the length, so that at the trained length every strategy is the plain model. A
server has one factor for all its texts. So a strategy that is measured at 32,768 is measured at a short length too,
under the factor of 32,768. Crop, streaming and other strategies without a factor do at a short length what a grid
measures there; one whose plan at the short length is the plain one whatever the factor (dynamic_ntk) costs nothing, and
takes no cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from pipelines.choices.config import NO_LENGTHS, Workbench, short_lengths
from pipelines.choices.sweep import Once, geometry_for, model_of, planned_of, trained_length_of
from pipelines.records.cells import Cell, Options, Refusal, frozen
from rope import strategies

PLAIN = "none"
"""The strategy that a deployed one is held against."""


@dataclass(frozen=True)
class Addition:
    """A choice that a grid needs besides those given.

    parent: the number of the one that it was made from; overrides: by which it differs, as on the command line.
    """

    choice: Workbench
    parent: int
    overrides: tuple[str, ...]


def additions(choices: Sequence[Workbench]) -> list[Addition]:
    """The choices that measure what the factors of these cost at short lengths, as their `short` says: by `auto` at the
    trained length alone, under the factor of each strategy's longest length.

    Raises:
        Refusal: `short` lists a length beyond a trained one.
    """
    groups: dict[str, list[int]] = {}
    for number, choice in enumerate(choices):
        if choice.short != NO_LENGTHS and "factor" in _options(choice):
            groups.setdefault(repr(replace(choice, length=0)), []).append(number)
    present = {_place(choice) for choice in choices} if groups else set[str]()
    found: dict[str, Addition] = {}
    once = Once()
    for numbers in groups.values():
        for addition in _of_one(choices, numbers, once):
            if (place := _place(addition.choice)) not in present:
                found.setdefault(place, addition)
    if not found:
        return []
    # what they are held against; cropping is the plain model at short lengths
    plains = {_place(_plain(choice)) for choice in choices if choice.strategy["name"] in (PLAIN, "crop")}
    for addition in list(found.values()):
        plain = _plain(addition.choice)
        if (place := _place(plain)) not in plains:
            found.setdefault(place, Addition(plain, addition.parent, (f"strategy={PLAIN}", f"length={plain.length}")))
    return list(found.values())


def _of_one(choices: Sequence[Workbench], numbers: Sequence[int], once: Once) -> list[Addition]:
    """Those of one strategy with its options, given by its choices of several lengths."""
    first = choices[numbers[0]]
    try:
        trained = trained_length_of(model_of(first.model))
    except Refusal:
        return []  # said of the choices themselves
    listed = short_lengths(first)
    if listed and max(listed) > trained:
        raise Refusal(f"short={max(listed)}: give lengths up to the {trained:,} tokens that the model was trained on")
    targets = sorted((choices[n].length, n) for n in numbers if choices[n].length > trained)
    found = []
    for target, number in targets[-1:] if listed is None else targets:
        for length in (trained,) if listed is None else listed:
            factor = first.strategy.get("factor") or first.factor or target / trained
            choice = replace(choices[number], length=length, factor=factor)
            if not _is_free(choice, once):
                found.append(Addition(choice, number, (f"length={length}", f"factor={factor}")))
    return found


def _is_free(choice: Workbench, once: Once) -> bool:
    """Whether a strategy's plan is the plain one, or there is none."""
    try:
        return planned_of(choice, once).plans == planned_of(_plain(choice), once).plans
    except Refusal:
        return True


def _options(choice: Workbench) -> dict[str, object]:
    try:
        return strategies.options_of(str(choice.strategy["name"]))
    except ValueError:
        return {}  # said of the choice itself


def _place(choice: Workbench) -> str:
    """What tells choices apart; a factor may be given in two ways."""
    strategy = {**choice.strategy}
    factor = strategy.pop("factor", None) or choice.factor
    return repr(replace(choice, strategy=dict(sorted(strategy.items())), factor=factor))


def _plain(choice: Workbench) -> Workbench:
    """A choice with the plain model in place of its strategy."""
    return replace(choice, strategy={"name": PLAIN}, factor=None)


@lru_cache(maxsize=1024)
def is_free(cell: Cell, length: int) -> bool | None:
    """Whether a cell's strategy, deployed for the cell's length, is the plain model at a short one: by construction, so
    that nothing need be measured. None where its model is not here."""
    try:
        _, _, geometries = geometry_for(cell.model)
        options = dict(pinned(cell, trained_length_of(cell.model))[1])
        plain = strategies.plans(PLAIN, geometries, length)
        return strategies.plans(cell.strategy, geometries, length, **options) == plain
    except ValueError:  # a Refusal among them
        return None


def pinned(cell: Cell, trained: int) -> tuple[str, Options]:
    """The strategy with its options as it is deployed for the cell's length: its factor does not follow another one.

    trained: tokens.
    """
    options = dict(cell.options)
    try:
        if "factor" in strategies.options_of(cell.strategy) and options.get("factor") is None:
            options["factor"] = cell.length / trained
    except ValueError:  # a strategy that is no longer there
        pass
    return cell.strategy, frozen(options)
