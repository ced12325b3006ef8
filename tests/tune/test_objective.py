"""What a search is for: perplexity, key tokens, passkeys, or more than cropping gives."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from pipelines.cli.tune import _measuring
from pipelines.records.cells import Refusal, Result
from pipelines.tune import bench
from pipelines.tune.bench import Bench
from pipelines.tune.search import OBJECTIVES, SearchSettings
from pipelines.tune.tune import critical
from rope.geometry import Geometry
from rope.theory import critical_pair

DOCUMENTS = [
    {"index": 0, "nll": 2.0, "key_tokens": 4.0, "nll_key": 1.0},
    {"index": 1, "nll": 9.0, "key_tokens": 0.0},
    {"index": 2, "nll": 4.0, "key_tokens": 1.0, "nll_key": 2.0},
]


def a_bench(monkeypatch, documents, *, keys):
    cell = SimpleNamespace(id="c", length=1024)
    result = Result("c", "ok", metrics={"nll": 5.0, "nll_key": 1.5, "ppl_key": 4.5}, documents=documents)
    monkeypatch.setattr(bench, "compute", lambda cells, *args, **kwargs: [(cell, result)])
    choice = SimpleNamespace(task={"name": "perplexity"}, length=1024)
    made = Bench(choice, [], None, SimpleNamespace(recall=lambda ids: []), None, keys=keys)
    made.results([cell])
    return made, cell, result


def test_a_search_for_key_tokens_counts_the_documents_that_have_some(monkeypatch):
    made, cell, result = a_bench(monkeypatch, DOCUMENTS, keys=True)
    assert made.value(["c"]) == 1.5
    judged = made.judged(cell, result)
    assert [row["nll"] for row in judged.documents] == [1.0, 2.0] and judged.metrics["ppl"] == 4.5
    assert made.judged(SimpleNamespace(id="c", length=512), result) is result, "up to the trained length there are none"
    plain, cell, result = a_bench(monkeypatch, DOCUMENTS, keys=False)
    assert plain.value(["c"]) == 5.0 and plain.judged(cell, result) is result


def test_without_any_key_token_the_search_ends_in_a_sentence(monkeypatch):
    made, *_ = a_bench(monkeypatch, [DOCUMENTS[1]], keys=True)
    with pytest.raises(Refusal, match="makes no token of these documents much likelier"):
        made.value(["c"])


def test_an_objective_brings_its_task_and_leaves_what_was_given():
    assert _measuring(None, []) == []
    assert _measuring("passkey", ["length=1024"]) == ["task=passkey"]
    assert _measuring("key_ppl", ["task.evaluator=dual_chunk"]) == ["task=perplexity"]
    with pytest.raises(Refusal, match=r"tune\.objective=passkey is of task=passkey; leave task=perplexity out"):
        _measuring("passkey", ["task=perplexity"])
    with pytest.raises(Refusal, match="give one of " + ", ".join(OBJECTIVES)):
        SearchSettings(objective="needle")


def test_the_critical_pair_of_a_list_is_told_beside_theorys():
    geometry = Geometry(head_dim=64, base=10_000.0, trained_length=512)
    theirs = critical_pair(geometry.native(2048), 512)
    stepped = [1.0] * theirs + [4.0] * (32 - theirs)
    said = critical({"factors": stepped}, geometry, 2048)
    assert said.startswith(f"critical pair: {theirs} of 32") and said.endswith(f"trained length, {theirs}")
    assert 2 * math.pi * 10_000 ** (theirs / 32) > 512 > 2 * math.pi * 10_000 ** ((theirs - 1) / 32)
    later = [1.0] * 25 + [2.0] * 3 + [4.0] * 4  # half way up is not the factor
    assert critical({"factors": later}, geometry, 2048).startswith("critical pair: 28 of")
    assert critical({"factors": [3.0] * 32}, geometry, 2048).startswith("critical pair: none of")
    assert critical({}, geometry, 2048) == ""
