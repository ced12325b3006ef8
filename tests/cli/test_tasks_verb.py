"""`ropewalk tasks` says what there is, what guessing scores, and shows a document as a model reads it."""

from __future__ import annotations

import re

import pytest
from support import PROJECT

from pipelines.choices.compose import expand
from pipelines.cli import meanings
from pipelines.cli.main import run
from pipelines.records.cells import Refusal
from pipelines.tasks import registry
from pipelines.tasks.questions import QuestionTask


def shown(capsys, *words):
    assert run(["tasks", *words]) == 0
    return capsys.readouterr().out


def test_the_list_has_every_task_of_ours_with_its_chance_and_every_suite(capsys):
    text = shown(capsys)
    for name, task in registry.OWN.items():
        chance = "-" if task.chance is None else f"{task.chance:.0%}"
        assert f"\n  {name:15} {chance} " in text
    for name in meanings.values("suite"):
        assert f"  suite/{name} " in text


def test_the_table_in_the_docs_has_every_task_with_its_kinds_and_its_chance():
    page = (PROJECT / "docs" / "tasks.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.* \| .* \| .*) \| .* \|$", page.partition("## Suites")[0], re.MULTILINE))
    asking = {name: task for name, task in registry.OWN.items() if isinstance(task, QuestionTask)}
    assert [*rows] and set(rows) == set(asking)
    for name, task in asking.items():
        kinds, _, chance = rows[name].rsplit(" | ", 2)
        named = re.sub(
            r"(\w+_)(\d)\.\.(\d)", lambda m: "` `".join(f"{m[1]}{n}" for n in range(int(m[2]), int(m[3]) + 1)), kinds
        )
        assert chance == f"{task.chance:.0%}".replace("%", " %")
        if len(task.asks) > 1 or "`" in kinds:
            assert set(re.findall(r"`(\w+)`", named)) == set(task.asks), name


def test_a_name_alone_shows_its_options(capsys):
    text = shown(capsys, "recall")
    assert all(f"task.{option}" in text for option in registry.OWN["recall"].options)


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            ["many_shot", "length=300"],
            ["tokens of a document, its answer included: 300", "guessing scores 25%", "  right: "],
        ),
        (
            ["recall", "length=900", "task.ask=near", "limit=2"],
            ["2 documents (seed=0)", "ask near", "What does", "  right: "],
        ),
        (["perplexity", "length=64"], ["perplexity at length=64 for tiny", "guessing scores nothing that is a share"]),
    ],
)
def test_a_sample_is_what_the_model_reads_with_its_lengths_and_what_is_right(capsys, words, lines):
    text = shown(capsys, words[0], "--show", *words[1:])
    assert all(line in text for line in lines)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ruller"], "there is no task 'ruller' of ours; did you mean ruler?"),
        (["--show"], "give the name of a task"),
        (["recall", "length=64"], "options are for --show"),
        (["recall", "--show", "length=1024,2048"], "--show takes one value of every key"),
        (["recall", "--show", "length=64"], "choose length="),
    ],
)
def test_what_cannot_be_shown_is_refused(capsys, words, sentence):
    assert run(["tasks", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_suite_is_its_tasks_with_their_limit_and_lengths_and_what_is_given_counts_before():
    quick = expand(["task=suite/quick"])
    assert {choice.task["name"] for choice in quick} >= {"perplexity", "recall", "sections", "conversation"}
    assert {choice.length for choice in quick} == {1024, 2048} and {choice.limit for choice in quick} == {8}
    fewer = expand(["length=64", "task=suite/quick,gsm8k", "limit=2"])
    assert {choice.length for choice in fewer} == {64} and {choice.limit for choice in fewer} == {2}
    assert len(fewer) == len(quick) // 2 + 1
    with pytest.raises(Refusal, match=r"task=suite/quik: unknown suite; did you mean quick\? there are full, quick"):
        expand(["task=suite/quik"])


@pytest.mark.parametrize("name", meanings.values("suite"))
def test_every_suite_names_tasks_and_options_that_there_are(name):
    for choice in expand([f"task=suite/{name}"]):
        assert choice.task["name"] in registry.OWN
        registry.options_of(registry.task_of(choice.task), choice.limit)
