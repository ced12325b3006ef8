"""`ropewalk train`: a tiny Llama from scratch, or a checkpoint continued at a longer length under any rope strategy."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator, PartialState  # type: ignore[import-untyped]

from pipelines.models import find, load
from pipelines.records.cells import Model, Refusal
from pipelines.records.results import Store
from pipelines.train import corpus, recipe
from pipelines.train.batches import Batches
from pipelines.train.descent import CHECKPOINT, LOG, Descent, Diverged, Log, rate
from pipelines.train.recipe import Recipe
from pipelines.train.retrieval import Retrieval
from rope import patch, strategies
from rope.config import geometry_of
from rope.dialects import to_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipelines.track import Training

HELP = """ropewalk train [recipe=NAME] [KEY=VALUE ...]

Trains a Llama from scratch (recipe=tiny, the default), or continues a checkpoint at a longer length under any rope
strategy (recipe=extend_tiny; recipe=pi and recipe=yarn are the published ones). Recipes are files in conf/train; every
key in them can be given here. Killed, it goes on from its last checkpoint when the same command is given again.

  ropewalk train steps=200 batch=16 out=mlruns/models/small
  ropewalk train recipe=extend_tiny strategy=linear out=mlruns/models/linear
  ropewalk train recipe=yarn model=~/models/Llama-2-7b text=~/books length=16384 factor=4 out=~/models/Llama-2-7b-16k
  torchrun --nproc_per_node 4 -m pipelines.train recipe=tiny              on four GPUs

Exit codes: 0 trained, 1 the loss diverged, 2 refused before training.
"""


def main(arguments: Sequence[str]) -> int:
    """One command line; returns the exit code."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP, end="")
        return 0
    try:
        log = train(recipe.read(arguments))
    except Refusal as reason:
        print(f"ropewalk: {reason}", file=sys.stderr)
        return 2
    except Diverged as reason:
        print(f"ropewalk: {reason}", file=sys.stderr)
        return 1
    if PartialState().is_main_process:
        print(conclusion(log))
    return 0


def train(asked: Recipe) -> Log:
    """Train as a recipe says, and leave model, tokenizer and train.json in its folder; at once where that is done.

    Raises:
        Refusal: the text, the checkpoint or the folder is not what the recipe needs, or one window does not fit.
        Diverged: the loss went wrong. No model is written; train.json holds the curve.
    """
    if asked.deterministic and asked.device != "cpu" and torch.cuda.is_available():
        repeatable()
    accelerator = Accelerator(cpu=asked.device == "cpu", mixed_precision="no")
    out = Path(asked.out).expanduser()
    done = finished(asked, out)
    if done is not None:
        return done
    with accelerator.main_process_first():
        tokenizer, prepared = text_of(asked)
    if asked.prepare is not None:
        shutil.copytree(prepared.folder, Path(asked.prepare).expanduser(), dirs_exist_ok=True)
        return Log("prepared", asdict(asked), asked.digest, prepared.card)
    core = prepared.tokenizer
    retrieval = Retrieval(corpus.encoder(core), asked.answer_weight) if asked.share else None
    end = core.token_to_id(corpus.END)
    batches = Batches(prepared.tokens, end, asked.length, asked.batch, asked.seed, asked.share, retrieval)
    model = new(asked, end) if asked.model is None else extended(asked)
    log = Log(recipe=asdict(asked), digest=asked.digest, corpus=prepared.card, steps=asked.steps)
    log.parameters, log.provenance = model.num_parameters(), provenance(accelerator.device)
    descent = Descent(asked, model, batches, prepared.held_out, log, accelerator)
    record = Record(asked, log) if accelerator.is_main_process else None
    if record is not None:
        descent.show = record
    try:
        descent.run()
    except Diverged as reason:
        if record is not None:
            record.close("diverged")
        raise Diverged(f"{reason}; no model was saved, and the curve is in {out / LOG}") from None
    except RuntimeError as error:
        if "deterministic implementation" not in str(error):
            raise
        said = f"{str(error).splitlines()[0]} Give deterministic=false: curves then differ a little"
        raise Refusal(said) from error
    if record is not None:
        model.to(torch.bfloat16).save_pretrained(out)
        tokenizer.save_pretrained(out)
        record.close("finished")
        (out / CHECKPOINT).unlink(missing_ok=True)
    return log


def repeatable() -> None:
    """Take only GPU kernels that add in one order. Others let threads add as they come: 200 steps of models/tiny on an
    H100, twice from one seed, were 1 % apart."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's first matrix product is set up
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads it


def finished(asked: Recipe, out: Path) -> Log | None:
    """The log of a training that was finished in this folder before, None where there is none.

    Raises:
        Refusal: the folder holds a model that is not of this recipe.
    """
    if asked.prepare is not None or not (out / "config.json").is_file():
        return None
    log = Log(**json.loads((out / LOG).read_text(encoding="utf-8"))) if (out / LOG).is_file() else Log()
    if log.digest != asked.digest or log.status != "finished":
        raise Refusal(f"out={out} holds a model already, of another recipe: give another out, or remove it first")
    return log


def text_of(asked: Recipe) -> tuple[PreTrainedTokenizerBase, corpus.Corpus]:
    """The tokenizer of the model to be, and the corpus in its ids."""
    from transformers import PreTrainedTokenizerFast

    folder = Store.at(asked.store).root / "corpora"
    if asked.model is None:
        prepared = corpus.prepared(asked.text, folder, asked.vocabulary)
        return PreTrainedTokenizerFast(tokenizer_object=prepared.tokenizer, eos_token=corpus.END), prepared
    tokenizer = load.tokenizer(_checkpoint(asked))
    if not tokenizer.is_fast:
        raise Refusal(f"model {asked.model} has no fast tokenizer (tokenizer.json); convert it first")
    return tokenizer, corpus.prepared(asked.text, folder, tokenizer.backend_tokenizer)


def new(asked: Recipe, end: int | None) -> PreTrainedModel:
    """A Llama of the recipe's shape with random weights, float32. end: id of the end-of-text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": asked.vocabulary, "max_position_embeddings": asked.length, **asked.shape}
    torch.manual_seed(asked.seed)
    return LlamaForCausalLM(LlamaConfig(**{"bos_token_id": None, "eos_token_id": end, **shape}))


def extended(asked: Recipe) -> PreTrainedModel:
    """The recipe's checkpoint, float32, with its strategy's plan for its length: in its modules, and in its config.

    Raises:
        Refusal: the checkpoint is not there, or transformers does not support the plan.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint, config = find.describe(_checkpoint(asked))
    name = strategies.ALIASES.get(asked.strategy["name"], asked.strategy["name"])
    if name in ("dynamic", "dynamic_ntk"):
        raise Refusal(f"strategy={name} changes with every length, and a training has one: give a static one, as ntk")
    options = {key: value for key, value in asked.strategy.items() if key != "name"}
    try:
        if asked.factor is not None and "factor" in strategies.options_of(name):
            options.setdefault("factor", asked.factor)
        geometries = geometry_of(config, asked.trained_length)
        plans = strategies.plans(name, geometries, asked.length, **options)
        words = to_transformers(config, name, options, geometries, asked.length)
        model = AutoModelForCausalLM.from_pretrained(
            load.materialise(checkpoint),
            config=AutoConfig.for_model(words.pop("model_type"), **words),
            dtype=torch.float32,
        )
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(f"model {asked.model}: {error}") from error
    held = dict(patch.read(model))
    for layers, plan in plans:
        # what stands still is written as a speed too low to matter
        same = np.allclose(held[layers].inv_freq, plan.inv_freq, rtol=1e-5, atol=1e-20)
        if not same or not math.isclose(held[layers].attention_factor, plan.attention_factor, rel_tol=1e-5):
            raise Refusal(f"model {asked.model}: transformers' own {name} is not the plan of ours for {asked.length}")
    return model


def _checkpoint(asked: Recipe) -> Model:
    return Model(str(asked.model), str(asked.model), trained_length=asked.trained_length)


def provenance(device: torch.device) -> dict[str, str]:
    """Where the numbers are made."""
    import accelerate
    import transformers

    packages = (torch, transformers, accelerate, np)
    return {
        "python": platform.python_version(),
        **{package.__name__: str(package.__version__) for package in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }


class Record:
    """What a training shows: a line in the terminal, train.json, and MLflow where it is installed."""

    def __init__(self, asked: Recipe, log: Log) -> None:
        self.asked, self.log, self.out = asked, log, Path(asked.out).expanduser()
        self.said, self.told = log.step, (log.step, len(log.validations))
        self.training = self._training() if asked.track else None
        known = f"{log.corpus['tokens']:,} tokens of text, {log.parameters:,} parameters"
        print(f"{known}; from step {log.step}" if log.step else known, flush=True)

    def __call__(self, log: Log) -> None:
        if log.step > self.said:
            print(line(self.asked, log), flush=True)
        step, validations = self.told
        for row in log.validations[validations:]:
            print(f"step {row['step']:.0f}: {measured(row)}", flush=True)
        if self.training is not None:
            self.training.log(self._rows(step, validations))
        self.said, self.told = log.step, (log.step, len(log.validations))

    def close(self, status: str) -> None:
        """The last word: train.json, and the end of the run in MLflow."""
        self.log.status = status
        self.log.write(self.out)
        if self.training is not None:
            self.training.close(self.out / LOG, finished=status == "finished")

    def _training(self) -> Training | None:
        """A run in MLflow; None where the packages of grids are not installed: training does without them."""
        try:
            from pipelines.track import Training

            params = {**self.log.recipe, **self.log.provenance, "corpus": self.log.corpus["digest"]}
            store = Store.at(self.asked.store)
            training = Training(store, self.asked.experiment, self.out.name, params, self.log.mlflow_run)
        except ImportError as error:
            print(f"{error.name} is not installed: the curve goes into {LOG} alone", flush=True)
            return None
        self.log.mlflow_run = training.run
        return training

    def _rows(self, step: int, validations: int) -> list[tuple[str, float, int]]:
        rows = [("loss", loss, step + n) for n, loss in enumerate(self.log.curve[step:], start=1)]
        if self.log.tokens_per_second is not None:
            rows.append(("tokens_per_second", self.log.tokens_per_second, self.log.step))
            rows.append(("learning_rate", rate(self.asked, self.log.step, self.log.steps), self.log.step))
        for row in self.log.validations[validations:]:
            rows += [(name, value, int(row["step"])) for name, value in row.items() if name != "step"]
        return rows


def line(asked: Recipe, log: Log) -> str:
    """Where a training is, in a terminal line."""
    pace = log.tokens_per_second or 0.0
    parts = [f"{log.step}/{log.steps or '?'}", f"loss {log.curve[-1]:.4f}", f"{pace:,.0f} tokens/s"]
    parts.append(f"rate {rate(asked, log.step - 1, log.steps):.2e}")
    if pace and log.steps:
        left = round((log.steps - log.step) * asked.batch * asked.length / pace)
        parts.append(f"left {left // 60}:{left % 60:02}")
    return "  ".join(parts)


def measured(row: Mapping[str, float]) -> str:
    """A validation in words."""
    told = []
    if "perplexity" in row:
        told.append(f"perplexity {row['perplexity']:.2f} on held-out text")
    if "passkeys" in row:
        told.append(f"{row['passkeys']:.0%} of passkeys found")
    return ", ".join(told)


def conclusion(log: Log) -> str:
    """The last line of a command."""
    if log.status == "prepared":
        return (
            f"{log.corpus['tokens']:,} tokens from {len(log.corpus['sources'])} sources are in {log.recipe['prepare']}"
        )
    told = (
        f"{log.recipe['out']}: {log.step} steps, {log.tokens:,} tokens in {log.seconds:.0f} s, loss {log.curve[-1]:.4f}"
    )
    return f"{told}, {measured(log.validations[-1])}" if log.validations else told


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
