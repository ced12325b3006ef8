"""Plans by the public names: computed, put into a live model, exported."""

from __future__ import annotations

import copy
import json
import pydoc
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from support import PROJECT, TINY

import ropewalk
from rope import strategies
from rope.dialects import deploy

CONFIG = json.loads((TINY / "config.json").read_text())
IDS = torch.arange(40)[None] * 7 % 250


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_importing_ropewalk_loads_nothing_heavy():
    heavy = ("torch", "transformers", "hydra", "omegaconf", "mlflow", "ray", "lm_eval", "pandas", "scipy", "rich")
    script = f"import sys, ropewalk; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_package_is_the_command_and_knows_its_version():
    ran = subprocess.run([sys.executable, "-m", "ropewalk", "--help"], capture_output=True, text=True, cwd=PROJECT)
    assert ran.returncode == 0 and "ropewalk grid" in ran.stdout
    assert ropewalk.__version__ == version("ropewalk")


@pytest.mark.parametrize("name", sorted(set(ropewalk.__all__) - {"ENGINES", "STRATEGIES"}))
def test_every_public_name_is_documented(name):
    documented = getattr(ropewalk, name)
    assert documented.__doc__ and not documented.__doc__.startswith(f"{name}(")
    for method in (m for key, m in vars(documented).items() if not key.startswith("_") and callable(m)):
        assert method.__doc__, f"{name}.{method.__name__}"
    assert f" {name}(" in pydoc.render_doc(ropewalk, renderer=pydoc.plaintext)


def test_every_strategy_is_listed_with_a_line_and_every_engine_is_known():
    assert set(ropewalk.STRATEGIES) == set(strategies.STRATEGIES) and all(ropewalk.STRATEGIES.values())
    plan = ropewalk.plan("linear", CONFIG, 1024)
    assert {ropewalk.export(plan, engine).engine for engine in ropewalk.ENGINES} == set(ropewalk.ENGINES)


def test_a_plan_is_the_same_from_a_model_a_config_and_a_geometry(model):
    plans = [
        ropewalk.plan("yarn", given, 1024, beta_fast=16)
        for given in (
            model,
            model.config,
            model.config.to_dict(),
            ropewalk.geometry_of(model),
            ropewalk.geometry_of(model)["all"],
        )
    ]
    assert all(plan == plans[0] for plan in plans) and len(set(plans)) == 1
    assert plans[0].plans == strategies.plans("yarn", ropewalk.geometry_of(model), 1024, beta_fast=16)
    assert plans[0].options == {"beta_fast": 16} and plans[0].length == 1024
    assert plans[0].inv_freq.shape == (8,) and plans[0].attention_factor > 1


def test_a_plan_knows_aliases_defaults_and_arrays():
    assert ropewalk.plan("pi", CONFIG, 1024) == ropewalk.plan("linear", CONFIG, 1024, factor=None)
    divisors = np.linspace(1, 4, 32)
    assert ropewalk.plan("factors", CONFIG, 1024, factors=divisors).options == {"factors": divisors.tolist()}


def test_a_plan_that_differs_by_layer_has_no_single_frequencies():
    plan = ropewalk.plan("per_layer", CONFIG, 1024, layers={"0-3": 1, "4-7": 2})
    with pytest.raises(ValueError, match=r"all\[0-3\]"):
        _ = plan.inv_freq


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (lambda: ropewalk.plan("yam", CONFIG, 1024), "strategies: "),
        (lambda: ropewalk.plan("yarn", CONFIG, 1024, beta=3), "did you mean 'beta_slow'"),
        (lambda: ropewalk.plan("yarn", 3, 1024), "3 is not a config"),
        (lambda: ropewalk.export(ropewalk.plan("yarn", CONFIG, 1024), "tgi"), "engines: transformers"),
        (lambda: ropewalk.export(ropewalk.plan("rerope", CONFIG, 1024), "vllm"), "yarn"),
        (lambda: ropewalk.export(ropewalk.plan("yarn", ropewalk.Geometry(64, 1e4, 512), 1024), "vllm"), "give export"),
        (lambda: ropewalk.export("yarn", "vllm"), "ropewalk.plan"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        given()


@pytest.mark.parametrize("strategy", ["yarn", "self_extend"])
def test_a_model_is_under_a_plan_inside_the_block_alone(model, strategy):
    before = logits(model)
    with ropewalk.patched(model, ropewalk.plan(strategy, model, 1024, **SMALL.get(strategy, {}))) as same:
        assert same is model and not torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)


SMALL = {"self_extend": {"group_size": 4, "window": 8}}
"""Windows that these few tokens reach beyond."""


@pytest.mark.parametrize("strategy", ["yarn", "self_extend"])
def test_an_applied_plan_stays_until_another_or_none_takes_its_place(model, strategy):
    plan, before = ropewalk.plan(strategy, model, 1024, **SMALL.get(strategy, {})), logits(model)
    with ropewalk.patched(model, plan):
        under = logits(model)
    try:
        assert ropewalk.apply(model, plan) is model
        assert torch.equal(logits(model), under)
        ropewalk.apply(model, ropewalk.plan("linear", model, 512))
        other = logits(model)
        assert not torch.equal(other, under) and not torch.equal(other, before)
        with ropewalk.patched(model, plan):
            assert torch.equal(logits(model), under)
        assert torch.equal(logits(model), other)
    finally:
        ropewalk.apply(model, None)
    assert torch.equal(logits(model), before)


def test_a_plan_that_does_not_suit_a_model_leaves_it_as_it_was(model):
    before = logits(model)
    foreign = ropewalk.plan("yarn", ropewalk.Geometry(64, 1e4, 512), 1024)
    for put in (ropewalk.apply, lambda *given: ropewalk.patched(*given).__enter__()):
        with pytest.raises(ValueError, match="8 pairs rotate as built, and 32 as read"):
            put(model, foreign)
        with pytest.raises(ValueError, match=r"ropewalk\.plan"):
            put(model, "yarn")
    assert torch.equal(logits(model), before)


def test_no_plan_is_applied_within_a_block(model):
    plan = ropewalk.plan("yarn", model, 1024)
    with ropewalk.patched(model, plan), pytest.raises(ValueError, match="inside a block"):
        ropewalk.apply(model, plan)
    ropewalk.apply(ropewalk.apply(model, plan), None)


def test_a_model_under_an_applied_plan_can_be_copied_and_saved(model, tmp_path):
    ropewalk.apply(model, ropewalk.plan("yarn", model, 1024))
    try:
        assert torch.equal(logits(copy.deepcopy(model)), logits(model))
        model.save_pretrained(tmp_path)
    finally:
        ropewalk.apply(model, None)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(model))


def test_an_export_is_what_the_dialect_says():
    plan = ropewalk.plan("yarn", CONFIG, 2048)
    said = ropewalk.export(plan, "vllm")
    assert said == deploy("vllm", CONFIG, "yarn", {}, ropewalk.geometry_of(CONFIG), 2048)
    assert ropewalk.export(ropewalk.plan("yarn", ropewalk.geometry_of(CONFIG), 2048), "vllm", CONFIG) == said


@pytest.mark.parametrize("strategy", ["yarn", "dynamic_ntk", "self_extend"])
def test_generating_under_a_plan_is_the_same_with_and_without_a_cache(model, strategy):
    plan = ropewalk.plan(strategy, model, 1024, **SMALL.get(strategy, {}))
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(IDS, use_cache=True, **options)
    with ropewalk.patched(model, plan):
        cached = model.generate(IDS, use_cache=True, **options)
        anew = model.generate(IDS, use_cache=False, **options)
    assert torch.equal(cached, anew) and not torch.equal(cached, plain)
