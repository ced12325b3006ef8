"""Cells -> results: what is measured, and what becomes of a cell that cannot be."""

from __future__ import annotations

import json
import math
import weakref
from dataclasses import replace

import pytest
import torch
from support import random_cell

from pipelines.choices.sweep import patched_config
from pipelines.models import load
from pipelines.tasks import registry
from pipelines.workers import evaluate


def result_of(cell):
    [result] = evaluate.evaluate([cell])
    return result


def test_a_result_says_what_was_measured_where_and_at_what_cost():
    result = result_of(random_cell())
    assert result.status == "ok" and result.error is None
    assert result.metrics["ppl"] == pytest.approx(math.exp(result.metrics["nll"]))
    assert len(result.documents) == 2 and len(result.series["nll_by_position"]) == 4
    assert result.cost["seconds"] > 0 and result.cost["peak_bytes"] > 1e6
    assert result.cost["tokens"] == 2 * 127
    assert result.provenance["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_a_cell_does_not_depend_on_what_ran_before_it():
    cells = [random_cell("dynamic_ntk", length) for length in (512, 128, 256)]
    forth = {r.cell_id: r.metrics for r in evaluate.evaluate(cells)}
    back = {r.cell_id: r.metrics for r in evaluate.evaluate(cells[::-1])}
    assert forth == back
    assert forth[cells[1].id] == result_of(random_cell("none", 128)).metrics


def test_a_model_that_stays_in_memory_crops_for_the_cells_that_crop_alone():
    cells = [random_cell(name, 512) for name in ("none", "crop", "yarn")]
    lm = evaluate.loaded(cells[0])
    forth = {r.cell_id: r.documents for r in evaluate.evaluate(cells, lambda cell: lm)}
    back = {r.cell_id: r.documents for r in evaluate.evaluate(cells[::-1], lambda cell: lm)}
    alone = {cell.id: result_of(cell).documents for cell in cells}
    assert forth == back == alone and len({str(rows) for rows in alone.values()}) == 3


def test_every_result_over_a_text_scores_the_very_same_tokens_cropped_or_not():
    results = [result_of(random_cell(name, 512)) for name in ("none", "crop", "yarn", "streaming", "self_extend")]
    assert len({result.digest for result in results}) == 1
    assert len({str([row["tokens"] for row in result.documents]) for result in results}) == 1
    none, crop = (result.documents[0]["nll_by_position"] for result in results[:2])
    assert none[0] == pytest.approx(crop[0], abs=1e-5) and none[3] != pytest.approx(crop[3], abs=1e-3)


def test_strategies_differ_beyond_the_trained_length_and_not_at_it():
    assert result_of(random_cell("yarn")).metrics == result_of(random_cell("none")).metrics
    ppls = {name: result_of(random_cell(name, 512)).metrics["ppl"] for name in ("none", "linear", "ntk", "yarn")}
    assert len(set(ppls.values())) == 4


@pytest.mark.parametrize("strategy", ["none", "linear", "ntk", "dynamic_ntk", "by_parts", "yarn", "llama3"])
def test_the_patched_config_alone_gives_the_scored_numbers(strategy, tmp_path):
    """A fresh model made by plain transformers from patched_config.json scores as the patched one did."""
    from transformers import LlamaConfig, LlamaForCausalLM

    cell = random_cell(strategy, 320, limit=1)
    result = result_of(cell)
    (tmp_path / "config.json").write_text(json.dumps(patched_config(cell)))
    fresh = LlamaForCausalLM(LlamaConfig.from_pretrained(tmp_path))
    fresh.load_state_dict(load.model(cell.model, "float32", "cpu").state_dict())
    ids = torch.tensor([load.tokenizer(cell.model)(text_of(cell)).input_ids[:320]])
    with torch.no_grad():
        nll = torch.nn.functional.cross_entropy(fresh(ids).logits[0, :-1], ids[0, 1:]).item()
    assert nll == pytest.approx(result.metrics["nll"], rel=1e-5)


def text_of(cell):
    from pipelines.tasks import text

    return next(iter(text.documents(dict(cell.task.options)["text"])))


def test_running_out_of_memory_is_a_result_that_releases_the_model_and_the_next_cell_is_whole(monkeypatch):
    score = registry.score
    before = result_of(random_cell("none")).metrics

    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64 GiB")

    monkeypatch.setattr(registry, "score", out_of_memory)
    model = weakref.ref(load.model(random_cell().model, "float32", "cpu"))
    result = result_of(random_cell("yarn", 512))
    assert model() is None, "its memory is free for the next one"
    assert result.status == "oom" and "64 GiB" in result.error_line and not result.metrics
    monkeypatch.setattr(registry, "score", score)
    assert result_of(random_cell("none")).metrics == before


def test_an_exception_is_a_failed_result_with_its_traceback(monkeypatch):
    monkeypatch.setattr(registry, "score", lambda *_, **__: 1 / 0)
    result = result_of(random_cell())
    assert result.status == "failed"
    assert result.error_line == "ZeroDivisionError: division by zero" and "Traceback" in result.error


def test_worse_than_guessing_is_diverged_and_what_is_not_finite_is_absent(monkeypatch):
    scores = registry.Scores(
        metrics={"nll": 9.0, "ppl": math.inf},
        series={"nll_by_position": [(1.0, 2.0), (2.0, math.nan)]},
        documents=[{"index": 0, "nll": math.nan}],
        digest="d",
    )
    monkeypatch.setattr(registry, "score", lambda *_, **__: scores)
    result = result_of(random_cell())
    assert result.status == "diverged"
    assert result.metrics == {"nll": 9.0} and result.series == {"nll_by_position": [(1.0, 2.0)]}
    assert result.documents == [{"index": 0}]


def test_a_model_whose_weights_are_gone_fails_in_a_sentence():
    cell = random_cell()
    gone = replace(cell, model=replace(cell.model, path="./gone", shape=()))
    result = result_of(gone)
    assert result.status == "invalid" and "gone" in result.error
