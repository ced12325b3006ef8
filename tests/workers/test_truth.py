"""Through `evaluate`: under `none` a model's own logits to the last bit, and no cell of a model that was not read."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support import CELL
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from pipelines.records.cells import frozen
from pipelines.tasks import registry
from pipelines.tasks.forward import Forward
from pipelines.workers import evaluate
from rope.config import geometry_of
from rope.strategies import plans

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 64,
    "sliding_window": 16,
    "initializer_range": 0.1,
}
"""Sizes, for the families that have them."""

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LENGTH = 128

FAMILIES = """
    afmoe apertus arcee bitnet cohere cohere2 cwm diffllama doge ernie4_5 ernie4_5_moe exaone4 flex_olmo gemma gemma2
    gemma3_text glm glm4 gpt_neox gpt_oss granite granitemoe helium internlm3 jetmoe lfm2 llama llama4_text minimax
    minimax_m2 ministral3 mistral mixtral modernbert-decoder nanochat olmo olmo2 olmo3 olmoe persimmon phi phi3 phimoe
    qwen2 qwen3 qwen3_moe seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma
""".split()  # noqa: SIM905

SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
}


def model_of(family, **given):
    """The class's own config at a small size, with random weights."""
    if family not in CONFIG_MAPPING:
        pytest.skip(f"the installed transformers has no {family}")
    shape = CONFIG_MAPPING[family]()
    sizes = {name: size for name, size in TINY.items() if getattr(shape, name, None) is not None}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**sizes, **TOKENS, **given})
    return AutoModelForCausalLM.from_config(config).eval()


def logits(model, length=LENGTH):
    with torch.no_grad():
        return model(input_ids=torch.arange(length)[None] * 7 % 96).logits


def run(monkeypatch, model, geometries, strategy="none", **options):
    """What `evaluate` makes of a cell of this model, and the logits while it is scored; None where it is not."""
    seen = []

    def score(lm, *_, **__):
        seen.append(logits(lm.model))
        return registry.Scores(metrics={"nll": 1.0}, series={}, documents=[], digest="d")

    monkeypatch.setattr(registry, "score", score)
    monkeypatch.setattr(evaluate.gc, "collect", lambda: 0)  # a second, for every cell that is refused
    lm = SimpleNamespace(model=model, vocabulary=96, forward_tokens=1, forward_pass=Forward(model, 96))
    planned = plans(strategy, geometries, LENGTH, **options)
    cell = replace(CELL, strategy=strategy, options=frozen(options), length=LENGTH, plans=planned)
    [result] = evaluate.evaluate([cell], lambda _: lm, lambda _: geometries)
    return result, (seen or [None])[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_none_gives_the_plain_models_logits_to_the_last_bit(family, monkeypatch):
    model = model_of(family)
    alone = logits(model)
    result, under_none = run(monkeypatch, model, geometry_of(model.config))
    assert result.status == "ok", result.error
    assert torch.equal(alone, under_none)
    assert torch.equal(alone, logits(model))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "glm", "stablelm"])
def test_a_scaling_that_is_not_read_makes_a_cell_invalid_with_both_numbers(family, scaling, monkeypatch):
    """A file in which the reader sees no scaling, and a model that was built with one."""
    plain = model_of(family)
    own = {**plain.config.rope_parameters, **SCALINGS[scaling]}
    model = model_of(family, rope_parameters=own)
    assert not torch.equal(logits(plain), logits(model)), "the scaling acts"
    for strategy in ("none", "yarn"):
        result, scored = run(monkeypatch, model, geometry_of(plain.config), strategy)
        assert result.status == "invalid" and scored is None and not result.metrics
        assert "radians a token as built" in result.error and "as read" in result.error
    result, scored = run(monkeypatch, model, geometry_of(model.config))
    fresh = logits(model_of(family, rope_parameters=own))
    assert result.status == "ok" and torch.equal(scored, fresh), "and read, it is scored as transformers runs it"


def test_plans_of_another_reading_make_a_cell_invalid(monkeypatch):
    model = model_of("llama")
    geometries = geometry_of(model.config)
    foreign = {"all": replace(geometries["all"], base=500_000.0)}
    lm = SimpleNamespace(model=model, vocabulary=96, forward_tokens=1, forward_pass=Forward(model, 96))
    cell = replace(CELL, length=LENGTH, plans=plans("none", foreign, LENGTH))
    [result] = evaluate.evaluate([cell], lambda _: lm, lambda _: geometries)
    assert result.status == "invalid" and "as planned, and by" in result.error


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_random_model_holds_its_frequencies_in_float32_whatever_the_dtype(dtype):
    from support import random_cell

    from pipelines.models import load

    model = load.model(random_cell().model, dtype, "cpu")
    assert str(model.dtype) == f"torch.{dtype}"
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
