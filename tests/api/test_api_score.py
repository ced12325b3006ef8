"""A live model scored: the numbers of the grid, and the model as it was."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from support import PROJECT, TINY

import ropewalk
from pipelines.workers import evaluate, live

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = {"text": "pydoc", "last": 32, "buckets": 4}


@pytest.fixture(scope="module")
def tiny():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(TINY, dtype="float32"), AutoTokenizer.from_pretrained(TINY)


def numbers(results):
    return [
        (
            c.model.name,
            c.strategy,
            c.options,
            c.length,
            c.task,
            c.plans,
            c.data,
            c.versions,
            c.dtype,
            c.device,
            r.status,
            r.metrics,
            {name: row for name, row in r.series.items() if not name.startswith("system/")},
            r.documents,
            r.digest,
            r.cost["tokens"],
        )
        for c, r in results
    ]


@pytest.mark.slow
def test_the_numbers_are_those_of_the_grid(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    choices = {"limit": 1, "task": "perplexity", "seed": 3}
    scored = ropewalk.score(*tiny, ["none", "yarn"], [512, 640], text="stdlib", **choices)
    ran = ropewalk.grid(
        "task.text=stdlib",
        model="tiny",
        strategy=["none", "yarn"],
        length=[512, 640],
        cluster="cpu",
        short="none",
        store=tmp_path,
        quiet=True,
        **choices,
    )
    assert len(ran) == 4 and numbers(scored) == numbers(ran)
    assert ropewalk.load_results(tmp_path) == ran


def test_passkeys_in_half_precision_are_those_of_the_same_cell_from_files(tiny):
    from transformers import AutoModelForCausalLM

    half = AutoModelForCausalLM.from_pretrained(TINY, dtype="bfloat16")
    options = {"limit": 1, "depths": [0.5], "answer": "generate"}
    [(cell, result)] = ropewalk.score(half, tiny[1], "self_extend", 600, "passkey", **options)
    assert cell.dtype == "bfloat16" and result.status == "ok"
    unknown = replace(cell, model=replace(cell.model, fingerprint=""))  # a live model's is of its tensors, not of files
    [from_files] = evaluate.evaluate([unknown])
    assert (from_files.metrics, from_files.documents) == (result.metrics, result.documents)


def test_model_and_tokenizer_are_afterwards_as_they_were(model, tokenizer):
    model.train()
    model.model.layers[0].eval()
    model.requires_grad_(True)
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in (*model.named_buffers(), *model.named_parameters())}
    words, config = repr(tokenizer), model.config.to_json_string()
    results = ropewalk.score(model, tokenizer, ["dynamic_ntk", "rerope"], [300, 400], limit=1, **TEXT)
    assert all(result.finished for _, result in results)
    assert modes == [module.training for module in model.modules()]
    for name, tensor in (*model.named_buffers(), *model.named_parameters()):
        assert torch.equal(tensor, state[name]) and tensor.grad is None, name
    assert words == repr(tokenizer) and config == model.config.to_json_string()
    model.eval()


def test_a_model_under_an_applied_plan_is_scored_from_its_training_and_keeps_the_plan(model, tokenizer):
    ids = torch.arange(64)[None]
    before = ropewalk.score(model, tokenizer, ["none", "rerope"], 300, limit=1, **TEXT)
    for strategy in ("yarn", "self_extend"):
        ropewalk.apply(model, ropewalk.plan(strategy, model, 512))
        under = model(ids).logits
        assert numbers(ropewalk.score(model, tokenizer, ["none", "rerope"], 300, limit=1, **TEXT)) == numbers(before)
        assert torch.equal(model(ids).logits, under)
    ropewalk.apply(model, None)


def test_the_documents_lengths_and_plans_are_those_asked_for(model, tokenizer):
    plan = ropewalk.plan("linear", model, 320, factor=4)
    results = ropewalk.score(model, tokenizer, [("yarn", {"beta_fast": 16}), plan], limit=1, **TEXT)
    assert [(c.strategy_label, c.length) for c, _ in results] == [
        ("yarn beta_fast=16", 256),
        ("yarn beta_fast=16", 512),
        ("yarn beta_fast=16", 1024),
        ("linear factor=4", 320),
    ]
    assert results[3][0].plans == plan.plans and results[3][1].documents[0]["tokens"] == 320


def test_equal_plans_are_computed_once_and_listed_for_each(model, tokenizer, capsys):
    (first, one), (second, other) = ropewalk.score(model, tokenizer, ["none", "yarn"], 256, limit=1, **TEXT)
    assert first.id == second.id and one is other and (first.strategy, second.strategy) == ("none", "yarn")
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 1 and "none @256 perplexity" in told.err and not told.out


def test_a_quiet_score_prints_nothing(model, tokenizer, capfd):
    ropewalk.score(model, tokenizer, "none", 256, limit=1, quiet=True, **TEXT)
    assert capfd.readouterr() == ("", "")


def test_a_model_that_was_trained_further_has_cells_of_its_own(model):
    further = copy.deepcopy(model)
    with torch.no_grad():
        further.lm_head.weight += 1e-3
    fingerprints = [live.describe(one).model.fingerprint for one in (model, copy.deepcopy(model), further)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_what_a_cell_fails_of_is_in_its_result(model, tokenizer, monkeypatch):
    from pipelines.tasks import registry

    monkeypatch.setattr(registry, "score", lambda *_, **__: 1 / 0)
    results = ropewalk.score(model, tokenizer, "none", 256, limit=1, **TEXT)
    assert results[0][1].status == "failed" and "ZeroDivisionError" in results[0][1].error


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"strategies": ["none", "yam"]}, "unknown strategy: 'yam'"),
        ({"strategies": []}, "at least one strategy"),
        ({"lengths": 1}, "length=1"),
        ({"lengths": 10**7}, "tokens"),
        ({"limit": 0}, "limit=0"),
        ({"task": "perplexitty"}, "did you mean perplexity"),
        ({"lasst": 3}, "takes no option lasst"),
        ({"text": "nowhere"}, "nowhere"),
        ({"strategies": [ropewalk.plan("yarn", ropewalk.Geometry(64, 1e4, 512), 512)]}, "32 inverse frequencies"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(model, tokenizer, choices, sentence, monkeypatch):
    monkeypatch.setattr(live, "evaluate", lambda *_: pytest.fail("ran"))
    with pytest.raises(ropewalk.Refusal, match=sentence):
        ropewalk.score(model, tokenizer, **{"strategies": ["none"], "lengths": 256, "limit": 1, **choices})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (lambda model: model.model, "no causal language model"),
        (lambda model: torch.nn.Linear(2, 2), "Linear is no causal language model"),
        (lambda model: type(model)(model.config).to("meta"), "not in memory"),
    ],
)
def test_what_is_no_language_model_in_memory_is_refused(model, tokenizer, given, sentence):
    with pytest.raises(ropewalk.Refusal, match=sentence):
        ropewalk.score(given(model), tokenizer, "none", 256, limit=1)


@pytest.mark.parametrize("given", [None, "models/tiny"])
def test_what_is_no_tokenizer_is_refused(model, given):
    with pytest.raises(ropewalk.Refusal, match="no tokenizer"):
        ropewalk.score(model, given, "none", 256, limit=1)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"strategy": "yam"}, "unknown strategy"),
        ({"strategy": [("yarn", {})]}, "is no name"),
        ({"strategy": {"name": "yarn", "beta": 3}}, "beta"),
        ({"lengths": 512}, "did you mean length"),
        ({"length": "long"}, "length=long"),
    ],
)
def test_a_grid_that_cannot_run_is_refused_in_a_sentence(choices, sentence, tmp_path):
    with pytest.raises(ropewalk.Refusal, match=sentence):
        ropewalk.grid(
            **{"model": "tiny", "strategy": "none", "length": 512, "store": tmp_path, "cluster": "cpu", **choices}
        )


def times(model, factor):
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * factor


@pytest.mark.parametrize("strategies", ["none", "yarn", ["linear", "self_extend"]])
def test_frequencies_set_by_hand_are_refused_with_both_numbers(model, tokenizer, strategies, monkeypatch):
    monkeypatch.setattr(live, "evaluate", lambda *_: pytest.fail("ran"))
    other = copy.deepcopy(model)
    times(other, 0.25)
    for put in (
        lambda: ropewalk.score(other, tokenizer, strategies, 300, limit=1, **TEXT),
        lambda: ropewalk.apply(other, ropewalk.plan("yarn", other, 512)),
        lambda: ropewalk.patched(other, ropewalk.plan("none", other, 512)).__enter__(),
    ):
        with pytest.raises(ValueError, match=r"pair 0 turns by 0\.25 radians a token as built, and by 1 as read"):
            put()


def test_frequencies_set_by_hand_under_a_plan_of_ours_are_refused(model, tokenizer):
    other = copy.deepcopy(model)
    ropewalk.apply(other, ropewalk.plan("yarn", other, 512))
    times(other, 0.5)
    with pytest.raises(ropewalk.Refusal, match="changed while a plan of ropewalk's held"):
        ropewalk.score(other, tokenizer, "none", 300, limit=1, **TEXT)


def test_a_copy_of_a_model_under_a_plan_is_scored_from_its_training(model, tokenizer):
    before = ropewalk.score(model, tokenizer, "none", 300, limit=1, **TEXT)
    ropewalk.apply(model, ropewalk.plan("yarn", model, 512))
    try:
        again = ropewalk.score(copy.deepcopy(model), tokenizer, "none", 300, limit=1, **TEXT)
    finally:
        ropewalk.apply(model, None)
    assert numbers(again) == numbers(before)


def test_a_head_that_was_untied_stays_so_and_is_what_is_scored(model, tokenizer):
    tied = copy.deepcopy(model)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    untied = copy.deepcopy(tied)
    untied.lm_head.weight = torch.nn.Parameter(tied.lm_head.weight.detach().flip(0))
    head = untied.lm_head.weight
    scores = [ropewalk.score(one, tokenizer, "none", 256, limit=1, **TEXT)[0][1].metrics for one in (tied, untied)]
    assert untied.lm_head.weight is head and untied.model.embed_tokens.weight is not head
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert scores[0] != scores[1]
