"""Whatever comes into what reads results, policies and tasks of the user's ends in success or in a sentence."""

# ruff: noqa: RUF005

from __future__ import annotations

import json

import border
import pytest
from border import NUMBERS, PLAIN, TEXTS, entered, examples
from hypothesis import example, given
from hypothesis import strategies as st
from support import stub_cell
from test_fuzz import SLOW_TIMES, TIMES, VALUES

from pipelines.records.cells import Refusal, Result
from pipelines.records.results import Store, read_file
from pipelines.report import gate
from pipelines.tasks import files

RULES = st.sampled_from(
    ["context_gain@2048 >= 0", "short_cost <= 2%", "effective_length >= 512", "effective_length/nolima >= 1", "x >= 1"]
    + ["passkey@1024 >= 0.9 with 95 %", "perplexity/ppl@64 < 9", "perplexity >= 1e9", "a@9999999999999999 >= 1", ">="]
    + ["perplexity@64 <= 99999999999999999999999999999999999999999999%", "p >= 1 with 99 %", "p @ 1 >= 1", "stub > -1"]
)
POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "rules": st.lists(RULES | PLAIN | st.fixed_dictionaries({"rule": RULES}, optional={"dtype": PLAIN}), max_size=4)
        | PLAIN,
        "strategy": PLAIN,
        "task": TEXTS,
        "status": TEXTS,
        "x": PLAIN,
    },
)


@pytest.fixture
def store(enclosed):
    """Two cells of one sweep."""
    store = Store(enclosed / "store")
    cells = [stub_cell(length=length) for length in (64, 128)]
    for cell in cells:
        store.save(cell, Result(cell.id, "ok", metrics={"nll": 1.0}, documents=[{"index": 0, "nll": 1.0}] * 3))
    return store


@TIMES
def test_policies(store, enclosed, times):
    path = enclosed / "policy.yaml"

    @examples(200, times)
    @given(POLICIES | PLAIN | st.text(max_size=40))
    def holds(policy):
        path.write_bytes((policy if isinstance(policy, str) else json.dumps(policy)).encode("utf-8", "surrogatepass"))
        try:
            rules = gate.read(path)
        except Refusal as reason:
            assert str(reason) and border.SECRET not in str(reason)
        else:
            for outcome in gate.held(rules, []):
                assert not outcome.passed, "nothing was measured"

    holds()


TASK_KEYS = st.sampled_from(
    ["task", "dataset_path", "dataset_kwargs", "test_split", "output_type", "doc_to_text", "doc_to_target", "include"]
    + ["doc_to_choice", "process_docs", "metric_list", "generation_kwargs", "num_fewshot", "unsafe_code", "metadata"]
    + ["group", "task_list", "filter_list", "custom_dataset", "repeats", "fewshot_config", "x"]
)
TASK_VALUES = (
    PLAIN
    | st.sampled_from(["json", "multiple_choice", "generate_until", "mine.yaml", "base.yaml", "../../x", "data.jsonl"])
    | st.fixed_dictionaries({}, optional={"data_files": PLAIN | st.just("data.jsonl"), "metric": PLAIN})
    | st.lists(st.fixed_dictionaries({"metric": PLAIN | st.just("acc")}), max_size=2)
)


@TIMES
def test_task_files(enclosed, times):
    folder = enclosed / "task"
    folder.mkdir()
    (folder / "data.jsonl").write_text('{"a": 1}\n')
    (folder / "base.yaml").write_text("include: mine.yaml\ntask: base\n")
    functions = st.sampled_from(["", "process_docs: !function helpers.kept\n", "doc_to_text: !function x\n"])
    functions |= st.sampled_from(["a: !function ../x.y\n", "b: !function [1]\n", "c: !!python/name:os.system\n"])
    (folder / "helpers.py").write_text("def kept(documents:\n")

    @examples(200, times)
    @given(st.dictionaries(TASK_KEYS, TASK_VALUES, max_size=6), functions)
    @example({"include": "base.yaml"}, "")
    @example({"include": "x" * 3000}, "")
    def holds(body, more):
        lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in body.items())
        (folder / "mine.yaml").write_bytes((lines + more).encode("utf-8", "surrogatepass"))
        try:
            assert files.read(folder / "mine.yaml").digest
        except Refusal as reason:
            assert str(reason) and border.SECRET not in str(reason)

    holds()


@TIMES
def test_files_of_results_that_lie_anywhere(store, enclosed, times):
    cell = stub_cell()
    sound = json.loads((store.cell(cell.id) / "result.json").read_text())
    path = enclosed / "given.json"
    places = st.sampled_from(["model", "strategy", "options", "length", "plans", "task", "limit", "id", "metrics"])

    @examples(200, times)
    @given(st.dictionaries(places, PLAIN, max_size=3), st.sampled_from(["cell", "result"]))
    def holds(changes, part):
        from pipelines.records.cells import digest_of

        body = {key: value for key, value in sound.items() if key != "checksum"}
        body = json.loads(json.dumps({**body, part: {**body[part], **changes}}))
        path.write_text(json.dumps({"checksum": digest_of(body), **body}))
        try:
            read_file(path)
        except Refusal as reason:
            assert str(reason)

    holds()


WORDS = st.sampled_from(
    ["axis=dtype", "axis=nope", "axis=", "status=failed", "length=64", "length=abc", "strategy=none", "x=1", "--margin"]
    + ["1%", "-5%", "nan%", "--json", "--csv", "--baseline", "nobody", "cells", "sweeps", "rm", "clean", "latest", "."]
    + ["methods", "--markdown", "--parquet", "--yes"]
    + ["..", "/", "/dev/null", "result.json", "[/INST]", "*", "**/*", "a" * 3000, "dtype=", "=", "store=/dev/null"]
)


@SLOW_TIMES
def test_command_lines_of_verbs_that_read_results(store, enclosed, times):
    verbs = st.sampled_from(["report", "compare", "gate", "results"])
    border.run(["results"])

    @examples(60, times)
    @given(verbs, st.lists(WORDS | TEXTS | st.tuples(WORDS, VALUES | NUMBERS.map(str)).map("".join), max_size=3))
    def holds(verb, words):
        entered(enclosed, verb, *(word for word in words if "\0" not in word))

    holds()
