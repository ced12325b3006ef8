"""Whatever is asked of a training is refused in a sentence before anything is read, made or allocated."""

# ruff: noqa: RUF005

from __future__ import annotations

import pytest
from support import TINY

from pipelines.records import memory
from pipelines.records.cells import Refusal
from pipelines.train import recipe

BASE = ["recipe=extend_tiny", "text=t.txt", "length=1024", "batch=2", "steps=2"]
NEW = ["text=t.txt", "length=64", "batch=2", "steps=2", "vocabulary=300", "shape.hidden_size=32"]
NEW += ["shape.intermediate_size=32", "shape.num_hidden_layers=1"]


@pytest.mark.parametrize(
    "word",
    ["betas=[2,3]", "betas=[]", "betas=[0.9]", "betas=[nan,0.1]", "batch=99999999999", "strategy=[1]", "shape=[1]"]
    + ["learning_rate=inf", "learning_rate=nan", "clip=-1", "clip=nan", "weight_decay=-1", "warmup=-5", "factor=1e308"]
    + ["seed=99999999999999999999", "device=tpu", "answer_weight=-1", "answer_weight=99999999999", "vocabulary=0"]
    + ["trained_length=-3", "schedule=null", "validation=99999999999", "strategy=null", "recipe=" + "x" * 3000],
)
def test_a_hostile_value_is_refused_by_its_key(word):
    key = word.partition("=")[0]
    with pytest.raises(Refusal, match=rf"{key}[=:\[]"):
        recipe.read([*BASE, word])


def test_minutes_that_are_none_are_refused():
    for value in ("-1", "nan", "0"):
        with pytest.raises(Refusal, match="minutes="):
            recipe.read([*BASE, "steps=null", f"minutes={value}"])


@pytest.mark.parametrize(
    "word",
    ["hidden_size=0", "hidden_size=255", "hidden_size=abc", "hidden_size=99999999999", "num_hidden_layers=-1"]
    + ["num_attention_heads=0", "num_key_value_heads=3", "hidden_act=nope", "rope_theta=nan", "head_dim=1000000000000"]
    + ["vocab_size=3", "rope_parameters=3", "rms_norm_eps=abc", "initializer_range=-1"],
)
def test_a_shape_of_which_no_llama_can_be_made_is_refused(word):
    from pipelines.train import train

    with pytest.raises(Refusal, match="shape"):
        train.new_model(recipe.read([*NEW, f"shape.{word}"]), 0)


def test_a_shape_that_does_not_fit_into_memory_is_refused_before_it_is_made(monkeypatch):
    from pipelines.train import train

    small = recipe.read(NEW)
    train.new_model(small, 0)
    monkeypatch.setattr(memory, "available", lambda: 100_000)
    with pytest.raises(Refusal, match=r"shape: [\d,]+ parameters take"):
        train.new_model(small, 0)


@pytest.mark.parametrize("key", ["out", "prepare"])
def test_a_folder_that_cannot_be_is_refused_before_any_text_is_read(tmp_path, key):
    from pipelines.train import train

    (tmp_path / "file").touch()
    words = [*BASE[2:], f"model={TINY}", f"text={tmp_path / 'nothing'}", f"out={tmp_path / 'out'}"]
    with pytest.raises(Refusal, match="nothing can be written there"):
        train.train(recipe.read(["recipe=extend_tiny", *words, f"{key}={tmp_path / 'file'}"]))
