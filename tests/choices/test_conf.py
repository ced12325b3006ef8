"""conf/: every choice composes, every file says what the code takes."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from support import CONF

from pipelines.choices import config
from rope import strategies


@pytest.fixture(scope="module")
def hydra_conf():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


# Files that give a strategy with an option set, under a name of its own.
PRESETS = {
    "drope": {"softmax_scale": 0.412},
    "dynamic_linear": {"over": "linear"},
    "dynamic_part_ntk": {"over": "part_ntk"},
    "dynamic_yarn": {"over": "yarn"},
    "ssmax": {"start": 0.0, "floor_scale": 1, "smooth": True, "attn_scale": 0.43},
    "temperature_llama4": {"floor_scale": 8192, "offset": 1},
}


def composed(*overrides):
    return config.workbench(compose("config", overrides=["length=64", *overrides]))


def files(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def test_strategy_files_and_functions_are_the_same_set():
    assert set(files("strategy")) == {*strategies.STRATEGIES, *strategies.ALIASES, *PRESETS}


@pytest.mark.parametrize("name", files("strategy"))
def test_a_strategy_file_spells_out_the_published_defaults(hydra_conf, name):
    given = dict(composed(f"strategy={name}").strategy)
    function = given.pop("name")
    assert name in PRESETS or strategies.ALIASES.get(name, name) == function
    defaults = strategies.options_of(function) | PRESETS.get(name, {})
    defaults.pop("factor", None)  # the top level's
    assert given == defaults


@pytest.mark.parametrize(
    "choice",
    [
        f"{group}={name}"
        for group in ("model", "task", "cluster")
        for name in files(group)
        if name not in ("local", "lm_eval")
    ],
)
def test_every_choice_composes(hydra_conf, choice):
    assert composed(choice)


@pytest.mark.parametrize("name", files("experiment"))
def test_what_an_experiment_sets_survives_composition(hydra_conf, name):
    request = OmegaConf.load(CONF / "experiment" / f"{name}.yaml")
    full = compose("config", overrides=["length=64", f"experiment={name}"], return_hydra_config=True)
    for key, value in request.items():
        if key not in ("defaults", "hydra"):
            assert full[key] == value
    assert full.hydra.sweeper.params == request.hydra.sweeper.params


def test_hub_models_are_pinned_to_a_commit(hydra_conf):
    for name in files("model"):
        if name == "local":
            continue
        model = composed(f"model={name}").model
        if not model.revision:
            assert model.path.split("/")[0] in ("random", "models", "mlruns", "package:"), f"{name} is of the hub"
            continue
        assert len(model.revision) == 40 and model.trained_length, name
