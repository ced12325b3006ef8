"""ropewalk bench: what its parts make of measurements, and one real bench of the embedded model."""

from __future__ import annotations

import json
import time

import pytest
from support import ropewalk

from pipelines.bench import bench, parts, plans
from pipelines.choices.compose import expand
from pipelines.records.phases import Phase
from pipelines.records.refusal import Refusal


def test_a_waterfall_has_every_phase_of_every_process_and_the_time_before_its_first():
    noted = [
        Phase("texts", 103.0, 2.0, process=1, born=100.0),
        Phase("cell", 110.0, 4.0, process=2, born=104.0),
        Phase("cell", 115.0, 1.0, process=2, born=104.0),
        Phase("tables", 117.0, 0.5, process=1, born=100.0),
    ]
    assert list(parts.waterfall(noted, began=100.0, wall=18.0)) == [
        ("start and imports", "driver", "1", "0.0", "3.00"),
        ("texts", "driver", "1", "3.0", "2.00"),
        ("start and imports", "worker 1", "1", "4.0", "6.00"),
        ("cell", "worker 1", "2", "10.0", "5.00"),
        ("tables", "driver", "1", "17.0", "0.50"),
        ("all", "", "", "0.0", "18.00"),
    ]


def test_scorers_are_compared_and_what_memory_ended_has_no_number():
    def line(scorer, length, seconds, total):
        row = {"seconds": seconds, "bytes": 2**30, "sum": total, "flop": [4e12, 2e12]}
        return {"what": "scorer", "scorer": scorer, "length": length, **row}

    lines = [
        {"what": "ceilings", "device": "a card", "dtype": "bfloat16", "matmul": 4e12, "attention": 2e12},
        line("ours", 1024, 4.0, -100.0),
        line("stock", 1024, 8.0, -101.0),
        line("ours", 2048, 10.0, -200.0),
        {"what": "scorer", "scorer": "stock", "length": 2048, "flop": [4e12, 2e12], "oom": True},
    ]
    part = parts.scorer_part(lines)
    assert part.rows[1] == ("1,024", "stock", "8.000", "1.00", "25%", "2.00", "9.9e-03")
    assert part.numbers["ours_1024_share"] == pytest.approx(0.5)  # a second of each at the ceilings
    assert part.numbers["difference_1024"] == pytest.approx(1 / 101)
    assert part.rows[3][2] == "out of memory" and "stock_2048_s" not in part.numbers
    assert "ours: longest 2,048 tokens, longer ones were not tried" in part.said
    assert "stock: longest 1,024 tokens, out of memory beyond it" in part.said


def test_the_first_stock_cells_lie_far_apart_and_none_is_twice():
    assert bench.spread(8)[:2] == [0, 4] and sorted(bench.spread(13)) == list(range(13))


@pytest.mark.parametrize("count", [7, 1002])
def test_as_many_different_cells_are_planned_as_were_asked_for(count):
    from pipelines.choices.sweep import cells_of
    from pipelines.records.cells import distinct

    cells = cells_of(expand(plans.words(count, bench.DEFAULT)))
    assert len(distinct(cells)) == count


def test_a_word_replaces_that_of_its_key_and_an_unknown_one_is_refused():
    request = bench.asked(["length=512"], [1], 1.0)
    assert {choice.length for choice in request.choices} == {512} and len(request.choices) == 3
    with pytest.raises(Refusal):
        bench.asked(["lenght=512"], [1], 1.0)


def test_a_part_that_cannot_be_measured_says_why_and_the_others_run(tmp_path, monkeypatch, capsys):
    def fails(self):
        raise Refusal("there is no device")

    measured = {"start": fails, "plan": lambda self: parts.Part("plan", said=("measured",), numbers={"n": 1.0})}
    monkeypatch.setattr(bench, "PARTS", measured)
    recorded = {}
    monkeypatch.setattr(
        bench.track, "record_benchmark", lambda store, params, numbers, body: recorded.update(numbers) or "id"
    )
    request = bench.asked([f"store={tmp_path}"], [1], 1.0)
    assert bench.main(request, ["start", "plan"], as_json=True, command="ropewalk bench") == 1
    said = capsys.readouterr()
    assert "not measured: there is no device" in said.err and "measured" in said.err
    assert json.loads(said.out)["parts"]["plan"]["numbers"] == {"n": 1.0} and recorded == {"plan/n": 1.0}


def test_a_part_whose_time_is_over_ends_what_it_began_and_gives_what_it_measured(tmp_path, monkeypatch):
    asked = bench.Asked((), (), (1,), 240)
    printed = """print('{"n": 1}', flush=True); print('{"n": ', end='', flush=True)"""
    script = f"import time; {printed}; time.sleep(60)"

    def two(self):
        try:
            self._run(["-c", script], {})
        except bench.TimeOver as over:
            return parts.Part("two", said=(str(parts.lines(over.output)),))

    monkeypatch.setattr(bench, "PARTS", {"two": two, "one": lambda self: self._run(["-c", script], {})})
    measuring = bench.Bench(asked, tmp_path, print)
    part = measuring.measure("two", 1.5)
    assert part.said[0] == "[{'n': 1}]" and "of the 2 s that it may take" in part.said[-1]
    with pytest.raises(Refusal, match=r"it takes more than the 1 s.*the last that it said: \{\"n\":"):
        measuring.measure("one", 0.6)


def test_what_outlives_a_command_is_not_waited_for(tmp_path):
    outliving = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])"
    measuring = bench.Bench(bench.Asked((), (), (1,), 240), tmp_path, print)
    begun = time.monotonic()
    assert measuring._run(["-c", f"{outliving}; print('done')"], {}) == "done\n"
    assert time.monotonic() - begun < 15


def test_the_whole_of_stock_jobs_is_the_first_and_the_mean_of_those_after_it():
    done = [
        {"number": 2, "at": 120.0},
        {"number": 0, "at": 125.0, "failed": "no such type"},
        {"number": 1, "at": 135.0},
    ]
    labels = ["a", "b", "c", "d"]
    part = parts.stock_part(done, labels, 100.0, by_hydra=True, walls={"grid": 10.0, "grid on workers that stay": 5.0})
    assert part.rows == (("c", "20.0"), ("b", "10.0")) and part.numbers["whole"] == 20.0 + 3 * 10.0
    assert "our grid took 10.0 s: 5.0 times as fast" in part.said and part.numbers["times_warm"] == 10.0
    assert "left out: a: no such type" in part.said
    few = parts.stock_part(done[:1], labels, 100.0, by_hydra=False, walls={})
    assert "1 of 4 cells in 20.0 s; all of them, by that one alone, with the launcher's start in it, 80 s" in few.said
    none = parts.stock_part(done[1:2], labels, 100.0, by_hydra=False, walls={})
    assert none.said == ("no cell runs by stock parts:", "left out: a: no such type") and not none.rows


@pytest.mark.slow
def test_a_bench_of_the_embedded_model_measures_its_grid_and_its_scorer(tmp_path):
    words = ("parts=grid,scorer", "strategy=yarn", "length=256", "limit=1", f"store={tmp_path}")
    ran = ropewalk("bench", "--json", *words)
    assert ran.returncode == 0, ran.stderr
    parts = json.loads(ran.stdout)["parts"]
    grid, scorer = parts["grid"]["numbers"], parts["scorer"]["numbers"]
    assert grid["wall"] > grid["cells"] > 0 and grid["count"] == 1
    assert {"texts", "weights", "cell"} <= {row[0] for row in parts["grid"]["rows"]}
    assert scorer["difference_256"] < 1e-5 and 0 < scorer["ours_256_share"] < 2
    assert (tmp_path / "mlflow.db").exists()
