"""A model that is in memory already, scored as the grid scores a checkpoint: same cells, same tasks, same numbers."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipelines.choices.sweep import PlanChoice, cell_for
from pipelines.records.cells import Cell, Model, Refusal, Result, Task, distinct
from pipelines.tasks import registry
from pipelines.tasks.scorer import LongLM
from pipelines.workers.evaluate import evaluate
from rope.config import geometry_of
from rope.cropping import uncropped
from rope.geometry import Geometry
from rope.patch import Reading, patched

SAMPLES = 4096
"""Numbers of every tensor that go into a model's fingerprint."""


def describe(model: Any) -> PlanChoice:
    """A live model with its geometry, under the strategy `none` at its trained length.

    Raises:
        Refusal: it is no causal language model with rotary embeddings, or its weights are not in memory.
    """
    kind = type(model).__name__
    if not hasattr(model, "config") or getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise Refusal(f"{kind} is no causal language model; give one of transformers, such as AutoModelForCausalLM's")
    if model.config.is_encoder_decoder:
        raise Refusal(f"{kind} has an encoder; give a model that predicts the next token of one text")
    if model.device.type == "meta":
        raise Refusal(f"the weights of this {kind} are not in memory (device meta); load them, or use ropewalk.grid")
    try:
        geometries = geometry_of(model.config)
    except ValueError as error:
        raise Refusal(f"{kind}: {error}") from error
    trained = max(geometry.trained_length for geometry in geometries.values())
    path = str(getattr(model.config, "name_or_path", "") or kind)
    name = Path(path).name if Path(path).is_dir() else path
    record = Model(name, path, trained_length=trained, fingerprint=_fingerprint(model))
    natives = tuple((layers, geometry.native(trained)) for layers, geometry in geometries.items())
    return PlanChoice(record, geometries, "none", (), trained, natives)


def score(
    model: Any,
    tokenizer: Any,
    plans: Sequence[PlanChoice],
    task: Task,
    *,
    limit: int | None,
    seed: int,
    progress: Callable[[Cell, Result], None],
) -> list[tuple[Cell, Result]]:
    """The task under every plan, in the order of `plans`; equal plans over equal text are computed once.

    The model is afterwards as it was before, and so is the tokenizer.

    progress: is called after every cell, the longest ones first.

    Raises:
        Refusal: the model's rotary modules are not what its config says, the model cannot take a plan, or a text is
            missing or too short; nothing has run then.
    """
    if not hasattr(tokenizer, "bos_token_id"):
        raise Refusal(f"{tokenizer!r} is no tokenizer; give one of transformers, such as AutoTokenizer's")
    # A copy: the scorer sets a padding token, and what fits is decided by the length under test.
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = sys.maxsize
    choice = {"name": task.name, **registry.options_of(task, limit)}
    dtype, device = str(model.dtype).removeprefix("torch."), model.device.type
    cells = [cell_for(plan, choice, limit=limit, seed=seed, dtype=dtype, device=device) for plan in plans]
    todo = sorted(distinct(cells), key=lambda cell: -cell.length)
    results: dict[str, Result] = {}
    geometries = plans[0].geometries
    with _evaluating(model):
        _check(model, tokenizer, todo, geometries)
        run = evaluate(todo, lambda cell: LongLM(model, tokenizer, max_length=cell.length), lambda cell: geometries)
        for cell, result in zip(todo, run, strict=True):
            results[cell.id] = result
            progress(cell, result)
    return [(cell, results[cell.id]) for cell in cells]


def _check(model: Any, tokenizer: Any, cells: Sequence[Cell], geometries: Mapping[str, Geometry]) -> None:
    """Refuse, with every reason, before anything runs."""
    reasons = dict[str, None]()
    for cell in cells:
        try:
            registry.prepare(cell.task, tokenizer, length=cell.length, limit=cell.limit, seed=cell.seed)
            with patched(model, uncropped(cell.plans), Reading(geometries, cell.length)):
                pass
        except ValueError as error:  # a Refusal among them
            reasons[str(error)] = None
    if reasons:
        raise Refusal("\n".join(reasons))


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and every module in its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _fingerprint(model: Any) -> str:
    """Digest of the config and of evenly spaced numbers of every weight: a model trained further has another."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        if tensor.device.type != "meta":
            numbers = tensor.detach().flatten()
            sample = numbers[:: max(1, numbers.numel() // SAMPLES)].contiguous().cpu()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return f"live-{digest.hexdigest()[:16]}"
