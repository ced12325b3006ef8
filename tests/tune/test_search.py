"""The search itself, on a made-up measure: one seed, one search; screening; two aims; what mattered."""

from __future__ import annotations

import math

import matplotlib
import pytest
from matplotlib import pyplot

from pipelines.records.cells import Refusal
from pipelines.report import drawing
from pipelines.tune.search import REDUCTION, SearchSettings, Trial, TrialOutcome, figures, front, importances, search
from pipelines.tune.space import seeds, space_of
from rope.geometry import Geometry

TINY = Geometry(64, 10_000.0, 512)
RUNGS = (2, 5, 16)
SPACE = space_of(
    "yarn", {}, {"beta_fast": "4..128", "beta_slow": "0.125..4", "attention_factor": "0.9..1.5"}, TINY, 4096
)


class Bowl:
    """The best is beta_fast = 16, whatever beta_slow; more documents shift every value alike."""

    def __init__(self, **bad):
        self.bad, self.calls = bad, []

    def __call__(self, trials, rung):
        self.calls.append((rung, [trial.number for trial in trials]))
        return [self.one(trial, rung) for trial in trials]

    def one(self, trial, rung):
        if str(trial.number) in self.bad.get("status", {}):
            status = self.bad["status"][str(trial.number)]
            return TrialOutcome(status, 9.0 if status == "diverged" else None, error="why")
        off = math.log(trial.values["beta_fast"] / 16) ** 2 + 0.01 * trial.values["attention_factor"]
        return TrialOutcome(
            "ok", 3 + off + 0.1 * rung, cost=trial.values["attention_factor"], cells=(f"{trial.number}.{rung}",)
        )


def searched(measure=None, **settings):
    return list(search(SPACE, SearchSettings(**settings), RUNGS, measure or Bowl(), seeds(SPACE, TINY, 4096)))


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2"])
@pytest.mark.parametrize("batch", [1, 4])
def test_one_seed_gives_one_search_and_another_another(sampler, batch):
    first, again = (searched(sampler=sampler, seed=7, batch=batch) for _ in range(2))
    other = searched(sampler=sampler, seed=8, batch=batch)
    assert [t.spec() for t in first] == [t.spec() for t in again]
    assert [t.values for t in first[1:]] != [t.values for t in other[1:]]
    assert first[0].values["beta_fast"] == 32.0  # it begins with the defaults


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_it_finds_what_is_there_and_screens_out_the_rest(sampler):
    found = searched(sampler=sampler, trials=40)
    done = [t for t in found if t.status == "complete"]
    best = min(done, key=lambda t: t.value)
    assert best.value < 3.3 < min(t.value for t in found[:1])
    assert all([n for n, _ in t.rungs] == list(RUNGS) for t in done)
    pruned = [t for t in found if t.status == "pruned"]
    assert len(pruned) > len(found) / REDUCTION and all(len(t.rungs) < 3 for t in pruned)


def test_a_trial_that_diverges_is_a_finding_and_the_search_goes_on():
    bad = {"1": "diverged", "2": "oom", "3": "invalid", "4": "failed"}
    found = searched(Bowl(status=bad))
    assert [t.status for t in found[1:5]] == ["diverged", "oom", "invalid", "failed"]
    assert found[1].value == 9.0 and found[2].value is None and found[2].error == "why"
    assert len(found) == 24 and any(t.status == "complete" for t in found[5:])


def test_a_batch_is_measured_at_once():
    measure = Bowl()
    searched(measure, trials=10, batch=4)
    screened = [numbers for rung, numbers in measure.calls if rung == 0]
    assert screened == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_of_two_aims_the_front_is_what_none_beats():
    def trial(number, value, cost, status="complete"):
        return Trial(number, {}, {}, [(5, value)], cost, status)

    trials = [
        trial(0, 1, 5),
        trial(1, 2, 2),
        trial(2, 3, 3),
        trial(3, 4, 1),
        trial(4, 0, 0, "diverged"),
        trial(5, 1, 5),
    ]
    assert [t.number for t in front(trials)] == [0, 1, 3]
    found = searched(sampler="nsga2", trials=24, batch=8)
    assert all(t.rungs[0][0] == RUNGS[1] and t.cost is not None for t in found)


def test_what_mattered_is_reported_unless_there_are_too_few_trials():
    shares = importances(SPACE, searched(trials=40))
    assert max(shares, key=shares.get) == "beta_fast" and sum(shares.values()) == pytest.approx(1)
    assert importances(SPACE, searched(trials=5)) == {}


def test_every_search_has_its_slices_and_others_figures_where_there_is_enough_for_them(tmp_path):
    aims = ("nll at 4,096", "nll at 512")
    style = dict(matplotlib.rcParams)
    for count, sampler, names in (
        (40, "tpe", {"slices.png", "importance.png"}),
        (5, "tpe", {"slices.png"}),
        (24, "nsga2", {"slices.png", "importance.png", "pareto.png"}),
    ):
        trials = searched(trials=count, sampler=sampler)
        for trial in trials:
            trial.cost = trial.cost if sampler == "nsga2" else None
        drawn = figures(SPACE, trials, "nll over 2 documents", aims)
        assert set(drawn) == names
        for name, draw in drawn.items():
            assert drawing.save(draw, "a title", tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert figures(SPACE, [], "nll", aims) == {}
    assert dict(matplotlib.rcParams) == style, "another library's style stays with its figures"
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("setting", "says"), [({"sampler": "luck"}, "tpe, cmaes, nsga2"), ({"trials": 0}, "at least 1")]
)
def test_settings_out_of_their_range_are_refused(setting, says):
    with pytest.raises(Refusal, match=says):
        SearchSettings(**setting)
