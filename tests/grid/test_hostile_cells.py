"""Documents and numbers that no text, file or function takes as they are, through a whole grid."""

from __future__ import annotations

import pytest

from pipelines.cli.main import run
from pipelines.records.results import Store
from pipelines.tasks.exact import LogLikelihood
from pipelines.tasks.scorer import LongLM

GRID = ["grid", "cluster=cpu", "limit=2", "short=none", "strategy=none", "length=256"]

TASK = """task: halves
dataset_path: json
dataset_kwargs: {data_files: halves.jsonl}
test_split: train
output_type: multiple_choice
doc_to_text: !function helpers.asked
doc_to_target: right
doc_to_choice: !function helpers.choices
metric_list: [{metric: acc}]
"""

HELPERS = r"""
def asked(document):
    return "The other half of \ud800 [/INST] is"


def choices(document):
    return ["\udc00", "none"]
"""


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(tmp_path / "store")


def results(store):
    [sweep] = store.sweeps()
    found = [store.read(cell["id"]) for cell in sweep["cells"]]
    assert not store.unrecorded() and all(found), "MLflow lacks something"
    return found


def test_half_a_character_in_a_document_fails_its_cell_and_costs_no_other(store, tmp_path, capfd):
    """No tokenizer takes it."""
    (tmp_path / "halves.yaml").write_text(TASK)
    (tmp_path / "helpers.py").write_text(HELPERS)
    (tmp_path / "halves.jsonl").write_text("\n".join(['{"right": 0}'] * 3))
    code = run([*GRID, "model=tiny", f"task={tmp_path / 'halves.yaml'},perplexity"])
    found = results(store)
    assert code == 1 and [result.status for result in found] == ["failed", "ok"], [result.error for result in found]
    assert "Traceback" not in "".join(capfd.readouterr())


def test_half_a_character_in_a_text_is_refused_in_a_sentence(store, tmp_path, capfd):
    text = tmp_path / "halves.txt"
    text.write_bytes(b"A text with half a character \xed\xa0\x80 in it, and [/INST] too.\n" * 80)
    assert run([*GRID, "model=random", f"task.text={text}"]) == 2
    assert "not UTF-8 text; convert it" in capfd.readouterr().err


@pytest.mark.parametrize("task", ["perplexity", "perplexity task.evaluator=none"], ids=["perplexity", "key tokens"])
def test_a_likelihood_beyond_what_exp_takes_is_diverged_in_a_whole_grid(task, store, monkeypatch, capfd):
    score = LongLM._score

    def unlikely(lm, states, target):
        sums, greedy = score(lm, states, target)
        return LogLikelihood(float(sums) * 200, sums.tokens * 200), greedy

    monkeypatch.setattr(LongLM, "_score", unlikely)
    code = run([*GRID, "model=random", *f"task={task}".split()])
    found = results(store)
    assert code == 0 and {result.status for result in found} == {"diverged"}, [result.error for result in found]
    assert all(result.metrics["nll"] > 709 and "ppl" not in result.metrics for result in found)
    assert "Traceback" not in "".join(capfd.readouterr())
