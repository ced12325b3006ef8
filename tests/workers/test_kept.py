"""A larger limit computes only the new documents, and its numbers are those of a cell computed from scratch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cutting import scored
from cutting import tiny_cell as cell

from pipelines.records.results import Store
from pipelines.workers import kept
from pipelines.workers.compute import compute


def computed(chosen, store, **options):
    [(_, result)] = compute([chosen], store, **options)
    assert result.status == "ok", result.error
    return result


def passkey(keys):
    return {"name": "passkey", "keys": keys}


SLIDING = {"name": "perplexity", "windows": "sliding", "stride": 32, "document": 192}
MEANS = {**SLIDING, "windows": "means"}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("small", "large", "documents"),
    [
        (cell(2), cell(6), (2, 6)),
        (cell(9, passkey(1), 160), cell(3, passkey(3), 160), (4, 12)),
        slow(cell(2, length=640, strategy="crop"), cell(3, length=640, strategy="crop"), (2, 3)),
        slow(cell(2, SLIDING), cell(3, SLIDING), (2, 3)),
        slow(cell(2, MEANS), cell(3, MEANS), (2, 3)),
        slow(cell(1, {"name": "recall"}, 512), cell(2, {"name": "recall"}, 512), None),
    ],
    ids=["perplexity", "passkey", "crop", "sliding", "means", "recall"],
)
def test_a_larger_limit_computes_only_the_new_documents_and_has_the_numbers_of_all(small, large, documents, tmp_path):
    store, scratch = Store(tmp_path / "store"), Store(tmp_path / "scratch")
    first = computed(small, store)
    grown, whole = computed(large, store), computed(large, scratch)
    for name in ("metrics", "series", "documents", "digest", "status"):
        assert scored(grown, name) == scored(whole, name), name
    before, now = len(first.documents), len(grown.documents)
    assert documents in (None, (before, now)) and before < now
    if large.task.name == "perplexity":
        assert grown.cost["tokens"] == pytest.approx(whole.cost["tokens"] * (now - before) / now)
    assert grown.cost["tokens"] < whole.cost["tokens"]
    one, other = grown.provenance["documents"]
    assert (one["cell_id"], one["documents"], one["at"]) == (small.id, before, first.provenance["at"])
    assert other == {"cell_id": large.id, "documents": now - before}
    assert "documents" not in whole.provenance


def test_documents_that_were_taken_over_twice_are_named_by_the_cell_that_computed_them(tmp_path):
    store = Store(tmp_path)
    for limit in (1, 2, 4):
        result = computed(cell(limit), store)
    assert [(one["cell_id"], one["documents"]) for one in result.provenance["documents"]] == [
        (cell(1).id, 1),
        (cell(2).id, 1),
        (cell(4).id, 2),
    ]


def test_nothing_is_taken_over_from_another_seed_a_damaged_result_other_code_or_where_all_is_forced(tmp_path):
    store = Store(tmp_path)
    result = computed(cell(1), store)
    whole = cell(2)
    assert list(kept.kept_of([whole], store)) == [whole.id]
    others = [replace(whole, seed=1), replace(whole, dtype="bfloat16"), replace(whole, length=64)]
    assert kept.kept_of(others, store) == {}
    assert "documents" not in computed(whole, store, force=True).provenance
    store.cell(whole.id).joinpath("result.json").unlink()
    store.save(cell(1), replace(result, provenance={**result.provenance, "measuring": "other"}))
    assert "documents" not in computed(whole, store).provenance
    store.cell(whole.id).joinpath("result.json").unlink()
    store.save(cell(1), replace(result, digest="of other tokens"))
    assert "documents" not in computed(whole, store).provenance
    store.cell(cell(1).id).joinpath("result.json").write_text("{}")
    assert kept.kept_of([whole], store) == {}
