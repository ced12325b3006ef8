"""What a strategy writes is judged by the plain model, whatever wrote it."""

from __future__ import annotations

import math

import pytest
import torch
from support import TINY
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.choices.config import Cluster, Device, ModelChoice, Workbench
from pipelines.choices.sweep import cell_of
from pipelines.tasks import generated
from pipelines.workers.evaluate import evaluate

TRAINED = 512


def cell(length, strategy, **task):
    return cell_of(
        Workbench(
            model=ModelChoice("tiny", str(TINY)),
            strategy=strategy,
            length=length,
            limit=1,
            cluster=Cluster(device=Device.cpu),
            task=task,
        )
    )


@pytest.mark.parametrize("length", [TRAINED, 1025])
def test_the_perplexity_of_what_is_generated_is_that_of_the_plain_model_over_what_it_can_read(monkeypatch, length):
    seen = []
    nlls = generated.nlls

    def spied(judge, encode, documents, answers):
        seen.extend(zip(documents, answers, strict=True))
        return nlls(judge, encode, documents, answers)

    monkeypatch.setattr(generated, "nlls", spied)
    stretched = {"name": "linear", "factor": 4.0}
    (result,) = evaluate([cell(length, stretched, name="recall", ask="near", answer="generate")])
    [(document, answer)] = seen
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32),
        AutoTokenizer.from_pretrained(TINY),
    )
    ids = tokenizer(answer.strip("\n"), add_special_tokens=False).input_ids
    whole = torch.tensor([[*document.ids, *ids]])[:, -TRAINED - 1 :]
    with torch.no_grad():
        rows = model(whole[:, :-1]).logits[0, -len(ids) :].double().log_softmax(-1)
    expected = -float(rows.gather(1, torch.tensor(ids)[:, None]).mean())
    assert result.documents[0]["nll_generated"] == pytest.approx(expected, rel=1e-5)
    assert result.metrics["ppl_generated"] == pytest.approx(math.exp(expected), rel=1e-5)


def test_what_has_no_answer_has_no_perplexity():
    assert generated.metrics([{}, {}]) == {}
    found = generated.metrics([{"nll_generated": 1.0}, {}, {"nll_generated": 3.0}])
    assert found["ppl_generated"] == pytest.approx(math.exp(2)) and found["nll_generated_stderr"] == pytest.approx(1)


def test_an_answer_that_is_not_generated_is_not_judged():
    (result,) = evaluate([cell(TRAINED, {"name": "none"}, name="recall", ask="near")])
    assert result.status == "ok" and "ppl_generated" not in result.metrics
