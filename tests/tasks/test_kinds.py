"""A task says itself how it is compared, halved and shown: no other code knows a task by its name."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import yaml
from support import PROJECT

from pipelines.records.cells import Refusal
from pipelines.tasks import named, passkey, perplexity, registry
from pipelines.tasks.kinds import Measure, Selection

NAMES = {*registry.OWN, "key_number"}
WORDS = {("train", "perplexity"), ("doctor", "perplexity"), ("report", "ruler"), ("tune", "passkey")}
"""Rooms that have a metric, a column or a rule or an aim of this name."""


def switches(source: str) -> set[str]:
    """Names of tasks that a source compares with, matches, looks up, or maps to something."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                parts += side.elts if isinstance(side, (ast.Tuple, ast.List, ast.Set)) else [side]
        elif isinstance(node, ast.Dict):
            parts += node.keys
        elif isinstance(node, ast.Subscript):
            parts.append(node.slice)
        elif isinstance(node, ast.MatchValue):
            parts.append(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            parts += node.args[:1]
        found |= {part.value for part in parts if isinstance(part, ast.Constant) and part.value in NAMES}
    return found


@pytest.mark.parametrize(
    "source",
    [
        'if cell.task.name == "perplexity": pass',
        'if name not in ("perplexity", "other"): pass',
        'HEADLINES = {"perplexity": ("ppl",)}',
        'HEADLINES["perplexity"]',
        'HEADLINES.get("perplexity")',
        'match name:\n    case "perplexity": pass',
        'any("perplexity" in row for row in rows)',
    ],
)
def test_a_switch_on_a_name_is_seen(source):
    assert switches(source) == {"perplexity"}
    assert not switches('task: str = "perplexity"\nTask("perplexity")')


ROOMS = sorted(path.name for path in (PROJECT / "pipelines").iterdir() if path.is_dir() and path.name != "tasks")


@pytest.mark.parametrize("room", ROOMS)
def test_no_other_room_switches_on_the_name_of_a_task(room):
    for path in (PROJECT / "pipelines" / room).rglob("*.py"):
        found = {name for name in switches(path.read_text()) if (room, name) not in WORDS}
        assert not found, f"{path.relative_to(PROJECT)} decides by {found}: ask registry.kind(name) instead"


def test_every_own_task_can_be_chosen_and_scored():
    for name, task in registry.OWN.items():
        conf = PROJECT / "conf" / "task" / f"{name}.yaml"
        assert conf.is_file(), f"write {conf.relative_to(PROJECT)}: name, and each option with its default # meaning"
        chosen = {option: value for option, value in yaml.safe_load(conf.read_text()).items() if option != "name"}
        defaults = {
            option: list(value) if isinstance(value, tuple) else value for option, value in task.options.items()
        }
        assert chosen == defaults, f"{conf.relative_to(PROJECT)} and the options of {name}.py differ"
        scored = Path(registry.__file__).parent / f"{task.yaml(task.options)}.yaml"
        assert scored.is_file(), f"write {scored.relative_to(PROJECT)}: include, task, process_results, metric_list"
        text = scored.read_text()
        assert f"!function pipelines.tasks.{name}.measure" in text, f"{scored.name}: process_results is {name}.measure"
        assert f"version: {task.version}\n" in text, f"{scored.name}: metadata.version is {task.version}, the class's"
        assert set(task.hashed) <= set(task.options)
    assert registry.kind("wikitext") is named.KIND


def test_options_at_their_default_leave_older_ids_alone():
    founding = {"text": "pydoc", "bos": None, "last": 256, "buckets": 16}
    assert perplexity.KIND.id_options({**perplexity.OPTIONS, **founding}) == founding
    assert perplexity.KIND.id_options({"windows": "means", "stride": 256}) == {"windows": "means"}
    assert "protocol" not in passkey.KIND.id_options(passkey.OPTIONS)
    assert passkey.KIND.id_options({"protocol": "codellama"}) == {"protocol": "codellama"}
    assert registry.kind("gsm8k").id_options({"num_fewshot": None}) == {"num_fewshot": None}
    assert registry.kind("gsm8k").id_options({"unknown": 1}) == {"unknown": 1}, "refused later, with its name"


def test_what_is_compared_and_in_what_units():
    assert (perplexity.KIND.measure.name, perplexity.KIND.measure.units) == ("nll", "documents")
    assert (passkey.KIND.measure.name, passkey.KIND.measure.units) == ("acc", "keys")
    assert registry.kind("gsm8k").measure_of("gsm8k", "exact_match/strict") == Measure(
        "exact_match/strict", lower=False
    )
    with pytest.raises(Refusal, match="whether more colour is better"):
        registry.kind("gsm8k").measure_of("gsm8k", "colour")


def test_the_worst_score_is_that_of_guessing_or_of_no_hit():
    assert perplexity.KIND.worst(257) == pytest.approx(math.log(257))
    assert passkey.KIND.worst(257) == 0.0


def test_more_observations_are_requested_by_the_options_of_the_task():
    assert perplexity.KIND.larger(9) == "limit=9"
    assert passkey.KIND.larger(9) == "task.keys=9 limit=9", "one limit alone takes no more keys than there are"


def test_the_halves_of_a_text_go_on_where_the_last_documents_ended():
    halves = perplexity.KIND.halves
    assert halves.select("tune", 2, 5, count=12, seed=7) == Selection({"part": "tune", "skip": 2}, limit=3, seed=7)
    assert not halves.nested
    for options, sentence in (
        ({"part": "tune"}, "task.part"),
        ({"skip": 1}, "task.skip"),
        ({"choose": "random"}, "order"),
    ):
        with pytest.raises(Refusal, match=sentence):
            halves.check(options)
    halves.check(perplexity.OPTIONS)


def test_the_halves_of_keys_are_two_seeds():
    halves = passkey.KIND.halves
    assert halves.select("tune", 2, 5, count=12, seed=7) == Selection({"keys": 12}, limit=5, seed=7)
    assert halves.select("report", 0, 12, count=12, seed=7) == Selection({"keys": 12}, limit=12, seed=8)
    assert halves.nested, "keys are counted from 0"


def test_a_half_tells_how_many_documents_it_holds(tmp_path, tokenizer):
    (tmp_path / "text.txt").write_text("one two three four " * 200)
    task = registry.Task("perplexity", (("text", str(tmp_path / "text.txt")),))
    whole = registry.forwards(task, tokenizer, length=32, limit=None)
    parts = [registry.held(task, tokenizer, part=part, length=32) for part in ("tune", "report")]
    assert all(parts) and whole - 1 <= sum(parts) <= whole
    assert registry.held(task, tokenizer, part="tune", length=100_000) == 0
    assert registry.held(registry.Task("passkey"), tokenizer, part="tune", length=512) is None
