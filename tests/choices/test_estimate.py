"""What a grid will take, against what the code that runs it does; and what is not known stays unknown."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
from support import CELL

from pipelines.choices import estimate, sweep
from pipelines.choices.compose import expand
from pipelines.choices.estimate import CellWork, Newest, Shape, Speed
from pipelines.models import find, load
from pipelines.records.cells import Model, Refusal, Result, Task, frozen
from pipelines.records.results import Store
from pipelines.tasks import registry
from pipelines.tasks.documents import Encoder
from rope import strategies

TINY = Model("tiny", "models/tiny")
RANDOM = Model(
    "random",
    "random",
    shape=frozen(
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        }
    ),
)
LLAMA3_8B = Shape.of(
    {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
)
PERPLEXITY = Task("perplexity", frozen({"text": "pydoc", "bos": None, "last": 256, "buckets": 16}))


def cell(model=TINY, length=512, task=PERPLEXITY, limit=2, **changes):
    return replace(CELL, model=find.describe(model)[0], length=length, task=task, limit=limit, **changes)


def test_the_scorers_constants_are_the_scorers():
    from pipelines.tasks import forward, logits, scorer, shared

    constants = ("ROWS", "WORK", "LEAN_FROM")
    assert [getattr(estimate, name) for name in constants] == [getattr(forward, name) for name in constants]
    assert estimate.FEWEST == shared.FEWEST
    assert estimate.HEAD_ELEMENTS == logits.HEAD_ELEMENTS
    assert inspect.signature(scorer.LongLM).parameters["batch_tokens"].default == estimate.BATCH_TOKENS


@pytest.mark.parametrize("model", [TINY, RANDOM], ids=lambda model: model.name)
def test_parameters_counted_from_the_config_are_the_models(model):
    described, config = find.describe(model)
    loaded = load.model(described, "float32", "cpu")
    assert Shape.of(config).parameters == pytest.approx(loaded.num_parameters(), rel=0.01)


def test_a_known_model_has_its_known_size():
    assert LLAMA3_8B.parameters == pytest.approx(8.03e9, rel=0.001)


SMOLLM2 = Shape(576, 1536, 30, 9, 576, 192, 49152, True)
EMBEDDED = Shape(256, 704, 8, 4, 256, 128, 8192, True)
FOUR_LAYERS = Shape(4096, 14336, 4, 32, 4096, 1024, 32000, False)


@pytest.mark.parametrize(
    ("shape", "dtype", "length", "rows", "gib"),
    [
        (LLAMA3_8B, "bfloat16", 512, 8, 15.44),
        (LLAMA3_8B, "bfloat16", 8192, 2, 16.81),
        (LLAMA3_8B, "float32", 512, 8, 30.98),
        (LLAMA3_8B, "bfloat16", 131072, 1, 18.13),
        (LLAMA3_8B, "bfloat16", 1048576, 1, 29.08),
        (FOUR_LAYERS, "float32", 32768, 1, 8.41),
        (SMOLLM2, "bfloat16", 512, 8, 0.521),
        (SMOLLM2, "bfloat16", 8192, 2, 0.612),
        (SMOLLM2, "bfloat16", 65536, 1, 1.14),
        (SMOLLM2, "bfloat16", 98304, 1, 1.57),
        (SMOLLM2, "float32", 512, 8, 0.768),
    ],
)
def test_memory_is_what_was_measured(shape, dtype, length, rows, gib):
    """Peak allocations of decoder and chunked head, random weights, one H100, torch 2.11, transformers 5.17."""
    result = estimate.peak(shape, cell(dtype=dtype, device="cuda"), length, rows * length)
    assert result / 2**30 == pytest.approx(gib, rel=0.2 if gib < 1 else 0.06)


def test_a_config_without_a_width_or_with_experts_has_no_estimate():
    assert Shape.of({"hidden_size": 64}) is None
    assert Shape.of({**find.describe(RANDOM)[1], "num_local_experts": 8}) is None


def test_the_largest_length_fits_and_a_longer_one_does_not():
    request, room = cell(dtype="bfloat16", device="cuda"), 80 * 2**30
    longest = estimate.largest(LLAMA3_8B, request, room)
    assert estimate.peak(LLAMA3_8B, request, longest, longest) <= room
    assert estimate.peak(LLAMA3_8B, request, longest * 1.02, longest * 1.02) > room
    assert estimate.largest(LLAMA3_8B, request, 2**30) == 0


@pytest.mark.parametrize("model", [TINY, RANDOM], ids=lambda model: model.name)
def test_the_plain_tokenizer_says_what_transformers_says(model):
    described, _ = find.describe(model)
    plain, full = find.plain_tokenizer(described), load.tokenizer(described)
    said = "The pass key is 12345. Grün ist die Heide.\n\n  def f(x): return x"
    assert Encoder.of(plain)(said) == Encoder.of(full)(said)
    assert plain.bos_token_id == full.bos_token_id


@pytest.mark.parametrize(
    ("task", "length", "limit"),
    [
        (PERPLEXITY, 4096, None),
        (PERPLEXITY, 512, 3),
        (Task("passkey", frozen({"keys": 3})), 512, None),
        (Task("passkey", frozen({"keys": 3})), 512, 1),
    ],
)
def test_documents_are_counted_as_they_are_built(task, length, limit):
    described, _ = find.describe(TINY)
    tokenizer = load.tokenizer(described)
    options = {**registry.OWN[task.name].options, **dict(task.options)}
    built = registry.OWN[task.name].build(options, Encoder.of(tokenizer), length=length, limit=limit, seed=0)
    plain = find.plain_tokenizer(described)
    assert registry.forwards(task, plain, length=length, limit=limit) == len(built)


def test_a_tokenizer_that_cannot_be_read_is_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert find.plain_tokenizer(Model("bare", str(tmp_path))) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert find.plain_tokenizer(Model("broken", str(tmp_path))) is None


def test_what_cannot_be_counted_is_not():
    assert registry.forwards(Task("gsm8k"), None, length=64, limit=None) is None
    assert registry.forwards(Task("gsm8k"), None, length=64, limit=5) == 5
    assert registry.forwards(PERPLEXITY, None, length=64, limit=None) is None
    assert registry.forwards(Task("passkey"), None, length=64, limit=None) == 8
    with pytest.raises(Refusal, match="gsm8kk"):
        registry.forwards(Task("gsm8kk"), None, length=64, limit=None)


def test_a_survey_says_which_cells_the_text_refuses_and_counts_the_others():
    good, bad = cell(), cell(length=10_000_000)
    work, refused = estimate.survey([good, bad, replace(good, seed=3)])
    assert work[good.id] == CellWork(2, 1024, 512, 1024) and len(work) == 2
    assert list(refused) == [bad.id] and "10,000,000 are needed" in refused[bad.id]
    # Documents meet in one forward up to the scorer's 16,384 tokens.
    assert estimate.survey([many := cell(limit=100)])[0][many.id].at_once == 16384


def saved(store, seconds_a_token, **changes):
    for length, seconds in seconds_a_token.items():
        done = cell(length=length, **changes)
        cost = {"seconds": 1.0, "tokens": 1000.0, "tokens_per_second": 1 / seconds}
        store.save(done, Result(done.id, "ok", metrics={"ppl": 2.0}, cost=cost))


def test_time_is_scaled_from_earlier_cells_of_the_model(tmp_path):
    store, todo = Store(tmp_path), [cell(length=1024), cell(length=4096)]
    work, _ = estimate.survey(todo)
    [guess] = estimate.loads(todo, work, Newest(store))
    assert guess.basis.startswith("a guess") and guess.passes == 4 and guess.tokens == 10240
    saved(store, {512: 5e-3}, dtype="bfloat16")
    assert estimate.loads(todo, work, Newest(store))[0].basis.startswith("a guess")
    saved(store, {512: 1e-3, 2048: 2e-3})
    [load] = estimate.loads(todo, work, Newest(store))
    assert load.basis == "measured: 2 earlier cells"
    beyond = 2e-3 * (1 + 4096 / 8192) / (1 + 2048 / 8192)
    assert load.seconds == pytest.approx(2048 * (1e-3 + 1e-3 / 3) + 8192 * beyond)


def test_a_task_has_its_own_speed_where_it_was_measured(tmp_path):
    store, work = Store(tmp_path), estimate.survey([cell(length=1024)])[0]
    saved(store, {1024: 1e-3}, task=Task("passkey"))
    assert estimate.loads([cell(length=1024)], work, Newest(store))[0].seconds == pytest.approx(2.048)
    saved(store, {1024: 5e-3})
    assert estimate.loads([cell(length=1024)], work, Newest(store))[0].seconds == pytest.approx(10.24)


def test_speed_grows_beyond_what_was_measured_and_is_straight_between():
    speed = Speed((1024.0, 4096.0), (1e-3, 2e-3), "")
    assert speed.at(2560) == pytest.approx(1.5e-3)
    assert speed.at(16384) == pytest.approx(2e-3 * 3 / 1.5) and speed.at(512) < 1e-3


def test_time_is_not_known_where_documents_are_not(tmp_path):
    todo = [cell(task=Task("gsm8k"), limit=None)]
    [load] = estimate.loads(todo, estimate.survey(todo)[0], Newest(Store(tmp_path)))
    assert load.seconds is None and load.passes is None and "gsm8k without a limit" in load.basis


@pytest.mark.parametrize("task, passes", [(PERPLEXITY, 7), (Task("passkey"), 1)], ids=["perplexity", "passkey"])
def test_a_cropped_document_costs_its_windows_at_the_trained_length(task, passes, tmp_path):
    geometries = sweep.geometry_for(TINY)[2]
    whole, cropped = (
        cell(length=2048, task=task, strategy=name, plans=strategies.plans(name, geometries, 2048))
        for name in ("none", "crop")
    )
    work, _ = estimate.survey([whole, cropped])
    windows = work[whole.id].forwards * passes
    assert work[cropped.id] == CellWork(windows, windows * 512, 512, min(windows, 16384 // 512) * 512)
    (before,), (after,) = (estimate.loads([one], work, Newest(Store(tmp_path))) for one in (whole, cropped))
    assert (after.passes, after.tokens) == (windows, windows * 512) and after.peak_bytes < before.peak_bytes


def test_a_text_with_four_answers_is_counted_as_often_as_it_is_read():
    from pipelines.workers.evaluate import evaluate

    [one] = sweep.cells_of(expand(["model=tiny", "task=many_shot", "strategy=yarn", "length=512", "limit=1"]))
    [result] = evaluate([one])
    work, _ = estimate.survey([one])
    assert result.status == "ok" and work[one.id].tokens == pytest.approx(result.cost["tokens"], rel=0.05)


def test_key_tokens_cost_a_cropped_pass_and_one_of_the_evaluator():
    plain, keyed = (
        cell(length=2048, task=replace(PERPLEXITY, options=options))
        for options in (PERPLEXITY.options, (*PERPLEXITY.options, ("evaluator", "yarn")))
    )
    work, _ = estimate.survey([plain, keyed])
    assert (work[keyed.id].forwards, work[keyed.id].tokens) == (2 * (1 + 7 + 1), 2 * (2048 + 7 * 512 + 2048))
    assert (work[plain.id].forwards, work[plain.id].tokens) == (2, 4096)
