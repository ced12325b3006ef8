"""Training: one seed, one curve, killed or not; what is trained on and what is not; what is refused, and noticed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support import PROJECT
from torch import nn

from pipelines.cli.main import run
from pipelines.records.cells import Refusal
from pipelines.train import corpus, recipe
from pipelines.train.batches import Batches
from pipelines.train.descent import CHECKPOINT, LOG, Descent, Diverged, TrainLog, Watch, rate
from pipelines.train.recipe import TrainRecipe
from pipelines.train.retrieval import QUESTION, Retrieval
from pipelines.train.train import extended_model, train
from rope import patch, strategies
from rope.config import geometry_of

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = {
    "shape": {**SHAPE, "num_key_value_heads": 1, "rope_theta": 10000.0, "tie_word_embeddings": True},
    "vocabulary": 512,
    "length": 32,
    "batch": 4,
    "device": "cpu",
    "track": False,
    "learning_rate": 3e-3,
    "warmup": 5,
    "schedule": "cosine",
    "clip": 1.0,
    "validation": 4,
    "validate_every": 100,
    "save_every": 100,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with some text, and room for prepared corpora."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "text").mkdir()
    for name in ("argparse", "ast", "bisect", "cmd", "heapq", "shlex", "statistics", "textwrap"):
        (folder / "text" / f"{name}.py").write_text(
            Path(sys.modules["json"].__file__).parents[1].joinpath(f"{name}.py").read_text()
        )
    return folder


@pytest.fixture(scope="module")
def small(place):
    """A recipe of a second or two; keywords change it."""

    def made(out: str, **changes) -> TrainRecipe:
        values = {**SMALL, "text": [str(place / "text")], "store": str(place / "store"), "out": str(place / out)}
        return recipe.from_values({**values, "steps": 20, **changes})

    return made


@pytest.fixture(scope="module")
def prepared(place):
    return corpus.prepared([str(place / "text")], place / "store" / "corpora", 1024)


@pytest.fixture(scope="module")
def writer(prepared):
    return Retrieval(corpus.encoder(prepared.tokenizer), emphasis=8)


# ------------------------------------------------------------------------------------------------ one seed, one curve


def test_one_seed_gives_one_curve(small):
    first, again, other = train(small("a")), train(small("b")), train(small("c", seed=1))
    assert first.curve == again.curve
    assert first.validations == again.validations
    assert first.curve != other.curve


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_curve(small, place):
    changes = {"steps": 200, "save_every": 20}
    whole = train(small("whole", **changes))
    asked = small("killed", **changes)
    plain = {name: value for name, value in vars(asked).items() if name in {*SMALL, "text", "store", "out", *changes}}
    script = f"from pipelines.train import recipe, train; train.train(recipe.from_values({plain!r}))"
    command = [sys.executable, "-c", f"import torch; torch.set_num_threads(1); {script}"]
    running = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = place / "killed" / CHECKPOINT
    while not checkpoint.is_file() and running.poll() is None:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert checkpoint.is_file() and not (place / "killed" / LOG).is_file(), "it was killed after a checkpoint, half-way"
    assert 0 < len(torch.load(checkpoint, weights_only=True)["log"]["curve"]) < 200
    resumed = train(asked)
    assert resumed.curve == whole.curve
    assert resumed.validations == whole.validations
    assert not checkpoint.is_file()


def test_a_step_sees_the_same_windows_whatever_ran_before(prepared, writer):
    batches = Batches(prepared.tokens, 0, 256, 8, seed=3, share=0.5, retrieval=writer)
    late = batches(7)
    batches(0)
    assert all((a == b).all() for a, b in zip(late, batches(7), strict=True))
    assert (batches(7)[0] != batches(8)[0]).any()


def test_a_pass_shows_every_window_once(prepared):
    window = 64
    batches = Batches(prepared.tokens, 0, window, 4, seed=0)
    count = prepared.tokens.size // window - 1
    rows = np.concatenate([batches(step)[0] for step in range(-(-count // 4))])[:count]
    seen = {row.tobytes() for row in rows}
    offsets = range(prepared.tokens.size - count * window + 1)
    whole = prepared.tokens.astype(np.int32)
    assert any(seen == {w.tobytes() for w in whole[o : o + count * window].reshape(count, window)} for o in offsets)


def test_what_is_finished_is_not_trained_again(small, place):
    asked = small("done", steps=2)
    log = train(asked)
    written = (place / "done" / "model.safetensors").stat().st_mtime_ns
    assert train(asked).curve == log.curve
    assert (place / "done" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(Refusal, match="holds a model already, of another recipe"):
        train(small("done", steps=3))


def test_the_loss_falls_and_is_validated(small, place):
    log = train(small("falls", steps=150, length=64, learning_rate=1e-2))
    assert np.mean(log.curve[-10:]) < 0.85 * log.curve[0]
    assert log.validations[-1]["perplexity"] < 0.5 * SMALL["vocabulary"], "a guess among all tokens is as many"
    told = json.loads((place / "falls" / LOG).read_text())
    assert (told["status"], len(told["curve"]), told["tokens"]) == ("finished", 150, 150 * 4 * 64)
    assert told["corpus"]["sources"][0]["files"] == 8


def test_minutes_become_steps(small):
    log = train(small("minutes", steps=None, minutes=0.03))
    assert log.steps == log.step > 50
    assert log.seconds < 5


# ------------------------------------------------------------------------------------------------ what is trained on


def test_what_grids_score_stays_out(tmp_path):
    from pydoc_data.topics import topics

    words = topics["assert"].split()
    (tmp_path / "quotes.txt").write_text("Some text of our own, and then: " + " ".join(words[20:40]))
    (tmp_path / "clean.txt").write_text("Some text of our own, and nothing else in it but these few words.")
    assert [document[-6:] for _, document in corpus.documents([str(tmp_path)])] == ["words."]
    with pytest.raises(Refusal, match="is what grids score"):
        list(corpus.documents(["pydoc"]))


def test_the_standard_library_is_trained_on_without_its_topics():
    runs, found = corpus._topic_runs(), 0
    for origin, document in corpus.documents(["stdlib"]):
        assert origin.licence == "PSF-2.0"
        found += 1
        if found % 20 == 0:  # a sample: no 15 words in a row, so never 4 runs of 12
            words = document.split()
            said = [tuple(words[n : n + corpus.QUOTE]) in runs for n in range(len(words) - corpus.QUOTE + 1)]
            assert not any(all(said[n : n + 4]) for n in range(len(said) - 3))
    assert found > 300


def test_each_text_once_and_some_held_out(place, prepared):
    (place / "twice").mkdir()
    for name in "ab":
        (place / "twice" / f"{name}.txt").write_text("The very same text.")
    assert len(list(corpus.documents([str(place / "twice")]))) == 1
    assert prepared.held_out.size > 0
    again = corpus.prepared([str(prepared.folder)], place / "elsewhere", 1024)
    assert again.card == prepared.card and (again.tokens == prepared.tokens).all()


def test_digits_stay_apart_and_text_comes_back(prepared):
    tokenizer = prepared.tokenizer
    text = "def f(x):\n    return 90417  # \t\u00e9\n\n"
    encoded = tokenizer.encode(text)
    assert [token for token in encoded.tokens if token.isdigit()] == list("90417")
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"License-Expression": "MIT"}, "MIT"),
        ({"License-Expression": "Apache-2.0 OR BSD-2-Clause"}, "Apache-2.0 OR BSD-2-Clause"),
        ({"License-Expression": "MPL-2.0 AND MIT"}, None),
        ({"License-Expression": "GPL-3.0-only", "License": "MIT"}, None),
        ({"Classifier": "License :: OSI Approved :: BSD License"}, "BSD License"),
        ({"Classifier": "License :: OSI Approved :: GNU General Public License v3 (GPLv3)", "License": "MIT"}, None),
        ({"License": "Apache License, Version 2.0"}, "Apache License, Version 2.0"),
        ({"License": "Apache 2.0"}, "Apache 2.0"),
        ({"License": "3-Clause BSD License"}, "3-Clause BSD License"),
        ({"License": "LGPL-2.1-or-later"}, None),
        ({"License": "Proprietary; see MIT"}, None),
        ({}, None),
    ],
)
def test_only_clearly_permissive_licences_count(declared, expected):
    metadata = Message()
    for name, value in declared.items():
        metadata[name] = value
    assert corpus.licence(metadata) == expected


# ------------------------------------------------------------------------------------------ what teaches retrieval


def test_a_passkey_document_is_the_tasks_own(prepared, writer):
    tasks = pytest.importorskip("pipelines.tasks.passkey")
    encode, decode = corpus.encoder(prepared.tokenizer), prepared.tokenizer.decode
    depths = []
    for number in range(50):
        rng = np.random.default_rng(number)
        size = int(rng.integers(writer.least, 1000))
        ids, weights = writer.passkey(rng, size)
        text = decode(ids.tolist())
        key = int(re.search(r"The pass key is (\d{5})\. Remember", text)[1])
        before, after = (len(text.split("\n")[line].split()) for line in (1, 3))
        depth = before / max(1, before + after)
        assert text == f"{tasks.prompt(key, depth, before + after)} {key}"
        assert encode(text) == ids.tolist(), "the ids are those of the whole text"
        assert size - 8 < ids.size <= size
        assert decode(ids[-5:].tolist()) == str(key) and weights[-5:].tolist() == [8] * 5
        assert (weights == 0).sum() == 5 and (weights == 1).sum() == ids.size - 10
        depths.append(depth)
    assert min(depths) < 0.2 and max(depths) > 0.8


def test_numbers_are_answerable(prepared, writer):
    decode, asked = prepared.tokenizer.decode, 0
    for number in range(50):
        rng = np.random.default_rng(number)
        size = int(rng.integers(writer.least, 1000))
        ids, weights = writer.numbers(rng, size, prepared.tokens[:1000].astype(np.int32))
        text = decode(ids.tolist())
        told = dict(re.findall(r"^The number of the (\w+ \w+) is (\d{5})\.$", text, flags=re.M))
        answers = re.findall(
            r"^What is the number of the (\w+ \w+)\? The number of the \1 is (\d{5})\.$", text, flags=re.M
        )
        assert answers and all(told[name] == value for name, value in answers)
        assert ids.size <= size and (weights == 8).sum() == 5 * len(answers) and (weights == 0).sum() == 5 * len(told)
        asked += len(answers)
    assert asked > 100


def test_documents_are_whole_in_their_windows(prepared, writer):
    window = writer.least + 60
    ids, weights = Batches(prepared.tokens, 0, window, 64, seed=0, share=1.0, retrieval=writer)(0)
    assert ids.shape == weights.shape == (64, window)
    texts = [prepared.tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in ids]
    passkeys = [text for text in texts if QUESTION in text]
    assert 10 < len(passkeys) < 54
    for text in passkeys:
        key = re.search(r"The pass key is (\d{5})\. Remember it\. \1 is the pass key\.", text)[1]
        assert f"{QUESTION} {key}" in text and text.count("There is an important info hidden") == 1
    assert all("Here are the numbers of some things." in text for text in texts if text not in passkeys)
    share = Batches(prepared.tokens, 0, window, 10, seed=0, share=0.25, retrieval=writer)
    counts = [sum((row == 0).any() for row in share(step)[1]) for step in range(40)]
    assert {*counts} == {2, 3} and 2.2 < np.mean(counts) < 2.8


# ------------------------------------------------------------------------------------------ what is refused, noticed


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"length": 1_000_000}, "tokens and a window takes 1,000,000"),
        ({"share": 0.2}, "the shortest generated document takes"),
        ({"strategy": "yarn"}, "scales a trained model: give model="),
        ({"minutes": 1.0}, "give one of them"),
        ({"schedule": "cosin"}, "give one of cosine, linear"),
        ({"learning_rate": "fast"}, "learning_rate=fast: give a number"),
        ({"lenght": 3}, "lenght: TrainRecipe has no such key; there are out, length"),
        ({"vocabulary": 200}, "give a number from 257"),
        ({"model": "no/where/at/all"}, "no file or folder"),
    ],
)
def test_refusals(small, changes, told):
    with pytest.raises(Refusal, match=re.escape(told)):
        train(small("refused", **changes))


def test_no_text_is_refused(small, tmp_path):
    with pytest.raises(Refusal, match="holds no text file"):
        train(small("refused", text=[str(tmp_path)]))
    (tmp_path / "numbers.txt").write_text("1 2 3 4 5 6 7 8 9")
    with pytest.raises(Refusal, match="no text was found"):
        train(small("refused", text=[]))


def test_a_diverging_loss_is_noticed_and_stopped(small, place):
    with pytest.raises(Diverged, match=r"diverged|the loss is (nan|inf)") as reason:
        train(small("diverged", steps=500, learning_rate=30.0, warmup=20, clip=None))
    assert "no model was saved" in str(reason.value)
    told = json.loads((place / "diverged" / LOG).read_text())
    assert told["status"] == "diverged" and 0 < len(told["curve"]) < 500
    assert not (place / "diverged" / "config.json").exists()


def test_the_watch_lets_noise_pass_and_stops_a_rise():
    watch = Watch()
    for step in range(300):
        watch.see(step, 2.0 + (1.5 if step % 7 == 0 else 0.0))
    with pytest.raises(Diverged, match="after 2"):
        for step in range(300, 320):
            watch.see(step, 8.0)
    with pytest.raises(Diverged, match="nan"):
        Watch().see(0, float("nan"))


class Cramped(nn.Module):
    """A model of a device on which no more than some windows fit."""

    def __init__(self, fit: int) -> None:
        super().__init__()
        self.fit, self.embed = fit, nn.Embedding(1024, 1024)

    def forward(self, input_ids, use_cache):
        if len(input_ids) > self.fit:
            raise torch.OutOfMemoryError("out of memory")
        return type("Output", (), {"logits": self.embed(input_ids)})


def test_out_of_memory_goes_on_with_windows_that_fit(small, prepared, capsys):
    asked = small("cramped", steps=2, batch=8)
    curves = []
    for fit in (8, 3, 0):
        torch.manual_seed(0)
        batches, log = Batches(prepared.tokens, 0, 32, 8, seed=0), TrainLog(steps=2)
        descent = Descent(asked, Cramped(fit), batches, prepared.held_out, log, Accelerator(cpu=True))
        if fit:
            descent.run()
            curves.append(log.curve)
        else:
            with pytest.raises(Refusal, match="not even one window fits"):
                descent.run()
    assert "micro_batch=4 does not fit into memory: going on with micro_batch=2" in capsys.readouterr().out
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


# ------------------------------------------------------------------------------------------------ recipes and extension


def test_the_command_line_makes_a_recipe(capsys):
    asked = recipe.read(["recipe=tiny", "steps=5", "learning_rate=2e-5", "shape.num_hidden_layers=2", "text=a,b"])
    assert (asked.steps, asked.learning_rate, asked.text) == (5, 2e-5, ["a", "b"])
    assert asked.shape["num_hidden_layers"] == 2 and asked.shape["hidden_size"] == 256
    asked = recipe.read(["recipe=extend_tiny", "strategy.beta_fast=16"])
    assert asked.strategy == {"name": "yarn", "beta_fast": 16}
    assert run(["train", "recipe=unknown"]) == 2
    assert "there are drope_tiny, extend_tiny, pi, tiny, tiny_context, yarn" in capsys.readouterr().err


def test_the_published_recipes_are_as_published():
    interpolation = recipe.read(["recipe=pi", "model=x"])
    yarn = recipe.read(["recipe=yarn", "model=x"])
    assert (interpolation.steps, interpolation.batch, interpolation.learning_rate) == (1000, 64, 2e-5)
    assert (yarn.steps, yarn.batch, yarn.learning_rate) == (400, 64, 2e-5)
    assert interpolation.length == 2048 * interpolation.factor and yarn.length == 4096 * yarn.factor
    for asked in (interpolation, yarn):
        assert (asked.warmup, asked.weight_decay, asked.betas) == (20, 0.0, [0.9, 0.95])
    assert rate(interpolation, 0, 1000) == pytest.approx(2e-5 * (0.1 + 0.9 / 20))
    assert rate(interpolation, 19, 1000) == rate(interpolation, 999, 1000) == 2e-5
    assert rate(yarn, 399, 400) < 1e-7


def test_schedules_begin_at_the_peak_and_end_where_they_should(small):
    for schedule, end in (("cosine", 0.1), ("linear", 0.1), ("wsd", 0.1), ("constant", 1.0)):
        asked = small("x", schedule=schedule, final=0.1, warmup=10, learning_rate=1.0)
        assert rate(asked, 10, 1010) == pytest.approx(1.0)
        assert rate(asked, 1010, 1010) == pytest.approx(end)
        assert rate(asked, 500, None) == 1.0
    assert rate(small("x", schedule="wsd", warmup=0, learning_rate=1.0), 799, 1000) == 1.0


@pytest.mark.parametrize("strategy", ["yarn", "linear", "by_parts", "base", "proportional"])
def test_an_extended_model_carries_its_plan(small, place, strategy):
    train(small("base", steps=2))
    out = f"extended_{strategy}"
    asked = small(out, steps=2, model=str(place / "base"), strategy=strategy, length=128, shape={})
    plans = strategies.plans(strategy, geometry_of(json.loads((place / "base" / "config.json").read_text())), 128)
    (held,) = patch.read(extended_model(asked))
    assert held[1].inv_freq == pytest.approx(plans[0][1].inv_freq, rel=1e-6)
    log = train(asked)
    assert log.step == 2
    config = json.loads((place / out / "config.json").read_text())
    native = geometry_of(config)["all"].native(128)
    assert config["max_position_embeddings"] == 128
    assert native.inv_freq == pytest.approx(plans[0][1].inv_freq, rel=1e-9)
    assert native.attention_factor == pytest.approx(plans[0][1].attention_factor)


def test_a_corpus_is_prepared_once_and_can_be_taken_along(small, place, capsys):
    train(small("base", steps=2))
    capsys.readouterr()
    train(small("x1", steps=2, model=str(place / "base"), length=64, shape={}))
    assert "encoding" not in capsys.readouterr().out, "the text was encoded with this tokenizer before"
    log = train(small("x2", prepare=str(place / "along")))
    assert log.status == "prepared" and not (place / "x2").exists()
    moved = train(small("x3", text=[str(place / "along")], steps=2))
    assert moved.curve == train(small("x4", steps=2)).curve


def test_a_corpus_of_another_tokenizer_is_refused(small, place, prepared):
    train(small("base", steps=2))
    with pytest.raises(Refusal, match="encoded with another tokenizer"):
        train(small("x", steps=2, model=str(place / "base"), text=[str(prepared.folder)], length=64))


def test_the_curves_are_in_mlflow(small, place, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow = pytest.importorskip("mlflow")
    log = train(small("tracked", track=True, steps=20, validate_every=10))
    client = mlflow.MlflowClient(f"sqlite:///{place / 'store' / 'mlflow.db'}")
    run = client.get_run(log.mlflow_run)
    assert run.info.status == "FINISHED" and run.data.params["learning_rate"] == "0.003"
    curve = client.get_metric_history(log.mlflow_run, "loss")
    assert [point.value for point in sorted(curve, key=lambda point: point.step)] == log.curve
    assert len(client.get_metric_history(log.mlflow_run, "perplexity")) == 2
    assert run.data.metrics["tokens_per_second"] > 0
