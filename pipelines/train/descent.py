"""Down the loss, step by step: objective, schedule, watch, validation and checkpoint of one training."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from torch import Tensor, nn

from pipelines.records.cells import Refusal
from pipelines.records.public import public
from pipelines.train.ahead import Ahead
from pipelines.train.batches import Batches
from pipelines.train.corpus import Tokens
from pipelines.train.recipe import TrainRecipe

PACE = (10, 50)
"""Steps between which the pace is taken that turns minutes into steps; the first ones compile and warm up."""

SPARE = 0.97
"""Share of the minutes left after that for steps: validation takes some too."""

SMOOTH, LOOK_BACK, WORSE = 10, 200, 3.0
"""A run diverges where the mean of SMOOTH losses exceeds WORSE times the best of the last LOOK_BACK such means."""

MAKERS = 8
"""Processes that make windows, unless the recipe says how many."""

MOST_NLL = 700.0
"""Nats a token beyond which a perplexity is no number that a float holds."""

ANSWER = 5
"""Digits of a passkey."""

CHECKPOINT, LOG = "checkpoint.pt", "train.json"


class Diverged(RuntimeError):
    """The loss is not finite, or far above what it was; the sentence says where."""


@dataclass
class TrainLog:
    """What a training has shown so far; written to train.json. What was not measured is absent.

    curve: loss of every step, as weighted, nats a token.
    validations: rows of step, perplexity (of held-out text) and passkeys (share of them found).
    seconds: spent in steps and validations; tokens: trained on.
    """

    status: str = "running"
    recipe: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    corpus: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    steps: int | None = None
    tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float | None = None
    curve: list[float] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)
    mlflow_run: str | None = None

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.curve)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{LOG}.tmp"
        temporary.write_text(public(json.dumps(asdict(self), indent=1)), encoding="utf-8")
        temporary.replace(folder / LOG)


def rate(recipe: TrainRecipe, step: int, steps: int | None) -> float:
    """Learning rate of a step, counted from 0, of so many; None: it is not known yet how many, and none is the last."""
    if step < recipe.warmup:
        return recipe.learning_rate * (recipe.warmup_from + (1 - recipe.warmup_from) * (step + 1) / recipe.warmup)
    done = 0.0 if steps is None else (step - recipe.warmup) / max(1, steps - recipe.warmup)
    left = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * min(1.0, done))),
        "wsd": min(1.0, 5 * (1 - done)),
    }[recipe.schedule]
    return recipe.learning_rate * (recipe.final + (1 - recipe.final) * max(0.0, left))


def weighted_nll(logits_BLV: Tensor, ids_BL: Tensor, weights_BL: Tensor) -> Tensor:
    """Sum over all tokens but the first of weight x negative log-likelihood: a scalar, float32, nats."""
    nll = F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1).float(), ids_BL[:, 1:].flatten(), reduction="none")
    return (nll * weights_BL[:, 1:].flatten()).sum()


class Objective(nn.Module):
    """A model and the loss it is trained on; bfloat16 arithmetic on float32 weights where `mixed`.

    compiled: layer by layer and not as a whole, so that equal layers are compiled once, and that transformers, which
    makes an explicit mask inside a compiled graph, leaves causal attention to the kernel.
    """

    def __init__(self, model: nn.Module, *, mixed: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.model, self.mixed = model, mixed
        self.nll: Callable[..., Tensor] = torch.compile(weighted_nll, dynamic=False) if compiled else weighted_nll
        if compiled:
            torch._dynamo.config.suppress_errors = True  # type: ignore[attr-defined]  # what fails to compile runs as it is
            for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
                for layer in stack:
                    layer.compile(dynamic=False)

    def logits(self, ids_BL: Tensor) -> Tensor:
        """(windows, tokens, vocabulary)."""
        with torch.autocast(ids_BL.device.type, torch.bfloat16, enabled=self.mixed):
            logits: Tensor = self.model(input_ids=ids_BL, use_cache=False).logits
        return logits

    def forward(self, ids_BL: Tensor, weights_BL: Tensor) -> Tensor:
        return self.nll(self.logits(ids_BL), ids_BL, weights_BL)


class Watch:
    """Notices a loss that goes wrong."""

    def __init__(self) -> None:
        self.last, self.means = deque[float](maxlen=SMOOTH), deque[float](maxlen=LOOK_BACK)

    def see(self, step: int, loss: float) -> None:
        """One more loss, nats.

        Raises:
            Diverged: it is not finite, or the last ones are far above the best before them.
        """
        remedy = "a lower learning_rate, a longer warmup or clip=1.0 may help"
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {step}: {remedy}")
        self.last.append(loss)
        mean, best = sum(self.last) / len(self.last), min(self.means, default=math.inf)
        if mean > max(WORSE * best, best + 1):
            raise Diverged(f"the loss diverged: {mean:.3g} at step {step} after {best:.3g} before: {remedy}")
        if len(self.last) == SMOOTH:
            self.means.append(mean)


class Descent:
    """One training under way. On several GPUs each process holds one, and takes its share of every step's windows.

    show: called with the log whenever losses have come in.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        model: nn.Module,
        batches: Batches,
        held_out: Tokens,
        log: TrainLog,
        accelerator: Accelerator,
        show: Callable[[TrainLog], None] = lambda log: None,
    ) -> None:
        cuda = accelerator.device.type == "cuda"
        self.recipe, self.batches, self.held_out, self.log, self.show = recipe, batches, held_out, log, show
        self.accelerator, self.checkpoint = accelerator, Path(recipe.out).expanduser() / CHECKPOINT
        self.objective = Objective(model, mixed=cuda, compiled=cuda if recipe.compile is None else recipe.compile)
        self.parallel = accelerator.prepare_model(self.objective)
        groups = [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ]
        beta1, beta2 = recipe.betas
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(beta1, beta2), fused=True)
        self.rows = list(range(accelerator.process_index, recipe.batch, accelerator.num_processes))
        if not self.rows or recipe.batch % accelerator.num_processes:
            raise Refusal(f"batch={recipe.batch}: give a multiple of the {accelerator.num_processes} processes")
        self.micro = min(recipe.micro_batch or recipe.batch, len(self.rows))
        self.watch, self.pending = Watch(), list[Tensor]()
        self._resume()
        self.started = time.monotonic() - log.seconds
        self.mark = self.pace_from = (log.step, log.seconds)

    def run(self) -> None:
        """All steps that are left.

        Raises:
            Diverged: the loss went wrong; the last checkpoint is from before.
            Refusal: not even one window fits into the GPU's memory.
        """
        recipe = self.recipe
        self.objective.train()
        makers = recipe.makers
        if makers is None:
            makers = min(MAKERS, (os.cpu_count() or 1) // 2) if self.accelerator.device.type == "cuda" else 0
        with Ahead(self.batches, makers) as ahead:
            taken = self.log.step
            while self.log.steps is None or taken < self.log.steps:
                ids, weights = ahead(taken)
                self._step(taken, ids, weights)
                taken += 1
                last = taken == self.log.steps
                validated, saved = taken % recipe.validate_every == 0, taken % recipe.save_every == 0
                if last or validated or saved or taken % recipe.log_every == 0 or taken in PACE:
                    self._flush(taken)
                if last or validated:
                    self._validate(taken)
                if saved and not last:
                    self._save()

    def _step(self, step: int, ids: Any, weights: Any) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.recipe, step, self.log.steps)
        # By the weight of the whole step, which every process knows; times the processes, as gradients are averaged.
        scale = self.accelerator.num_processes / float(weights[:, 1:].sum())
        while True:
            try:
                loss = self._gradient(ids[self.rows], weights[self.rows], scale)
                break
            except torch.OutOfMemoryError as error:
                self._shrink(error)
        if self.recipe.clip is not None:
            self.accelerator.clip_grad_norm_(self.parallel.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.pending.append(loss)

    def _gradient(self, ids: Any, weights: Any, scale: float) -> Tensor:
        total = torch.zeros((), device=self.accelerator.device)
        for start in range(0, len(ids), self.micro):
            part_BL = self._on_device(ids[start : start + self.micro]).long()
            weights_BL = self._on_device(weights[start : start + self.micro]).float()
            last = start + self.micro >= len(ids)
            with nullcontext() if last else self.accelerator.no_sync(self.parallel):
                loss = self.parallel(part_BL, weights_BL) * scale
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _on_device(self, rows: Any) -> Tensor:
        """On the device; from pinned memory, so that the GPU's queue is not waited for."""
        tensor = torch.from_numpy(rows)
        if self.accelerator.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.accelerator.device, non_blocking=True)

    def _shrink(self, error: BaseException) -> None:
        """Half as many windows at a time, after memory ran out."""
        error.__traceback__ = None  # its frames hold the tensors that did not fit
        self.optimizer.zero_grad(set_to_none=True)
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        half = self.micro // 2
        if not half:
            raise Refusal(
                f"length={self.recipe.length}: not even one window fits into memory; "
                "choose a shorter length or a smaller model"
            ) from None
        if self.accelerator.num_processes > 1:
            raise Refusal(f"micro_batch={self.micro} does not fit into memory; give micro_batch={half}") from None
        if self.accelerator.is_main_process:
            print(f"micro_batch={self.micro} does not fit into memory: going on with micro_batch={half}", flush=True)
        self.micro = half

    def _flush(self, taken: int) -> None:
        """Losses from the GPU into the log; the pace; and steps from minutes, once the pace is known."""
        if not self.pending:
            return
        losses = self.accelerator.reduce(torch.stack(self.pending), "mean").tolist()
        self.pending.clear()
        for loss in losses:
            self.watch.see(self.log.step + 1, loss)
            self.log.curve.append(loss)
        self.log.seconds = time.monotonic() - self.started
        self.log.tokens = taken * self.recipe.batch * self.recipe.length
        here = (taken, self.log.seconds)
        self.log.tokens_per_second = _pace(self.mark, here) * self.recipe.batch * self.recipe.length
        if taken == PACE[0]:
            self.pace_from = here
        if self.recipe.minutes is not None and self.log.steps is None and taken >= PACE[1]:
            left = SPARE * (self.recipe.minutes * 60 - self.log.seconds)
            steps = broadcast_object_list([taken + max(1, int(left * _pace(self.pace_from, here)))])
            self.log.steps = int(steps[0])
        self.mark = here
        self.show(self.log)

    @torch.no_grad()
    def _validate(self, taken: int) -> None:
        """Perplexity of held-out windows, and the share of passkeys whose every digit is the likeliest token."""
        row: dict[str, float] = {"step": taken}
        if self.accelerator.is_main_process:
            self.objective.eval()
            # The compiled layers would be compiled again for no_grad.
            with torch.compiler.set_stance("force_eager"):
                row |= {**self._perplexity(), **self._passkeys()}
            self.objective.train()
        if len(row) > 1:
            self.log.validations.append(row)
            self.show(self.log)
        self.mark = (taken, time.monotonic() - self.started)

    def _perplexity(self) -> dict[str, float]:
        window = self.recipe.length
        count = min(self.recipe.validation, self.held_out.size // window)
        if not count:
            return {}
        starts = np.linspace(0, self.held_out.size - window, count).astype(int)
        nll = 0.0
        for ids_BL in self._chunks(np.stack([self.held_out[start : start + window] for start in starts])):
            nll += float(weighted_nll(self.objective.logits(ids_BL), ids_BL, torch.ones_like(ids_BL)))
        mean = nll / (count * (window - 1))
        return {"perplexity": math.exp(mean)} if mean < MOST_NLL else {}

    def _passkeys(self) -> dict[str, float]:
        writer = self.batches.retrieval
        if writer is None:
            return {}
        rng = np.random.default_rng([self.recipe.seed, 1 << 31])  # a stream that no step draws from
        documents = [writer.passkey(rng, self.recipe.length)[0] for _ in range(self.recipe.validation)]
        ends = np.array([document.size for document in documents])
        padded = np.stack([np.resize(document, self.recipe.length) for document in documents])
        digits = torch.from_numpy(ends[:, None] + np.arange(-ANSWER, 0)).to(self.accelerator.device)
        right, done = 0, 0
        for ids_BL in self._chunks(padded):
            places = digits[done : done + len(ids_BL)]
            likeliest = self.objective.logits(ids_BL).argmax(-1).gather(1, places - 1)
            right += int((likeliest == ids_BL.gather(1, places)).all(1).sum())
            done += len(ids_BL)
        return {"passkeys": right / self.recipe.validation}

    def _chunks(self, rows: Any) -> Iterator[Tensor]:
        """(windows, tokens) ids on the device, no more at a time than training holds."""
        for start in range(0, len(rows), self.micro):
            yield self._on_device(rows[start : start + self.micro].astype(np.int64))

    def _save(self) -> None:
        """A checkpoint, whole or not at all."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "digest": self.recipe.digest,
            "model": self.objective.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "log": asdict(self.log),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.checkpoint.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.checkpoint)

    def _resume(self) -> None:
        """From the checkpoint, where there is one of this recipe.

        Raises:
            Refusal: the checkpoint is of another recipe.
        """
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, map_location=self.accelerator.device, weights_only=True)
        if state["digest"] != self.recipe.digest:
            raise Refusal(
                f"out={self.checkpoint.parent} holds a training of another recipe, half-done: "
                f"give another out, or remove {self.checkpoint.name} there"
            )
        self.objective.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        vars(self.log).update({**state["log"], "status": "running"})
        for step, loss in enumerate(self.log.curve[-SMOOTH - LOOK_BACK :]):
            self.watch.see(step, loss)


def _pace(before: tuple[int, float], after: tuple[int, float]) -> float:
    """Steps a second between two (steps, seconds)."""
    return (after[0] - before[0]) / max(1e-9, after[1] - before[1])
