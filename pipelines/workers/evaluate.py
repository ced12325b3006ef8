"""Cells -> Results in one process: the function that notebooks, tests and Ray actors call."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from pipelines.choices.sweep import evaluator_of, geometry_for
from pipelines.models import load
from pipelines.records import meter, provenance
from pipelines.records.answers import Answers
from pipelines.records.cells import Cell, Model, Refusal, Result, Status
from pipelines.records.phases import timed
from pipelines.records.refusal import first_line
from pipelines.records.results import Store
from pipelines.tasks import registry
from pipelines.tasks.answered import Answered
from pipelines.tasks.documents import Encoder
from pipelines.tasks.scorer import LongLM
from pipelines.workers import deaths, usage
from pipelines.workers.kept import KeptResult
from rope import strategies
from rope.attention import RegionAttention
from rope.cropping import cropped, uncropped
from rope.geometry import Geometry
from rope.pairwise import replaces_attention
from rope.patch import Reading, patched


def loaded(cell: Cell) -> LongLM:
    """The cell's model from its files, as lm-eval sees it; the last one stays in memory."""
    model = load.model(cell.model, cell.dtype, cell.device)
    tokenizer = load.tokenizer(cell.model)
    return LongLM(
        model,
        tokenizer,
        max_length=cell.length,
        folder=load.materialise(cell.model),
        devices=load.sharing(model),
    )


def read(cell: Cell) -> Mapping[str, Geometry]:
    """The geometry of the cell's model, by layer type, from its files."""
    return geometry_for(cell.model)[2]


def evaluate(
    cells: Iterable[Cell],
    model_of: Callable[[Cell], LongLM] = loaded,
    geometries_of: Callable[[Cell], Mapping[str, Geometry]] = read,
    kept: Mapping[str, Sequence[KeptResult]] | None = None,
    store: Store | None = None,
) -> Iterator[Result]:
    """Run cells one after another and yield each Result when it is ready.

    Before a cell is scored, the rotary modules as built are compared with what was read from the model's config; a
    cell of a model that is built otherwise is invalid, under every strategy. Under `none` nothing is written into it.

    The model stays loaded between cells that share it; the plan is put in afresh for every cell and taken out again,
    so no cell can see what ran before it. A cell that fails yields a Result that says so; nothing is raised.

    model_of, geometries_of: the model of a cell and its geometry by layer type, where they do not come from files.
    kept: by a cell's id documents that need not be scored again, where they were computed as they would be here.
    store: where forwards are kept as they end, and those of a launch that was cut short are taken from.
    """
    for cell in cells:
        yield _result(cell, model_of, geometries_of, (kept or {}).get(cell.id, ()), store)


@timed("cell")
def _result(
    cell: Cell,
    model_of: Callable[[Cell], LongLM],
    geometries_of: Callable[[Cell], Mapping[str, Geometry]],
    kept: Sequence[KeptResult],
    store: Store | None,
) -> Result:
    start = time.perf_counter()
    memory = PeakMemory(cell.device)
    try:
        lm = model_of(cell)
        origin = _provenance(cell, lm)
        answers = None if store is None else Answers(store.cell(cell.id), origin)
        lm.answered = Answered(answers)
        memory.reset()
        start = time.perf_counter()
        lm.crop = cropped(cell.plans)
        seen = cell.length if lm.crop is None else lm.crop.window
        with _patched(lm, cell, Reading(geometries_of(cell), seen)):
            under = partial(_under, lm, cell, geometries_of(cell))
            with _counted(lm.model, cell.id), usage.sampled(cell.device) as samples:
                scores = registry.score(
                    lm,
                    cell.task,
                    length=cell.length,
                    limit=cell.limit,
                    seed=cell.seed,
                    under=under,
                    kept=[one.kept for one in kept if _alike(one.provenance, origin)],
                )
    except Refusal as error:
        return _failure(cell, "invalid", error)
    except Exception as error:  # the worker's boundary: one cell's failure is not another's
        if not _for_memory(error):
            return _failure(cell, "failed", error)
        load.model.cache_clear()
        return _failure(cell, "oom", error)
    seconds = time.perf_counter() - start
    return Result(
        cell_id=cell.id,
        status=_verdict(scores.metrics, lm.vocabulary),
        metrics={name: value for name, value in scores.metrics.items() if math.isfinite(value)},
        series={name: [p for p in row if math.isfinite(p[1])] for name, row in {**scores.series, **samples}.items()},
        documents=[{k: v for k, v in row.items() if _measured(v)} for row in scores.documents],
        digest=scores.digest,
        cost={
            "seconds": seconds,
            "tokens": lm.forward_tokens,
            "tokens_per_second": lm.forward_tokens / seconds,
            "peak_bytes": memory.peak(),
        },
        provenance={**origin, **lm.forward_pass.provenance(), **_sources(cell, scores, kept), **_cut_short(answers)},
    )


def _alike(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether two computations give the same numbers: the same packages, device, attention and code of ours."""
    return all(theirs.get(name) == ours.get(name) for name in (*provenance.DECIDING, "measuring"))


def _sources(cell: Cell, scores: registry.Scores, kept: Sequence[KeptResult]) -> dict[str, Any]:
    """Which documents of a result came from which cell, in their order; nothing where all are its own."""
    if scores.kept is None:
        return {}
    before = next(one.provenance for one in kept if one.kept is scores.kept)
    theirs = {"cell_id": scores.kept.cell_id, "documents": len(scores.kept), "at": before.get("at")}
    own = {"cell_id": cell.id, "documents": len(scores.documents) - len(scores.kept)}
    return {"documents": [*before.get("documents", [theirs]), own]}


def _cut_short(answers: Answers | None) -> dict[str, Any]:
    """How many forwards of a result were computed by launches that were cut short, by the time at which each began."""
    if answers is None or not answers.taken:
        return {}
    return {"cut_short": [{"at": at, "forwards": count} for at, count in answers.taken.items()]}


@contextlib.contextmanager
def _counted(model: Any, cell_id: str) -> Iterator[None]:
    """Report tokens as they pass the layers, where anybody listens: a forward of a long text takes minutes."""
    decoder = getattr(model, "get_decoder", lambda: None)() if meter.is_heard() else None
    layers = getattr(decoder, "layers", ())
    count = meter.Count(cell_id)

    def passed(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        states = args[0] if args else kwargs.get("hidden_states")
        if isinstance(states, torch.Tensor):
            count.add(states.shape[:-1].numel() / len(layers))

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(passed, with_kwargs=True).remove)
        yield


def _for_memory(error: BaseException) -> bool:
    """Whether memory was asked for that is not there: a GPU's, or the host's, of which torch has no type."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = ("DefaultCPUAllocator", "bad_alloc", "Cannot allocate memory", "not enough memory")
    return isinstance(error, (RuntimeError, OSError)) and any(words in str(error) for words in said)


@contextlib.contextmanager
def _patched(lm: LongLM, cell: Cell, reading: Reading) -> Iterator[None]:
    """The model with the cell's plans; a Refusal where it takes none such, or is not built as it was read."""
    with contextlib.ExitStack() as stack:
        try:
            plans = uncropped(cell.plans)
            if cell.strategy in ("none", "crop"):
                reading.check_natives(plans)
            stack.enter_context(patched(lm.model, plans, reading))
        except ValueError as error:
            raise Refusal(f"model {cell.model.name}: {error}") from error
        yield


@contextlib.contextmanager
def _under(
    lm: LongLM, cell: Cell, geometries: Mapping[str, Geometry], evaluator: str, crops: bool
) -> Iterator[tuple[LongLM, int]]:
    """What decides which tokens are key at the cell's length: the cell's model under another strategy with its
    published defaults, or another model as it is; cropped alike to what the cell's model was trained on.

    Raises:
        Refusal: another model has another tokenizer, or was not trained on so many tokens.
    """
    crop = cropped(strategies.plans("crop", geometries, cell.length))
    window = cell.length if crop is None else crop.window
    judge, strategy = lm, "crop" if crops else evaluator
    if (other := evaluator_of(cell.task)) is not None:
        geometries = geometry_for(other)[2]
        judge, strategy = _judge(lm, cell, other, geometries), "none"
    plans, before = strategies.plans(strategy, geometries, cell.length), judge.crop
    judge.crop = crop if crops else cropped(plans)
    try:
        with patched(judge.model, uncropped(plans), Reading(geometries, window if crops else cell.length)):
            yield judge, window
    finally:
        judge.crop = before


def _judge(lm: LongLM, cell: Cell, other: Model, geometries: Mapping[str, Geometry]) -> LongLM:
    """Another model, which must read the same tokens."""
    reads = min(geometry.trained_length for geometry in geometries.values())
    if reads < cell.length:
        raise Refusal(
            f"evaluator={other.name} of the task {cell.task.name} was trained on {reads} tokens, and length="
            f"{cell.length}: give a model that reads as many, or a strategy for this one"
        )
    judge = loaded(replace(cell, model=geometry_for(other)[0]))
    if Encoder.of(judge.tokenizer) != Encoder.of(lm.tokenizer):
        raise Refusal(
            f"evaluator={other.name} of the task {cell.task.name} has another tokenizer than model {cell.model.name}, "
            "and key tokens must be the same for both: give a model of the same tokenizer, or a strategy"
        )
    return judge


def _verdict(metrics: dict[str, float], vocabulary: int) -> Status:
    """Diverged: a metric is not finite, or the model does worse than guessing every token alike."""
    uniform = math.log(vocabulary)
    if any(not math.isfinite(value) for value in metrics.values()) or metrics.get("nll", 0.0) > uniform:
        return "diverged"
    return "ok"


def _measured(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(not isinstance(each, float) or math.isfinite(each) for each in values)


def _failure(cell: Cell, status: Status, error: BaseException) -> Result:
    text = str(error) if isinstance(error, Refusal) else "".join(traceback.format_exception(error))
    if status == "oom":
        text = f"{text.rstrip()}\n{first_line(error)}; {deaths.fits(cell)}"
    # The traceback holds the frames, and these the tensors that did not fit.
    error.__traceback__ = None
    gc.collect()
    if cell.device == "cuda":
        with contextlib.suppress(RuntimeError):  # after a failed assertion CUDA refuses this too
            torch.cuda.empty_cache()
    return Result(cell_id=cell.id, status=status, error=text)


def _provenance(cell: Cell, lm: LongLM) -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if cell.device == "cuda" else []
    return {
        **provenance.environment(),
        **({"cuda": torch.version.cuda} if gpus else {}),
        "device": ", ".join(gpus) or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        # The model's own, in whose place a plan of regions attends: that is the strategy, and two such results compare.
        "attention": getattr(lm.model.config, "_attn_implementation", None),
        **(
            {"attends": f"regions of the plan{'' if RegionAttention.can_fuse else ', without kernels'}"}
            if replaces_attention(cell.plans)
            else {}
        ),
    }


@lru_cache(maxsize=1)
def _keeping_libc() -> ctypes.CDLL | None:
    """glibc, set to keep what a forward frees for the next one; None where the system has another C library.

    By default it hands every large tensor back to the system and asks for zeroed pages anew: a tenth of a cell's time.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
        if libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1):
            return libc
    return None


class PeakMemory:
    """Peak memory of one cell: of the fullest GPU, or this process's resident set where the system tells it."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def reset(self) -> None:
        if self.cuda:
            for device in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(device)
        else:
            if (libc := _keeping_libc()) is not None:
                libc.malloc_trim(0)  # what the cell before kept is not this cell's
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far

    def peak(self) -> float:
        if self.cuda:
            return float(max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))))
        import resource

        try:
            status = Path("/proc/self/status").read_text()
            return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
        except (OSError, StopIteration):
            return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
