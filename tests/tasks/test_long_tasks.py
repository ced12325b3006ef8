"""lm-eval's own long tasks: the table of docs is that of the installed version, and their scores are lm-eval's own."""

from __future__ import annotations

import datasets
import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from support import PROJECT

from pipelines.cli.main import run
from pipelines.records.cells import Refusal, Task
from pipelines.tasks import harness, long_tasks, named, registry
from pipelines.tasks.documents import Encoder
from pipelines.tasks.scorer import LongLM, quiet

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH = 1200
WORDS = "the green hill and the blue river near the old town " * 6
ROWS = {
    "longbench2_table": [
        {
            "context": f"{WORDS}{n}",
            "question": "Which?",
            "choices": [*"pqrs"],
            "answer": "ABCD"[n],
        }
        for n in range(4)
    ],
    "infinitebench_passkey": [
        {"id": n, "context": f"{WORDS}The key is {n}{n}.", "input": "The key is", "answer": [f"{n}{n}"], "options": []}
        for n in range(4)
    ],
    "babilong_qa1": [
        {"input": f"{WORDS} Ann went to the garden {n}.", "question": "Where is Ann?", "target": "garden"}
        for n in range(4)
    ],
}


def test_the_table_in_the_docs_is_that_of_the_installed_version(capsys):
    table = long_tasks.table()
    assert table in (PROJECT / "docs/tasks.md").read_text(encoding="utf-8"), (
        "docs/tasks.md: put in what `ropewalk tasks --lm-eval` prints"
    )
    assert run(["tasks", "--lm-eval"]) == 0
    assert table in capsys.readouterr().out


def test_every_task_of_the_table_is_found_and_what_it_refuses_is_refused(tokenizer):
    families = {each.name: each for each in long_tasks.families()}
    assert [*families] == list(long_tasks.FAMILIES)
    for each in families.values():
        assert each.tasks and all(named.find(name).parent.name == each.name for name in each.tasks)
    gone = families["scrolls"]
    assert gone.missing
    with pytest.raises(Refusal, match=f"needs packages that are not installed.*{gone.missing[0]}"):
        path = named.find("scrolls_quality")
        harness.by_name(
            *("scrolls_quality", path),
            length=LENGTH,
            encode=Encoder.of(tokenizer),
            folder=".",
            seed=0,
            num_fewshot=None,
        )


@pytest.mark.parametrize("name", ROWS)
def test_with_local_data_its_scores_are_those_of_stock_lm_eval(model, tokenizer, monkeypatch, tmp_path, name):
    rows = datasets.Dataset.from_list(ROWS[name])
    splits = {split: rows for split in ("train", "test", "passkey", "qa1")}

    def load_dataset(*_, split=None, **__):
        return rows if split else splits

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    tokenizer.save_pretrained(tmp_path)
    lm = LongLM(model, tokenizer, max_length=LENGTH, folder=str(tmp_path))
    ours = registry.score(lm, Task(name, ()), length=LENGTH, limit=4, seed=0)
    settings = {"max_seq_lengths": "1k", "tokenizer": str(tmp_path), "pretrained": str(tmp_path)}
    with quiet():
        task = TaskManager(include_defaults=False, metadata=settings).load([str(named.find(name))])["tasks"][name]
        stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=LENGTH)
        theirs = lm_eval.evaluate(lm=stock, task_dict={"tasks": {name: task}}, bootstrap_iters=10)["results"][name]
    compared = {key.partition(",")[0]: value for key, value in theirs.items() if key.endswith(",none")}
    compared = {key: value for key, value in compared.items() if isinstance(value, float) and "stderr" not in key}
    assert compared and compared == {key: ours.metrics[key] for key in compared}
    assert len(ours.documents) == 4
