"""The recommendation and what it stands on, on constructed results: short costs, pairs, documents that it takes."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from support import CELL

from pipelines.records.cells import Result, Task
from pipelines.report import pairs, power, short, statistics
from pipelines.report.recommend import recommend, with_overrides
from pipelines.tasks.kinds import Measure
from rope.geometry import ALL_LAYERS, Plan

TARGET = 2048
PASSKEY = Task("passkey")


def rows(length=TARGET, count=12, task=CELL.task, width=0.01, **shifts):
    """A result a strategy: NLL of crop and a shift (of passkey 1 - shift of the keys), with noise of `width`."""
    made = []
    for number, (strategy, shift) in enumerate(shifts.items()):
        name, _, factor = strategy.partition("_at_")
        noise = width * np.random.default_rng(number).uniform(-1, 1, count)
        noise -= noise.mean()
        same = length <= 512 and not factor  # at the trained length all are the plain model
        plan = (
            (
                ALL_LAYERS,
                Plan((1.0, 0.5 if same else 0.01 * hash_of(strategy))),
            ),
        )
        options = (("factor", float(factor)),) if factor else ()
        cell = replace(CELL, strategy=name, options=options, plans=plan, length=length, task=task)
        value = {"nll": 3 + shift} if task.name == "perplexity" else {"acc": 1 - shift}
        [(measure, mean)] = value.items()
        documents = [
            {"index": n, "tokens": length, "key_number": n, measure: float(mean + (noise[n] if shift else 0.0))}
            for n in range(count)
        ]
        digest = f"{task.name} {length} {count}"
        made.append((cell, Result(cell.id, "ok", {measure: mean}, documents=documents, digest=digest)))
    return made


def hash_of(text):
    return 1 + sum(map(ord, text))


def deployed(cost, strategy="yarn"):
    """What the factor of the target costs at the trained length, beside the plain model there."""
    return rows(512, crop=0.0, **{f"{strategy}_at_4": cost})


def test_a_strategy_that_gains_and_costs_little_is_recommended_with_its_numbers_and_the_command_that_deploys_it():
    found = recommend([*rows(crop=0.0, none=2.0, yarn=-0.05), *deployed(0.01)])
    assert (found.kind, found.choice, found.target) == ("use", "yarn", TARGET)
    assert len(found.sentences) == 2
    assert "use yarn: worth +4.9 % [" in found.sentences[0] and "of perplexity over cropping" in found.sentences[0]
    assert found.sentences[1].startswith("It costs 1.0 % [") and "deployed for 2,048" in found.sentences[1]
    assert found.command.startswith("ropewalk export model=tiny strategy=yarn length=2048 --to ")
    assert found.gain.gain == pytest.approx(1 - math.exp(-0.05), abs=0.005)
    assert found.cost.share == pytest.approx(math.exp(0.01) - 1, abs=0.005)


def test_a_strategy_that_costs_more_than_allowed_is_not_recommended_and_another_one_is():
    dear = [*rows(crop=0.0, yarn=-0.2, linear=-0.05), *deployed(0.1)]
    found = recommend([*dear, *deployed(0.01, "linear")[1:]])
    assert (found.kind, found.choice) == ("use", "linear")
    found = recommend([*rows(crop=0.0, yarn=-0.2), *deployed(0.1)])
    assert found.kind == "none" and "costs more than 2 % at short lengths" in found.sentences[0]
    assert recommend([*rows(crop=0.0, yarn=-0.2), *deployed(0.1)], max_short_cost=0.2).choice == "yarn"


def test_of_strategies_that_do_not_differ_the_one_that_most_engines_express_is_recommended_then_the_simplest():
    same = [*rows(crop=0.0, self_extend=-0.1, yarn=-0.0999), *deployed(0.01)]
    found = recommend(same)
    assert found.choice == "yarn" and "no less by more than chance than self_extend" in found.sentences[0]
    assert recommend([*rows(crop=0.0, self_extend=-0.2, yarn=-0.1), *deployed(0.01)]).choice == "self_extend"
    assert recommend(rows(crop=0.0, yarn=-0.1, linear=-0.0999)).choice == "linear"


def test_where_nothing_gains_none_is_recommended():
    found = recommend(rows(crop=0.0, none=2.0, yarn=0.2, linear=0.5), command="ropewalk grid")
    assert (found.kind, found.choice, found.command) == ("none", None, "")
    assert "yarn comes closest, -22.1 % [" in found.sentences[0]
    lost = recommend(rows(count=6, crop=0.0, none=2.0, yarn=0.2))  # too few for p < 0.05, and no gain all the same
    assert lost.kind == "none"


@pytest.mark.parametrize(
    ("count", "width", "wanted"), [(5, 0.01, r"limit=7$"), (12, 0.15, r"limit=\d\d$")], ids=["none can be", "wide"]
)
def test_too_few_documents_are_an_answer_with_the_command_that_has_enough(count, width, wanted):
    typed = "ropewalk grid strategy=none,crop,yarn length=2048 limit=5"
    found = recommend(rows(count=count, width=width, crop=0.0, none=2.0, yarn=-0.04), command=typed)
    assert found.kind == "more documents" and "not enough documents" in found.sentences[0]
    assert re.search(rf"^ropewalk grid strategy=none,crop,yarn length=2048 {wanted}", found.command)
    assert int(found.command.rpartition("=")[2]) > count


def test_of_keys_the_command_asks_for_more_keys():
    found = recommend(rows(count=2, task=PASSKEY, crop=0.5, yarn=0.0))
    assert found.kind == "more documents" and found.command == "ropewalk grid task.keys=6 limit=6"


def test_what_another_task_shows_to_be_broken_is_not_recommended():
    broken = rows(task=PASSKEY, crop=0.0, none=0.0, yarn=0.9, linear=0.0)
    found = recommend([*rows(crop=0.0, none=2.0, yarn=-0.2, linear=-0.1), *broken])
    assert found.choice == "linear"
    found = recommend([*rows(crop=0.0, none=2.0, yarn=-0.2), *broken])
    assert found.kind == "none" and "passkey shows it to be broken" in found.sentences[0]


def test_what_decides_and_was_not_measured_is_asked_for():
    found = recommend(rows(none=2.0, yarn=0.1), command="ropewalk grid strategy=none,yarn length=2048")
    assert found.kind == "incomplete" and found.command == "ropewalk grid length=2048 strategy=none,yarn,crop"
    assert recommend(rows(512, none=0.0, crop=0.0)).kind == "incomplete"
    assert recommend([]).kind == "incomplete"


def test_a_command_takes_each_key_once():
    assert with_overrides("ropewalk grid limit=2 length=8 task.limit=3", {"limit": "9"}) == (
        "ropewalk grid length=8 task.limit=3 limit=9"
    )


# ------------------------------------------------------------------------------------------------- costs and pairs


def test_short_cells_are_no_rows_of_their_own_but_what_was_asked_for_is():
    everything = [*rows(yarn=0.1), *rows(512, none=0.0, yarn_at_4=0.1)]
    asked, only_short = short.apart(everything, 512)
    assert [cell.strategy_label for cell, _ in only_short] == ["yarn factor=4.0"] and len(asked) == 2
    given = [*rows(yarn_at_4=0.1), *rows(512, none=0.0, yarn_at_4=0.1)]  # as with factor=4 length=512,2048
    assert short.apart(given, 512) == (given, [])
    [cost] = short.short_costs(given, "ppl", 512)
    assert (cost.strategy, cost.target, cost.length) == ("yarn factor=4.0", TARGET, 512) and cost.share > 0.09


def test_what_is_the_plain_model_at_short_lengths_by_construction_costs_nothing_without_a_cell():
    found = short.short_costs([*rows(dynamic_ntk=0.1, yarn=0.1, streaming=0.0), *rows(512, none=0.0)], "ppl", 512)
    assert {one.strategy: one.share for one in found} == {"dynamic_ntk": 0.0, "streaming": 0.0}  # yarn: not measured


def test_every_pair_that_matters_is_tested_once_and_counted_before():
    everything = [*rows(none=2.0, crop=0.0, yarn=0.1, linear=0.5), *deployed(0.1)]
    found = [(one.kind, one.gain.cell.strategy, one.gain.crop.strategy) for one in pairs.pairs(everything, "ppl", 512)]
    assert found == [
        ("baseline", "crop", "none"),
        ("baseline", "yarn", "none"),
        ("baseline", "linear", "none"),
        ("crop", "none", "crop"),
        ("crop", "yarn", "crop"),
        ("crop", "linear", "crop"),
        ("runner-up", "yarn", "linear"),
        ("short", "yarn", "crop"),
    ]
    cells = [(cell, None) for cell, _ in everything]
    assert pairs.counted(cells, 512) == {"baseline": 3, "crop": 3, "runner-up": 1, "short": 1}


# ----------------------------------------------------------------------------------------------------------- power


@pytest.mark.parametrize("comparisons", [1, 8])
def test_the_documents_that_are_enough_find_the_effect_as_often_as_promised(comparisons):
    spread, effect = 0.03, 0.02
    count = power.units_for(effect, spread, comparisons)
    random = np.random.default_rng(0)
    samples, signs = random.normal(effect, spread, (count, 500)), random.choice([-1.0, 1.0], (8000, count))
    p = (np.abs(signs @ samples) >= np.abs(samples.sum(0))).mean(0)  # the sign-flip test
    assert 0.74 < (p < statistics.ALPHA / comparisons).mean() < 0.88


def test_a_grid_is_told_what_its_documents_can_show_and_how_many_are_enough():
    cells = [replace(cell, limit=9) for cell, _ in rows(none=2.0, crop=0.0, yarn=0.1)]
    [need] = power.needs(cells, [])
    assert (need.given, need.least) == (9, statistics.needed(2)) and need.spread == power.SPREAD[True]
    assert need.enough == power.units_for(-math.log(0.98), need.spread, 2)
    assert f"2 % of perplexity take {need.enough}" in need.sentence and "9 show differences from" in need.sentence
    [need] = power.needs([replace(cell, limit=2) for cell in cells], [])
    assert "2 can show nothing" in need.sentence


def test_the_spread_is_that_of_close_earlier_results_of_the_same_task_text_and_model():
    earlier = rows(crop=0.0, yarn=0.02, linear=3.0)
    measure = Measure("nll", lower=True, exp="perplexity")
    spread, basis = power.spread_of(CELL, measure, earlier)
    ours, crop = ([d["nll"] for d in earlier[n][1].documents] for n in (1, 0))
    assert spread == pytest.approx(float(np.std(np.subtract(ours, crop), ddof=1))) and "1 earlier pair," in basis
    assert power.spread_of(replace(CELL, data="another text"), measure, earlier)[0] == power.SPREAD[True]
