"""`ropewalk theory`: the same numbers as rope.theory's, for every requested combination, and nothing heavy loaded."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from support import PROJECT

from pipelines.cli.main import run
from rope import theory
from rope.geometry import Geometry
from rope.strategies import plan

RANDOM = Geometry(16, 10_000.0, 256)
"""What model=random is: 64 dimensions in 4 heads."""


def records(capsys, *arguments):
    """What the verb prints as JSON."""
    assert run(["theory", "model=random", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_commas_compare_plans_and_the_numbers_are_those_of_the_mathematics(capsys):
    result = records(capsys, "strategy=none,yarn", "length=512,1024")
    assert [(one["strategy"], one["length"]) for one in result] == [
        ("none", 512),
        ("none", 1024),
        ("yarn", 512),
        ("yarn", 1024),
    ]
    yarn, native = plan("yarn", RANDOM, 1024), RANDOM.native(2)
    last = result[-1]
    assert last["attention_factor"] == yarn.attention_factor
    assert [row["inv_freq"] for row in last["table"]] == list(yarn.inv_freq)
    assert [row["wavelength"] for row in last["table"]] == theory.wavelengths(yarn).tolist()
    assert last["unseen"] == theory.out_of_distribution(native, yarn, 256, 1024).mean()
    assert last["round_now"] == theory.critical_pair(yarn, 256) <= last["round_trained"]
    assert last["first_negative"] == theory.first_negative(yarn, 4 * 1024)
    assert last["equivalent_base"] == theory.equivalent_base(yarn)


def test_options_and_factor_arrive(capsys):
    (result,) = records(capsys, "strategy=yarn", "strategy.beta_fast=16", "factor=8", "length=512")
    assert result["options"] == {"beta_fast": 16, "factor": 8.0} and result["largest_stretch"] == pytest.approx(8)
    (result,) = records(capsys, "strategy=dynamic_yarn", "strategy.options={beta_fast: 16}", "length=512")
    expected = plan("yarn", RANDOM, 512, beta_fast=16)
    assert [row["inv_freq"] for row in result["table"]] == list(expected.inv_freq)
    assert result["options"] == {"over": "yarn", "options": {"beta_fast": 16}}
    assert result["name"] == "dynamic options={beta_fast: 16} over=yarn"


def test_lists_and_single_layers_arrive(capsys):
    divisors = [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5]
    (result,) = records(capsys, "strategy=factors", f"strategy.factors={divisors}", "length=512")
    assert [row["stretch"] for row in result["table"]] == pytest.approx(divisors)
    assert result["name"] == "factors factors=[1, ... 4.5: 8 numbers]"
    result = records(capsys, "strategy=per_layer", "strategy.layers={0: 2, 1: {factor: 4}}", "factor=8", "length=512")
    assert [(one["layers"], one["largest_stretch"]) for one in result] == [
        ("all", pytest.approx(8)),
        ("all[0]", pytest.approx(2)),
        ("all[1]", pytest.approx(4)),
    ]


def test_a_zero_frequency_has_no_wavelength_in_json(capsys):
    (result,) = records(capsys, "strategy=proportional", "length=512")
    assert result["largest_stretch"] is None and result["table"][-1]["wavelength"] is None
    assert result["equivalent_base"] is None and result["table"][0]["wavelength"] == 2 * math.pi


def test_tables_and_a_figure_are_for_people(capsys, tmp_path):
    code = run(
        ["theory", "model=random", "strategy=none,proportional,yarn", "length=512", f"out={tmp_path / 'figures'}"]
    )
    shown = capsys.readouterr().out
    assert code == 0
    for words in ("random: yarn @512", "all plans", "zero frequency", "trained on 256 tokens with a base of 10,000"):
        assert words in shown
    figure, vector = sorted((tmp_path / "figures").iterdir())
    assert figure.name == "random_none_proportional_yarn_512.png" and vector.suffix == ".svg"
    assert figure.read_bytes()[:4] == b"\x89PNG"
    assert str(figure) in shown.replace("\n", "")


def test_an_experiment_is_expanded_as_for_a_grid_and_each_plan_shown_once(capsys):
    assert run(["theory", "--json", "experiment=first"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [(one["strategy"], one["length"]) for one in plans] == [
        (strategy, length)
        for strategy in ("none", "crop", "linear", "dynamic_ntk", "yarn")
        for length in (512, 1024, 2048)
    ]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["strategy=yarn"], "length is missing"),
        (["strategy=yran", "length=512"], "did you mean yarn?"),
        (["strategy=yarn", "strategy.beta_fst=3", "length=512"], "did you mean beta_fast?"),
        (["strategy=yarn", "factor=1", "length=512"], "factor=1.0: give a finite number above 1"),
        (["strategy=factors", "strategy.factors=[1,2]", "length=512"], "factors has 2 numbers; give 8, one per"),
        (["strategy=per_layer", "strategy.layers={a: 2}", "length=512"], "layers 'a': give layer numbers"),
        (
            ["strategy=per_layer", "strategy.layers={1-2: 2}", "length=512"],
            "name layer 2, and model random has 2 layers",
        ),
        (["--xml", "length=512"], "ropewalk theory has no option --xml; it has --help, --config-dir, --json"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, says, capsys):
    assert run(["theory", "model=random", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_it_loads_nothing_heavy(tmp_path):
    script = (
        "import sys; from pipelines.cli.main import run; "
        f"run(['theory', 'strategy=none,yarn', 'length=1024', 'out={tmp_path}']); "
        "heavy = ('torch', 'ray', 'mlflow', 'transformers', 'lm_eval'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_layers_of_a_bounded_window_meet_no_new_angle(capsys, tmp_path):
    config = {"model_type": "gemma3_text", "head_dim": 16, "max_position_embeddings": 256, "rope_theta": 1e6}
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_local_base_freq": 1e4}))
    assert run(["theory", f"model={tmp_path}", "--json", "strategy=none", "length=1024"]) == 0
    full, sliding = json.loads(capsys.readouterr().out)
    assert (full["layers"], sliding["layers"]) == ("full_attention", "sliding_attention")
    assert full["unseen"] > 0.1 and sliding["unseen"] == 0
