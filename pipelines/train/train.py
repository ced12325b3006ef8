"""`ropewalk train`: a tiny Llama from scratch, or a checkpoint continued at a longer length under any rope strategy."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import accelerate  # type: ignore[import-untyped]
import numpy as np
import torch
from accelerate import Accelerator, PartialState  # type: ignore[import-untyped]

from pipelines.models import find, load
from pipelines.records import inputs, memory
from pipelines.records.cells import Model, Refusal
from pipelines.records.numbers import GIB
from pipelines.records.refusal import first_line
from pipelines.records.results import Store
from pipelines.track import Training
from pipelines.train import corpus
from pipelines.train.batches import Batches
from pipelines.train.descent import CHECKPOINT, LOG, Descent, Diverged, TrainLog, rate
from pipelines.train.exercises import Exercises
from pipelines.train.recipe import TrainRecipe
from pipelines.train.retrieval import Retrieval
from pipelines.train.wordings import Pools
from rope import patch, strategies
from rope.config import geometry_of
from rope.dialects import to_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def main(recipe: TrainRecipe) -> int:
    """Train as a recipe says, and print what came of it; returns the exit code.

    Raises:
        Refusal: as `train`.
    """
    try:
        log = train(recipe)
    except Diverged as reason:
        print(f"ropewalk: {reason}", file=sys.stderr)
        return 1
    if PartialState().is_main_process:
        print(summary(log))
    return 0


def train(recipe: TrainRecipe) -> TrainLog:
    """Train as a recipe says, and leave model, tokenizer and train.json in its folder; at once where that is done.

    Raises:
        Refusal: the text, the checkpoint or the folder is not what the recipe needs, or one window does not fit.
        Diverged: the loss went wrong. No model is written; train.json holds the curve.
    """
    if recipe.deterministic and recipe.device != "cpu" and torch.cuda.is_available():
        make_deterministic()
    accelerator = Accelerator(cpu=recipe.device == "cpu", mixed_precision="no")
    out = Path(recipe.out).expanduser()
    if (done := finished(recipe, out)) is not None:
        return done
    inputs.made(out if recipe.prepare is None else Path(recipe.prepare).expanduser())
    with accelerator.main_process_first():
        tokenizer, text = tokenizer_and_corpus(recipe)
    if recipe.prepare is not None:
        shutil.copytree(text.folder, Path(recipe.prepare).expanduser(), dirs_exist_ok=True)
        return TrainLog("prepared", asdict(recipe), recipe.digest, text.card)
    core = text.tokenizer
    retrieval = Retrieval(corpus.encoder(core), recipe.answer_weight) if recipe.share else None
    end = core.token_to_id(corpus.END)
    exercises = None
    if recipe.share and recipe.exercises:
        exercises = Exercises(core, Pools.of(text.tokens, core.decode_batch), recipe.answer_weight)
    batches = Batches(
        *(text.tokens, end, recipe.length, recipe.batch, recipe.seed, recipe.share, retrieval),
        *(recipe.exercises, exercises),
    )
    model = new_model(recipe, end) if recipe.model is None else extended_model(recipe)
    log = TrainLog(recipe=asdict(recipe), digest=recipe.digest, corpus=text.card, steps=recipe.steps)
    log.parameters, log.provenance = model.num_parameters(), provenance(accelerator.device)
    descent = Descent(recipe, model, batches, text.held_out, log, accelerator)
    recorder = TrainRecorder(recipe, log) if accelerator.is_main_process else None
    if recorder is not None:
        descent.show = recorder
    try:
        descent.run()
    except Diverged as reason:
        if recorder is not None:
            recorder.close("diverged")
        raise Diverged(f"{reason}; no model was saved, and the curve is in {out / LOG}") from None
    except RuntimeError as error:
        if "deterministic implementation" not in str(error):
            raise
        message = f"{str(error).splitlines()[0]} Give deterministic=false: curves then differ a little"
        raise Refusal(message) from error
    if recorder is not None:
        model.to(torch.bfloat16).save_pretrained(out)
        tokenizer.save_pretrained(out)
        recorder.close("finished")
        (out / CHECKPOINT).unlink(missing_ok=True)
    return log


def make_deterministic() -> None:
    """Take only GPU kernels that add in one order. Others let threads add as they come: 200 steps of models/tiny on an
    H100, twice from one seed, were 1 % apart."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's first matrix product is set up
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads it


def finished(recipe: TrainRecipe, out: Path) -> TrainLog | None:
    """The log of a training that was finished in this folder before, None where there is none.

    Raises:
        Refusal: the folder holds a model that is not of this recipe.
    """
    if recipe.prepare is not None or not (out / "config.json").is_file():
        return None
    log = TrainLog(**json.loads((out / LOG).read_text(encoding="utf-8"))) if (out / LOG).is_file() else TrainLog()
    if log.digest != recipe.digest or log.status != "finished":
        raise Refusal(f"out={out} holds a model already, of another recipe: give another out, or remove it first")
    return log


def tokenizer_and_corpus(recipe: TrainRecipe) -> tuple[PreTrainedTokenizerBase, corpus.Corpus]:
    """The tokenizer of the model to be, and the corpus in its ids."""
    from transformers import PreTrainedTokenizerFast

    folder = Store.at(recipe.store).root / "corpora"
    if recipe.model is None:
        text = corpus.prepared(recipe.text, folder, recipe.vocabulary)
        return PreTrainedTokenizerFast(tokenizer_object=text.tokenizer, eos_token=corpus.END), text
    tokenizer = load.tokenizer(_checkpoint(recipe))
    if not tokenizer.is_fast:
        raise Refusal(f"model {recipe.model} has no fast tokenizer (tokenizer.json); convert it first")
    return tokenizer, corpus.prepared(recipe.text, folder, tokenizer.backend_tokenizer)


def new_model(recipe: TrainRecipe, end: int | None) -> PreTrainedModel:
    """A Llama of the recipe's shape with random weights, float32. end: id of the end-of-text.

    Raises:
        Refusal: there is none of this shape.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": recipe.vocabulary, "max_position_embeddings": recipe.length, **recipe.shape}
    torch.manual_seed(recipe.seed)
    try:
        config = LlamaConfig(**{"bos_token_id": None, "eos_token_id": end, **shape})
        geometry_of(config)  # knows types and sizes before anything is allocated
        _fits(LlamaForCausalLM, config, here=recipe.device == "cpu" or not torch.cuda.is_available())
        model = LlamaForCausalLM(config)
        model(torch.tensor([[0, recipe.vocabulary - 1]]))  # heads that do not go into each other show here alone
        return model
    except Refusal:
        raise
    except Exception as error:  # whatever transformers makes of a value
        raise Refusal(f"shape={recipe.shape}: no Llama can be made of it ({first_line(error)})") from error


def _fits(kind: type[PreTrainedModel], config: PreTrainedConfig, *, here: bool) -> None:
    """That a new model goes into the memory that is free: the kernel would end this process, or another one.

    here: it is trained on the CPU, with its gradients and AdamW's two moments.
    """
    with torch.device("meta"):
        parameters = kind(config).num_parameters()
    need, free = parameters * (16 if here else 4), memory.available()
    if need > free:
        raise Refusal(
            f"shape: {parameters:,} parameters take {need / GIB:.1f} GiB{' to train on a CPU' if here else ''}, and "
            f"{free / GIB:.1f} GiB of memory are free; give a smaller shape"
        )


def extended_model(recipe: TrainRecipe) -> PreTrainedModel:
    """The recipe's checkpoint, float32, with its strategy's plan for its length: in its modules, and in its config.

    Raises:
        Refusal: the checkpoint is not there or not whole, or transformers cannot express the plan.
    """
    from transformers import AutoConfig

    checkpoint, config = find.describe(_checkpoint(recipe))
    name = strategies.ALIASES.get(recipe.strategy["name"], recipe.strategy["name"])
    if name in ("dynamic", "dynamic_ntk"):
        raise Refusal(f"strategy={name} changes with every length, and a training has one: give a static one, as ntk")
    options = {key: value for key, value in recipe.strategy.items() if key != "name"}
    try:
        if recipe.factor is not None and "factor" in strategies.options_of(name):
            options.setdefault("factor", recipe.factor)
        geometries = geometry_of(config, recipe.trained_length)
        plans = strategies.plans(name, geometries, recipe.length, **options)
        patched = to_transformers(config, name, options, geometries, recipe.length)
        target = AutoConfig.for_model(patched.pop("model_type"), **patched)
    except (ArithmeticError, OSError, ValueError, KeyError) as error:
        raise Refusal(f"model {recipe.model}: {error}") from error
    model = load.complete(checkpoint, torch.float32, target)
    built = dict(patch.read(model))
    for layers, plan in plans:
        if layers not in built:
            raise Refusal(f"model {recipe.model}: {name} of single layers ({layers}) is not trained; give layers=null")
        # a zero frequency is written as one too low to matter
        same = np.allclose(built[layers].inv_freq, plan.inv_freq, rtol=1e-5, atol=1e-20)
        if not same or not math.isclose(built[layers].attention_factor, plan.attention_factor, rel_tol=1e-5):
            raise Refusal(f"model {recipe.model}: transformers' own {name} is not the plan of ours for {recipe.length}")
    return model


def _checkpoint(recipe: TrainRecipe) -> Model:
    return find.requested(str(recipe.model), str(recipe.model), trained_length=recipe.trained_length)


def provenance(device: torch.device) -> dict[str, str]:
    """Versions and device: where the numbers come from."""
    import transformers

    packages = (torch, transformers, accelerate, np)
    return {
        "python": platform.python_version(),
        **{package.__name__: str(package.__version__) for package in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }


class TrainRecorder:
    """What a training shows: a line in the terminal, train.json, and MLflow unless track=false."""

    def __init__(self, recipe: TrainRecipe, log: TrainLog) -> None:
        self.recipe, self.log, self.out = recipe, log, Path(recipe.out).expanduser()
        self.step, self.validations = log.step, len(log.validations)
        self.training: Training | None = None
        if recipe.track:
            params = {**log.recipe, **log.provenance, "corpus": log.corpus["digest"]}
            store = Store.at(recipe.store)
            self.training = Training(store, recipe.experiment, self.out.name, params, log.mlflow_run, self.out / LOG)
            log.mlflow_run = self.training.run
        size = f"{log.corpus['tokens']:,} tokens of text, {log.parameters:,} parameters"
        print(f"{size}; from step {log.step}" if log.step else size, flush=True)

    def __call__(self, log: TrainLog) -> None:
        if log.step > self.step:
            print(progress_line(self.recipe, log), flush=True)
        for row in log.validations[self.validations :]:
            print(f"step {row['step']:.0f}: {validation_text(row)}", flush=True)
        if self.training is not None:
            self.training.log(self._rows())
        self.step, self.validations = log.step, len(log.validations)

    def close(self, status: str) -> None:
        """Write the final train.json, and end the run in MLflow."""
        self.log.status = status
        self.log.write(self.out)
        if self.training is not None:
            self.training.close(finished=status == "finished")

    def _rows(self) -> list[tuple[str, float, int]]:
        """What is new since the last call: (metric, value, step), ..."""
        log = self.log
        rows = [("loss", loss, number) for number, loss in enumerate(log.curve[self.step :], start=self.step + 1)]
        if log.tokens_per_second is not None:
            rows.append(("tokens_per_second", log.tokens_per_second, log.step))
            rows.append(("learning_rate", rate(self.recipe, log.step, log.steps), log.step))
        for row in log.validations[self.validations :]:
            rows += [(name, value, int(row["step"])) for name, value in row.items() if name != "step"]
        return rows


def progress_line(recipe: TrainRecipe, log: TrainLog) -> str:
    """Where a training is, in a terminal line."""
    pace = log.tokens_per_second or 0.0
    parts = [f"{log.step}/{log.steps or '?'}", f"loss {log.curve[-1]:.4f}", f"{pace:,.0f} tokens/s"]
    parts.append(f"rate {rate(recipe, log.step - 1, log.steps):.2e}")
    if pace and log.steps:
        left = round((log.steps - log.step) * recipe.batch * recipe.length / pace)
        parts.append(f"left {left // 60}:{left % 60:02}")
    return "  ".join(parts)


def validation_text(row: Mapping[str, float]) -> str:
    """A validation in words."""
    parts = []
    if "perplexity" in row:
        parts.append(f"perplexity {row['perplexity']:.2f} on held-out text")
    if "passkeys" in row:
        parts.append(f"{row['passkeys']:.0%} of passkeys found")
    return ", ".join(parts)


def summary(log: TrainLog) -> str:
    """The last line of a command."""
    if log.status == "prepared":
        return (
            f"{log.corpus['tokens']:,} tokens from {len(log.corpus['sources'])} sources are in {log.recipe['prepare']}"
        )
    numbers = f"{log.step} steps, {log.tokens:,} tokens in {log.seconds:.0f} s, loss {log.curve[-1]:.4f}"
    tail = f", {validation_text(log.validations[-1])}" if log.validations else ""
    return f"{log.recipe['out']}: {numbers}{tail}"
