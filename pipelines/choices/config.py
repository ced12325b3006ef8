"""Typed schema of every group under conf/, and the one place where a composed config becomes plain data."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from pipelines.choices import schema
from pipelines.models import find
from pipelines.records.cells import Refusal, digest_of
from pipelines.records.paths import uninterpolated
from pipelines.records.privacy import give_out
from pipelines.records.refusal import first_line
from pipelines.tasks import registry

EXAMPLES = {
    "length": "tokens of context under test, such as length=16384 or length=8192,16384",
    "model.path": "model=FOLDER, a .gguf file or a hub id",
    "task.name": "task=NAME, one of lm-eval's",
}
"""What a sentence about a missing value suggests."""


class Dtype(Enum):
    auto = "auto"  # float32 on a CPU, bfloat16 on a GPU
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Device(Enum):
    auto = "auto"  # the GPUs where there are any, else the CPU
    cpu = "cpu"
    cuda = "cuda"


@dataclass
class ModelChoice:
    """conf/model: where the weights come from."""

    name: str = MISSING
    path: str = MISSING
    """A folder, a GGUF file, a hub id, package://MODULE/FILE, or "random"."""
    revision: str | None = None
    """Commit of a hub repository."""
    trained_length: int | None = None
    """Tokens; null: max_position_embeddings of its config.json."""
    shape: dict[str, Any] = field(default_factory=dict)
    """Of a random model: the keys of transformers' LlamaConfig, and `seed`."""
    allow_pickle: bool = False
    """Whether weights may be pickles (.bin), of which torch reads plain tensors alone."""


@dataclass
class Cluster:
    """conf/cluster: where cells run. Nothing here changes a number but the device."""

    device: Device = Device.auto
    """auto: the GPUs where there are any, else the CPU; or cpu, cuda."""
    workers: int | None = None
    """null: one on a CPU; on GPUs as many as fit."""
    cpus_per_worker: int = 1
    """CPU cores that Ray reserves for a worker."""
    gpus_per_worker: float = 1.0
    """0.5 puts two workers on one GPU."""
    retries: int = 1
    """Fresh starts of a cell whose worker died."""
    timeout: float | None = None
    """Seconds that a cell may take; null: as long as it needs."""


@dataclass
class Report:
    """What the answer at the end of a grid goes by; no number depends on it."""

    max_short_cost: Any = "2%"
    """The most that a deployed strategy may cost at short lengths: per cent, or a share."""

    @property
    def short_cost(self) -> float:
        """The same as a share, from 0 to 1.

        Raises:
            Refusal: it is neither.
        """
        given = str(self.max_short_cost).strip()
        try:
            share = float(given.removesuffix("%")) / (100 if given.endswith("%") else 1)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            raise Refusal(f"report.max_short_cost={given}: give per cent or a share, such as 2% or 0.02")
        return share


ENOUGH = "enough"
"""In place of a limit: as many documents as the comparisons of a grid need."""

AUTO, NO_LENGTHS = "auto", "none"
"""Of `short`, beside lengths: the trained one; none at all."""


@dataclass
class Workbench:
    """One cell's choices: conf/config.yaml, composed."""

    model: ModelChoice = MISSING
    strategy: dict[str, Any] = MISSING
    """name, and the options of the function of that name in rope/strategies."""
    task: dict[str, Any] = MISSING
    """name, and the options of that task."""
    cluster: Cluster = MISSING
    length: int = MISSING
    factor: float | None = None
    short: Any = AUTO
    """auto, none, or lengths in tokens: where a grid measures what a deployed factor costs."""
    limit: int | str | None = None
    """Documents; `enough` only of a grid, which puts a number in its place."""
    report: Report = field(default_factory=Report)
    seed: int = 0
    dtype: Dtype = Dtype.auto
    force: bool = False
    retry: bool = False
    allow_unsafe_tasks: bool = False
    store: str | None = None

    @property
    def documents(self) -> int | None:
        """The limit as a number.

        Raises:
            Refusal: it is `enough`, and nothing has put a number in its place.
        """
        if isinstance(self.limit, str):
            raise Refusal(f"limit={self.limit}: `ropewalk grid` and `ropewalk plan` take it; give a whole number here")
        return self.limit


ConfigStore.instance().store(name="schema", node=Workbench, provider="ropewalk")
# Not a launcher of Hydra's: a grid runs its cells on the pool itself where this one is chosen.
ConfigStore.instance().store(group="hydra/launcher", name="pool", node={"_target_": "pool"}, provider="ropewalk")


RANGES: Mapping[str, tuple[float, float]] = {
    "length": (-math.inf, 2**40),  # the smallest is a task's, or a strategy's, to say
    "limit": (-math.inf, 10**6),
    "seed": (-(2**63), 2**63 - 1),
    "factor": (0, 1e9),
    "model.trained_length": (2, 2**40),
    "cluster.workers": (1, 10_000),
    "cluster.cpus_per_worker": (0, 10_000),
    "cluster.gpus_per_worker": (0.001, 1000),
    "cluster.retries": (0, 1000),
    "cluster.timeout": (0.001, 1e9),
}
"""The smallest and the largest number that a key takes."""


def _environment(key: str, *default: Any) -> Any:
    """OmegaConf's ${oc.env:KEY,default}, but that no message shows the value afterwards."""
    value = oc.env(key, *default)
    return give_out(key, value) if isinstance(value, str) and key in os.environ else value


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


_FILES: dict[str, str] = {}
_MODELS: dict[str, str] = {}
_TASKS: dict[str, str] = {}


def strategy_file(path: Path) -> str:
    """Make a file like those of conf/strategy known to Hydra; returns the name under which it is.

    Raises:
        Refusal: it is not there, or no such file.
    """
    such = "give a file such as conf/strategy/yarn.yaml"
    try:
        body = schema.read(path)
    except Refusal as reason:
        raise Refusal(f"strategy={path}: {reason}; {such}") from reason
    if "name" not in body:
        raise Refusal(f"strategy={path}: it says no name of a strategy; {such}")
    name = re.sub(r"[^\w-]", "_", f"{path.resolve().parent.name}-{path.stem}")
    _FILES[name] = str(path.resolve())
    ConfigStore.instance().store(group="strategy", name=name, node=body, provider="ropewalk")
    return name


def named_task(name: str) -> None:
    """Make a task of lm-eval known to Hydra under its own name, as conf/task/lm_eval.yaml is for a single one."""
    node = {"name": name, "num_fewshot": None}
    ConfigStore.instance().store(group="task", name=name, node=node, provider="ropewalk")


def task_file(path: Path) -> str:
    """Make a task's YAML known to Hydra, as conf/task/lm_eval.yaml is; returns the name under which it is.

    Raises:
        Refusal: it is no such file, or something that it needs is not there.
    """
    schema.check_yaml(path)
    name = re.sub(r"[^\w-]", "_", f"given-{path.stem}-{digest_of(str(path.resolve()))[:8]}")
    _TASKS[name] = str(path.resolve())
    node = {"name": registry.task_file(str(path)).name, "num_fewshot": None, "files": uninterpolated(_TASKS[name])}
    ConfigStore.instance().store(group="task", name=name, node=node, provider="ropewalk")
    return name


def given_model(path: str, shown: str) -> str:
    """Make a folder, file or hub id known to Hydra as a model, as conf/model/local.yaml is; returns its name there.

    shown: how tables call it.
    """
    name = f"given-{digest_of([path, shown])[:12]}"
    _MODELS[name] = path
    node = {"name": uninterpolated(shown), "path": uninterpolated(path)}
    ConfigStore.instance().store(group="model", name=name, node=node, provider="ropewalk")
    return name


def checked(choice: Workbench) -> Workbench:
    """A choice of which every number is one that something here can do something with.

    Raises:
        Refusal: one is out of its range.
    """
    if isinstance(choice.limit, str) and choice.limit != ENOUGH:
        raise Refusal(f"limit={choice.limit}: give a whole number of documents, {ENOUGH}, or null for all")
    short_lengths(choice)
    _ = choice.report.short_cost  # read here, so that it is refused before anything runs
    for key, (least, most) in RANGES.items():
        group, _, name = key.rpartition(".")
        value = getattr(getattr(choice, group) if group else choice, name, None)
        if isinstance(value, (int, float)) and not least <= value <= most:
            raise Refusal(f"{key}={value}: give a number from {least:,} to {most:,}")
    return choice


def short_lengths(choice: Workbench) -> tuple[int, ...] | None:
    """The lengths that `short` lists; None: as `auto` says.

    Raises:
        Refusal: it lists none.
    """
    given = choice.short
    if given == AUTO:
        return None
    lengths = () if given in (None, NO_LENGTHS) else tuple(given) if isinstance(given, (list, tuple)) else (given,)
    if any(not isinstance(length, int) or isinstance(length, bool) or not 2 <= length <= 2**40 for length in lengths):
        raise Refusal(f"short={given}: give auto, none, or lengths in tokens, such as short=4096,8192")
    return lengths


def typed(override: str) -> str:
    """An override as it can be typed again: a strategy out of a file, and a model that is no name, by its path."""
    key, _, name = override.partition("=")
    path = {"strategy": _FILES, "model": _MODELS, "task": _TASKS}.get(key, dict[str, str]()).get(name)
    return override if path is None else f"{key}={path}"


def structure(config: DictConfig) -> Workbench:
    """A config that was composed over `schema`, or a part of it, as a Workbench."""
    chosen = cast(Any, OmegaConf.to_object(config))
    return chosen if isinstance(chosen, Workbench) else Workbench(**{str(key): chosen[key] for key in chosen})


def workbench(config: DictConfig) -> Workbench:
    """The composed config as a Workbench: plain, typed, detached from Hydra.

    Raises:
        Refusal: a value is missing, or a key unknown.
    """
    keys = [str(key) for key in config if key != "hydra"]
    plain = OmegaConf.masked_copy(config, keys) if "hydra" in config else config
    missing = sorted(map(str, OmegaConf.missing_keys(plain)))
    if missing:
        if (path := OmegaConf.select(plain, "model.path")) is not None:
            find.locate(find.requested(str(path), str(path)))  # that it is not there is told first
        raise Refusal(" ".join(f"{key} is missing: give {EXAMPLES.get(key, f'{key}=...')}." for key in missing))
    unknown = sorted({str(key) for key in plain} - {entry.name for entry in fields(Workbench)})
    if unknown:
        raise Refusal(f"{', '.join(unknown)}: no such option; `ropewalk grid --help` shows which there are")
    given = cast(dict[str, Any], OmegaConf.to_container(plain))
    for group in ("strategy", "task"):
        if not isinstance(given[group].get("name"), str):
            raise Refusal(f"{group}.name={given[group].get('name')}: give the name of a {group}, as text")
    if "${" in str(given):  # what another key or the environment puts in has no type yet
        try:
            choice = schema.structured(Workbench, cast(Any, OmegaConf.to_container(plain, resolve=True)))
        except OmegaConfBaseException as error:
            raise Refusal(first_line(error)) from error
    else:  # Composed over `schema`, every value has its type already: merging it again takes 4 ms a cell.
        choice = structure(plain)
    return checked(choice)
