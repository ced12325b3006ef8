"""What a model's rotary modules are built with, against what was read from its config: equal, or refused."""

from __future__ import annotations

import copy
import inspect
import re

import numpy as np
import pytest
import torch
from test_patch import DYNAMIC, LINEAR, LLAMA3, PLAIN, SHAPE, TRAINED, YARN, buffers, gemma, llama, logits, of, same
from transformers import Phi3Config, Phi3ForCausalLM, PhimoeConfig, PhimoeForCausalLM, modeling_rope_utils
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rope.config import geometry_of
from rope.geometry import Geometry, Plan
from rope.patch import BuiltOtherwise, Reading, apply, patched
from rope.rotary import rotary_states
from rope.strategies import plans

pytestmark = pytest.mark.usefixtures("one_thread")

LISTS = {"short_factor": [1.0] * 16, "long_factor": [4.0 + pair for pair in range(16)]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, **LISTS}
LENGTH = 2 * TRAINED


def phi(parameters=LONGROPE):
    torch.manual_seed(0)
    config = Phi3Config(**SHAPE, original_max_position_embeddings=32, rope_parameters=copy.deepcopy(parameters))
    return Phi3ForCausalLM(config).eval()


def layered():
    """A Llama with a rotary module in every layer, as older families have."""
    model = llama()
    for layer in model.model.layers:
        layer.self_attn.rotary_emb = LlamaRotaryEmbedding(model.config)
    return model


def rotary(model):
    return model.model.rotary_emb


def put_in(model, plans, geometries, length=LENGTH):
    with patched(model, plans, Reading(geometries, length)):
        raise AssertionError("must not be entered")


@pytest.mark.parametrize("parameters", [LINEAR, YARN, LLAMA3, DYNAMIC, LONGROPE], ids=lambda p: p["rope_type"])
@pytest.mark.parametrize("strategy", ["none", "linear", "self_extend"])
def test_a_scaling_that_was_not_read_is_refused_with_both_numbers(parameters, strategy):
    """The frequencies built are transformers' own, and those read the formula of plain ones."""
    theta = parameters["rope_theta"]
    model = llama(parameters) if parameters is not LONGROPE else phi()
    read = {"all": Geometry(32, theta, TRAINED)}
    before = logits(model)  # of which a module that changes at run time keeps something
    held = buffers(model)
    with pytest.raises(BuiltOtherwise, match="is not built as it was read") as refusal:
        put_in(model, plans(strategy, read, LENGTH), read)
    said = re.search(r"pair (\d+) turns by (\S+) radians a token as built, and by (\S+) as read", str(refusal.value))
    assert said is not None, refusal.value
    pair, built, seen = int(said[1]), float(said[2]), float(said[3])
    own, _ = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](model.config, "cpu", seq_len=torch.tensor(LENGTH))
    assert built == pytest.approx(own[pair].item(), rel=1e-6) and seen == pytest.approx(theta ** (-pair / 16), rel=1e-6)
    assert same(held, buffers(model))
    assert torch.equal(before, logits(model))


def test_a_scaling_that_was_read_and_is_not_built_is_refused_too():
    for parameters in (LINEAR, YARN, LLAMA3, DYNAMIC):
        with pytest.raises(BuiltOtherwise, match="as built"):
            put_in(llama(), of(llama(parameters), "none"), geometry_of(llama(parameters).config))


def change(name, value):
    return lambda model: setattr(rotary(model), name, value)


def times(name, factor):
    def multiply(model):
        setattr(rotary(model), name, getattr(rotary(model), name) * factor)

    return multiply


def doubled_angles(model):
    forward = rotary(model).forward
    rotary(model).forward = lambda states, position_ids: forward(states, 2 * position_ids)


def without_scaling(model):
    """A forward that forgets the attention factor."""
    forward, factor = rotary(model).forward, rotary(model).attention_scaling
    rotary(model).forward = lambda states, position_ids: [part / factor for part in forward(states, position_ids)]


def second_layer(model):
    module = model.model.layers[1].self_attn.rotary_emb
    module.inv_freq = module.inv_freq / 2


def one_type(model):
    rotary(model).full_attention_inv_freq[3] *= 1.01


def config_alone(model):
    model.config.rope_parameters = dict(LINEAR)


def long_numbers(model):
    if "if long_inv_freq is None" not in inspect.getsource(modeling_rope_utils):
        pytest.skip("the installed transformers computes the long list anew for every forward")
    rotary(model).long_inv_freq = rotary(model).original_inv_freq / 2


def both_frequencies(model):
    times("inv_freq", 0.5)(model)
    times("original_inv_freq", 0.5)(model)


BY_HAND = {
    "frequencies": (llama, times("inv_freq", 0.25), r"pair 0 turns by 0\.25 .* 1 as read \(16 of 16 pairs differ\)"),
    "one pair": (llama, lambda m: rotary(m).inv_freq.__setitem__(7, 0.5), r"pair 7 turns by 0\.5 .*\(1 of 16 pairs"),
    "not a number": (llama, times("inv_freq", float("nan")), "pair 0 turns by nan"),
    "a dynamic module": (lambda: llama(DYNAMIC), times("inv_freq", 0.5), r"pair 0 turns by 0\.5 "),
    "a dynamic module's start": (lambda: llama(DYNAMIC), both_frequencies, r"pair 0 turns by 0\.5 "),
    "a longrope module's short list": (phi, times("original_inv_freq", 0.5), r"for 32 tokens: pair 0 turns by 0\.5 "),
    "a longrope module's long list": (phi, long_numbers, r"pair 15 turns by 8\.89\S+e-05 .* 9\.35\S+e-06 as read"),
    "the attention factor": (lambda: llama(YARN), change("attention_scaling", 1.5), "is 1.5 as built, and 1.138629"),
    "pairs": (
        llama,
        lambda m: change("inv_freq", rotary(m).inv_freq[:8])(m),
        "8 pairs rotate as built, and 16 as read",
    ),
    "one layer's module": (layered, second_layer, r"pair 0 turns by 0\.5 "),
    "one layer type": (gemma, one_type, "layers full_attention.*: pair 3 turns by .*1 of 16 pairs"),
    "the forward": (
        llama,
        doubled_angles,
        "computes something else than it holds: at position 2 pair 1 is turned by 2.249",
    ),
    "the forward's factor": (lambda: llama(YARN), without_scaling, "times 1, and its frequency makes .* times 1.139"),
    "the config": (llama, config_alone, r"pair 15 turns by 0\.000177\S+ .* as built, and by 2\.9\S+e-07 as read"),
    "rope_type": (llama, change("rope_type", "dynamic"), "sets its frequencies at run time"),
    "bfloat16": (llama, lambda m: m.to(torch.bfloat16), "holds them in bfloat16, cast .*from_pretrained"),
    "float16": (llama, lambda m: m.half(), "holds them in float16"),
    "meta": (llama, lambda m: rotary(m).to("meta"), "not in memory"),
}


@pytest.mark.parametrize("fault", BY_HAND)
def test_what_was_changed_by_hand_is_refused_under_every_strategy(fault):
    make, planted, says = BY_HAND[fault]
    model = make()
    for strategy in ("none", "yarn"):
        with patched(model, of(model, strategy), Reading(geometry_of(model.config), LENGTH)):
            pass  # as built, it is taken
    planted(model)
    held = None if fault == "meta" else buffers(model)
    for strategy in ("none", "yarn"):
        with pytest.raises(ValueError, match=says):
            put_in(model, of(model, strategy), geometry_of(model.config))
    assert fault in ("meta", "not a number") or same(held, buffers(model))


def test_the_original_frequencies_of_a_static_module_have_no_effect():
    model = llama()
    before = logits(model)
    times("original_inv_freq", 0.5)(model)
    geometries = geometry_of(model.config)
    assert torch.equal(before, logits(model, plans=of(model, "none"), reading=Reading(geometries, LENGTH)))


def test_layers_that_were_read_and_have_no_module_are_refused():
    model, flat = gemma(), {"all": Geometry(32, 1e4, TRAINED)}
    with pytest.raises(BuiltOtherwise, match="layers full_attention: nothing was read for these layers"):
        put_in(model, plans("none", flat, LENGTH), flat)
    typed = geometry_of(model.config)
    with pytest.raises(BuiltOtherwise, match="no rotary module for the layers full_attention"):
        put_in(llama(), plans("none", typed, LENGTH), typed)


def test_a_model_that_computes_its_frequencies_anew_is_scored_as_it_is_and_takes_no_strategy():
    torch.manual_seed(0)
    shape = {**SHAPE, "num_local_experts": 2, "lm_head_bias": False}
    model = PhimoeForCausalLM(PhimoeConfig(**shape, rope_parameters=dict(PLAIN))).eval()
    geometries = geometry_of(model.config)
    none = logits(model, plans=of(model, "none"), reading=Reading(geometries, LENGTH))
    assert torch.equal(logits(model), none)
    with pytest.raises(ValueError, match="computes its frequencies from the config at every forward"):
        put_in(model, of(model, "yarn"), geometries)
    rotary(model).config.rope_parameters["rope_theta"] = 500.0  # which its forward reads
    with pytest.raises(BuiltOtherwise, match="computes something else than it holds"):
        put_in(model, plans("none", geometries, LENGTH), geometries)


@pytest.mark.parametrize(
    "make", [llama, gemma, lambda: llama(DYNAMIC), phi], ids=["llama", "gemma3", "dynamic", "phi3"]
)
def test_a_plan_of_ours_is_not_taken_for_a_change_by_hand(make):
    model = make()
    reading = Reading(geometry_of(model.config), LENGTH)
    alone = logits(make())
    none, yarn = of(model, "none"), of(model, "yarn")
    with patched(model, yarn, reading):
        under = logits(model)
        assert torch.equal(alone, logits(model, plans=none, reading=reading)), "none within is the model as built"
        assert torch.equal(under, logits(copy.deepcopy(model))) and torch.equal(under, logits(model))
        assert torch.equal(alone, logits(copy.deepcopy(model), plans=none, reading=reading)), "so it is in a copy"
        with patched(model, of(model, "linear"), reading):
            assert torch.equal(alone, logits(model, plans=none, reading=reading))
        assert torch.equal(under, logits(model))
    undo = apply(model, yarn, reading)
    assert torch.equal(under, logits(model, plans=yarn, reading=reading))
    undo()
    assert not any(name.startswith("_ropewalk") for name in vars(rotary(model)))


def test_a_change_by_hand_within_a_block_is_refused():
    model = llama()
    reading = Reading(geometry_of(model.config), LENGTH)
    with patched(model, of(model, "yarn"), reading):
        times("inv_freq", 0.5)(model)
        with pytest.raises(BuiltOtherwise, match="changed while a plan of ropewalk's held"):
            put_in(model, of(model, "none"), reading.geometries)


@pytest.mark.parametrize("make", [llama, gemma, lambda: llama(YARN)], ids=["llama", "gemma3", "yarn"])
def test_none_writes_nothing_and_runs_no_forward_of_the_model(make, monkeypatch):
    model = make()
    held, attributes = buffers(model), dict(vars(rotary(model)))
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("ran the model"))
    with patched(model, of(model, "none"), Reading(geometry_of(model.config), LENGTH)):
        assert same(held, buffers(model)) and vars(rotary(model)) == attributes


def test_a_native_plan_of_the_second_list_changes_no_bit():
    for length in (32, 33, LENGTH):
        model = phi()
        reading = Reading(geometry_of(model.config), length)
        alone = logits(phi(), length)
        assert torch.equal(alone, logits(model, length, of(model, "none", length), reading))


def test_what_a_module_runs_for_a_length_leaves_it_as_it_was():
    for model in (llama(DYNAMIC), phi(), gemma(DYNAMIC)):
        held, attributes = buffers(model), dict(vars(rotary(model)))
        states = rotary_states(model, LENGTH)
        assert states[0].inv_freq != rotary_states(model)[0].inv_freq
        assert same(held, buffers(model)) and vars(rotary(model)).keys() == attributes.keys()


@pytest.mark.parametrize("length", [48, 64, 65, 200, 4096])
@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_a_dynamic_geometry_is_at_every_length_what_transformers_computes(length, factor):
    config = llama({**DYNAMIC, "factor": factor}).config
    own, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=length)
    for read in (geometry_of(config)["all"], geometry_of(config, trained_length=32)["all"]):
        np.testing.assert_allclose(read.native(length).inv_freq, own.numpy(), rtol=1e-5)
    assert read.trained_length == 32 and hash(read) == hash(geometry_of(config, trained_length=32)["all"])


def test_plans_of_none_that_were_made_of_other_files_are_refused():
    reading = Reading({"all": Geometry(32, 1e4, TRAINED)}, LENGTH)
    reading.check_natives(tuple(reading.natives(LENGTH).items()))
    for other, says in [
        (Plan((1.0,) * 16), "pair 15 turns by 1 radians a token as planned"),
        (Plan((1.0,) * 8), "8 pairs rotate as planned, and 16 as read"),
        (Plan(reading.natives(LENGTH)["all"].inv_freq, 1.2), "the attention factor is 1.2 as planned, and 1 as read"),
    ]:
        with pytest.raises(BuiltOtherwise, match=says):
            reading.check_natives((("all", other),))
    with pytest.raises(BuiltOtherwise, match="nothing was read"):
        reading.check_natives((("full_attention", other),))
