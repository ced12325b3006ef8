"""A task out of one's own files: checked before anything of it runs, known by its content, and run like any other."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from support import TINY

from pipelines.choices.compose import expand
from pipelines.choices.sweep import cells_of, sorted_out
from pipelines.cli.main import run
from pipelines.records.cells import Cell, Refusal
from pipelines.tasks import registry

BODY = """task: capitals
dataset_path: json
dataset_kwargs: {data_files: capitals.jsonl}
test_split: train
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_target: right
doc_to_choice: "{{choices}}"
process_docs: !function helpers.kept
metric_list: [{metric: acc}]
"""
ROWS = [{"country": "France", "choices": ["Paris", "Rome"], "right": 0}] * 6


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "mine")


def write(folder, body=BODY, rows=ROWS, python="import json\n\n\ndef kept(documents):\n    return documents\n"):
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(body)
    (folder / "capitals.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "helpers.py").write_text(python)
    return folder


def cells(task, *more):
    return cells_of(expand([f"task={task}", "model=tiny", "length=512", "cluster=cpu", *more]))


def test_a_task_of_a_file_is_a_cell_by_its_own_name(folder):
    [cell] = cells(folder / "mine.yaml", "task.num_fewshot=2")
    assert cell.task.name == "capitals" and cell.task.option("num_fewshot") == 2
    assert Cell.of(json.loads(json.dumps(cell.spec()))).id == cell.id
    both = cells(f"{folder / 'mine.yaml'},perplexity")
    assert [one.task.name for one in both] == ["capitals", "perplexity"]


@pytest.mark.parametrize("changed", ["mine.yaml", "capitals.jsonl", "helpers.py", "base.yaml"])
def test_an_edited_task_is_another_cell_and_a_moved_one_the_same(changed, folder, tmp_path):
    body, _, metrics = BODY.partition("metric_list")
    (folder / "mine.yaml").write_text(f"include: base.yaml\n{body}")
    (folder / "base.yaml").write_text(f"metric_list{metrics}")
    [before] = cells(folder / "mine.yaml")
    [moved] = cells(shutil.copytree(folder, tmp_path / "elsewhere") / "mine.yaml")
    assert moved.id == before.id and moved.task != before.task
    with (folder / changed).open("a") as file:
        file.write("\n# edited\n" if changed != "capitals.jsonl" else "\n" + json.dumps(ROWS[0]))
    [after] = cells(folder / "mine.yaml")
    assert after.id != before.id


def test_a_folder_gives_all_its_tasks(folder):
    (folder / "other.yaml").write_text("include: mine.yaml\ntask: others\n")
    (folder / "template.yaml").write_text("output_type: loglikelihood\n")
    assert [cell.task.name for cell in cells(folder)] == ["capitals", "others"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("test_split", "tset_split", "tset_split: a task has no such key; did you mean test_split?"),
        ("task: capitals", "task: perplexity", "perplexity is a task of ropewalk's own"),
        ("task: capitals", "group: all\ntask: [a, b]", "it is a group of tasks"),
        ("task: capitals", "task: a b", "give it a name of letters"),
        ("capitals.jsonl", "nope.jsonl", "data_files: nope.jsonl: there is no such file"),
        ("dataset_kwargs: {data_files: capitals.jsonl}\n", "", "give dataset_kwargs: data_files: FILE"),
        ("dataset_path: json\n", "", "it has no data: give dataset_path"),
        ("test_split: train\n", "", "give test_split"),
        ('doc_to_text: "The capital of {{country}} is"\nd', "d", ""),
        ("multiple_choice", "multi", "output_type: multi: give one of generate_until"),
        ("metric: acc", "metric: accuracy", "lm-eval has no such metric"),
        ("helpers.kept", "helper.kept", "there is no helper.py beside it"),
        ("helpers.kept", "helpers.kpt", "helpers.py has no function kpt"),
        ("task: capitals", "include: base.yaml\ntask: capitals", "include: base.yaml: there is no such file"),
        ("task: capitals", "include: mine.yaml\ntask: capitals", "files include each other"),
        ("task: capitals", "task: [", "mine.yaml"),
    ],
)
def test_what_is_wrong_with_a_task_is_said_before_anything_runs(old, new, sentence, folder, capsys):
    assert old in BODY
    body = BODY.replace(old, new)
    (folder / "mine.yaml").write_text(body if sentence else body.replace("process_docs: !function helpers.kept\n", ""))
    assert run(["plan", f"task={folder / 'mine.yaml'}", "model=tiny", "length=512"]) == 2
    message = capsys.readouterr().err
    assert (sentence or "give doc_to_text") in message and message.count("\n") == 1
    assert "helpers" not in sys.modules, "its Python ran"


def test_a_package_that_its_python_needs_and_that_is_not_there_is_named(folder):
    write(folder, python="import no_such_package_at_all\n\ndef kept(documents): return documents\n")
    with pytest.raises(Refusal, match=r"helpers\.py imports no_such_package_at_all, which is not installed"):
        cells(folder / "mine.yaml")


def test_a_task_that_runs_what_the_model_writes_needs_the_flag(folder):
    (folder / "base.yaml").write_text("unsafe_code: true\n")
    (folder / "mine.yaml").write_text(f"include: [base.yaml]\n{BODY}")
    _, [invalid] = sorted_out(expand([f"task={folder / 'mine.yaml'}", "model=tiny", "length=512"]))
    assert "allow_unsafe_tasks=true" in invalid.reason
    assert cells(folder / "mine.yaml", "allow_unsafe_tasks=true")


@pytest.mark.parametrize("given", ["./no/such.yaml", "./no/such/folder", "nope.yaml"])
def test_a_file_that_is_not_there_is_refused(given):
    with pytest.raises(Refusal, match="there is no such file or folder"):
        expand([f"task={given}", "model=tiny", "length=512"])


def test_a_folder_without_tasks_is_refused(tmp_path):
    with pytest.raises(Refusal, match="no YAML file of this folder says"):
        expand([f"task={tmp_path}", "model=tiny", "length=512"])


def test_cells_of_lm_evals_own_tasks_keep_their_ids():
    """`files` is no part of them: their options are what they were."""
    [cell] = cells("wikitext")
    assert dict(cell.task.options) == {"num_fewshot": None} and cell.data == ""
    assert registry.kind("wikitext").id_options({"num_fewshot": None, "files": None}) == {"num_fewshot": None}


@pytest.mark.slow
def test_a_task_of_ones_own_runs_from_any_folder_and_again_after_an_edit(folder, tmp_path, monkeypatch, capsys):
    """The edited data call another choice right in one of six documents that are alike."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROPEWALK_STORE", str(tmp_path / "store"))
    ran = []
    for rows in (ROWS, [{**row, "right": int(n == 0)} for n, row in enumerate(ROWS)]):
        write(folder, rows=rows)
        assert (
            run(["grid", "task=./mine", f"model={TINY}", "cluster=cpu", "strategy=none", "length=512", "--json"]) == 0
        )
        ran.append(json.loads(capsys.readouterr().out))
    before, after = (one["cells"][0] for one in ran)
    assert before["id"] != after["id"] and before["metrics"]["acc"] in (0.0, 1.0)
    assert after["metrics"]["acc"] in (pytest.approx(1 / 6), pytest.approx(5 / 6))
