"""Typed schema of every group under conf/, and the one place where a composed config becomes plain data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from pipelines.records.cells import Refusal, digest_of
from pipelines.records.paths import uninterpolated

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
    limit: int | None = None
    seed: int = 0
    dtype: Dtype = Dtype.auto
    force: bool = False
    store: str | None = None


ConfigStore.instance().store(name="schema", node=Workbench, provider="ropewalk")
# Not a launcher of Hydra's: a grid runs its cells on the pool itself where this one is chosen.
ConfigStore.instance().store(group="hydra/launcher", name="pool", node={"_target_": "pool"}, provider="ropewalk")


_FILES: dict[str, str] = {}
_MODELS: dict[str, str] = {}


def strategy_file(path: Path) -> str:
    """Make a file like those of conf/strategy known to Hydra; returns the name under which it is.

    Raises:
        Refusal: it is not there, or no such file.
    """
    such = "give a file such as conf/strategy/yarn.yaml"
    try:
        body = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError) as error:
        raise Refusal(f"strategy={path}: {str(error).splitlines()[0]}; {such}") from error
    if not isinstance(body, dict) or "name" not in body:
        raise Refusal(f"strategy={path}: it says no name of a strategy; {such}")
    name = re.sub(r"[^\w-]", "_", f"{path.resolve().parent.name}-{path.stem}")
    _FILES[name] = str(path.resolve())
    ConfigStore.instance().store(group="strategy", name=name, node=body, provider="ropewalk")
    return name


def named_task(name: str) -> None:
    """Make a task of lm-eval known to Hydra under its own name, as conf/task/lm_eval.yaml is for a single one."""
    node = {"name": name, "num_fewshot": None}
    ConfigStore.instance().store(group="task", name=name, node=node, provider="ropewalk")


def given_model(path: str, shown: str) -> str:
    """Make a folder, file or hub id known to Hydra as a model, as conf/model/local.yaml is; returns its name there.

    shown: how tables call it.
    """
    name = f"given-{digest_of([path, shown])[:12]}"
    _MODELS[name] = path
    node = {"name": uninterpolated(shown), "path": uninterpolated(path)}
    ConfigStore.instance().store(group="model", name=name, node=node, provider="ropewalk")
    return name


def typed(override: str) -> str:
    """An override as it can be typed again: a strategy out of a file, and a model that is no name, by its path."""
    key, _, name = override.partition("=")
    path = {"strategy": _FILES, "model": _MODELS}.get(key, dict[str, str]()).get(name)
    return override if path is None else f"{key}={path}"


def workbench(config: DictConfig) -> Workbench:
    """The composed config as a Workbench: plain, typed, detached from Hydra.

    Raises:
        Refusal: a value is missing, or a key unknown.
    """
    plain = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    missing = sorted(map(str, OmegaConf.missing_keys(plain)))
    if missing:
        raise Refusal(" ".join(f"{key} is missing: give {EXAMPLES.get(key, f'{key}=...')}." for key in missing))
    unknown = sorted({str(key) for key in plain} - {entry.name for entry in fields(Workbench)})
    if unknown:
        raise Refusal(f"{', '.join(unknown)}: no such option; `ropewalk grid --help` shows which there are")
    # Composed over `schema`, every value has its type already: merging it with the schema again takes 4 ms a cell.
    return Workbench(**{str(key): value for key, value in cast(dict[Any, Any], OmegaConf.to_object(plain)).items()})
