"""What a training is to do: conf/train/NAME.yaml and key=value arguments as one typed, checked record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_type_hints

import yaml  # type: ignore[import-untyped]

from pipelines.choices import schema
from pipelines.records import paths, places
from pipelines.records.cells import Refusal, digest_of
from pipelines.records.refusal import suggestion

CONF = places.CONF / "train"
SCHEDULES = ("cosine", "linear", "constant", "wsd")

RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("steps", "log_every", "validate_every", "save_every"), (1, 10**9)),
    **dict.fromkeys(("batch", "micro_batch", "validation", "answer_weight"), (1, 10**6)),
    **dict.fromkeys(("share", "exercises", "warmup_from", "final"), (0, 1)),
    "length": (2, 2**40),
    "learning_rate": (1e-12, 1e3),
    "trained_length": (2, 2**40),
    "vocabulary": (257, 10**6),  # every byte, and the end of a text
    "factor": (0, 1e9),
    "minutes": (0.001, 10**6),
    "warmup": (0, 10**9),
    "weight_decay": (0, 1e3),
    "clip": (1e-9, 1e9),
    "seed": (-(2**63), 2**63 - 1),
}
"""The smallest and the largest number that a key takes."""

DEVICES = ("auto", "cpu")

UNDECIDING = frozenset(
    {"out", "store", "prepare", "track", "experiment", "log_every", "save_every", "device", "compile", "makers"}
)
"""Keys of a recipe that change no number."""


@dataclass(frozen=True)
class TrainRecipe:
    """One training. conf/train holds recipes; every key can be given on the command line too."""

    out: str
    """Folder of the trained model, and of the checkpoint from which the same command goes on after a kill."""
    length: int
    """Tokens of a window: the context that is trained."""
    batch: int
    """Windows a step, over all GPUs."""
    learning_rate: float
    """At its peak."""
    model: str | None = None
    """A checkpoint to continue: a folder, a GGUF file or a hub id; null: a new Llama of this shape."""
    trained_length: int | None = None
    """Tokens the checkpoint was trained for, where its config says otherwise."""
    shape: dict[str, Any] = field(default_factory=dict)
    """Of a new Llama: keys of transformers' LlamaConfig."""
    vocabulary: int = 8192
    """Tokens of a new Llama's tokenizer."""
    strategy: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    """name, and options of the function of that name in rope/strategies."""
    factor: float | None = None
    """null: length / trained length."""
    text: list[str] = field(default_factory=lambda: ["stdlib", "packages"])
    """stdlib, packages, a text file, a folder, hub:OWNER/NAME; or the folder of a corpus prepared before."""
    share: float = 0.0
    """Share of windows with a generated document that teaches retrieval."""
    exercises: float = 0.0
    """Share of generated documents that ask for more than a number: lists, conversations, sections, kinds, edges."""
    answer_weight: int = 1
    """What the tokens of an answer count in the loss; all other text counts 1."""
    steps: int | None = None
    """Optimizer steps; null: as `minutes` says."""
    minutes: float | None = None
    """In place of steps: as many as fit, by the pace of the first ones."""
    warmup: int = 0
    """Steps from warmup_from x the peak to the peak."""
    warmup_from: float = 0.0
    """Share of the peak at which the warm-up begins."""
    schedule: str = "constant"
    """After the warm-up: cosine, linear, constant, or wsd: constant, then linear over the last fifth."""
    final: float = 0.0
    """Share of the peak at which the schedule ends."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Of AdamW."""
    weight_decay: float = 0.0
    """On matrices; vectors have none."""
    clip: float | None = None
    """Norm above which a gradient is scaled down; null: never."""
    seed: int = 0
    """Of new weights and of the order of the text."""
    micro_batch: int | None = None
    """Windows a GPU holds at a time; null: all of its share, halved until they fit."""
    device: str = "auto"
    """auto: the GPUs where there are any; or cpu."""
    deterministic: bool = True
    """Only kernels that add in one order, so that one seed gives one curve on a GPU too."""
    compile: bool | None = None
    """null: on a GPU."""
    makers: int | None = None
    """Processes that make the windows ahead; null: up to eight on a GPU, none on a CPU."""
    log_every: int = 10
    """Steps between lines in the terminal."""
    validate_every: int = 250
    """Steps between validations."""
    validation: int = 64
    """Held-out windows, and as many passkeys."""
    save_every: int = 250
    """Steps between checkpoints, which a kill costs at most."""
    track: bool = True
    """Record the curves in MLflow, where it is installed."""
    experiment: str = "train"
    """Of MLflow."""
    store: str | None = None
    """Folder of results and prepared corpora; null: mlruns/ here, or ROPEWALK_STORE."""
    prepare: str | None = None
    """Only prepare the corpus, into this folder, and stop."""

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise Refusal(f"{name}={value}: give a number from {least:,} to {most:,}")
        if (self.steps is None) == (self.minutes is None):
            raise Refusal(f"steps={self.steps} and minutes={self.minutes}: give one of them and leave the other null")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise Refusal(f"betas={self.betas}: give two numbers from 0 to below 1, such as 0.9,0.95")
        for name, value, allowed in (("schedule", self.schedule, SCHEDULES), ("device", self.device, DEVICES)):
            if value not in allowed:
                raise Refusal(f"{name}={value}: give one of {', '.join(allowed)}")
        if self.model is None and (self.strategy["name"], self.factor) != ("none", None):
            raise Refusal(
                f"strategy={self.strategy['name']} scales a trained model: give model=CHECKPOINT to extend one"
            )

    @property
    def digest(self) -> str:
        """What decides the numbers: where they are written and how often they are looked at is left out."""
        decides = {name: value for name, value in asdict(self).items() if name not in UNDECIDING}
        if not self.exercises:  # recipes from before there were any
            del decides["exercises"]
        return digest_of(decides)[:12]


def read(arguments: Sequence[str]) -> TrainRecipe:
    """recipe=NAME key=value ... as a TrainRecipe; recipe is tiny where it is not given.

    Raises:
        Refusal: an unknown recipe or key, or a value of another type or out of range.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign:
            raise Refusal(f"{argument!r} is no key=value; for example recipe=tiny steps=200 (ropewalk train --help)")
        given[key] = value
    values = published(given.pop("recipe", "tiny"))
    for key, value in given.items():
        name, _, option = key.partition(".")
        plain = _plain(key, value)
        if option:
            held = values.get(name, {})
            values[name] = {**(held if isinstance(held, dict) else {"name": held}), option: plain}
        else:
            values[name] = plain
    return from_values(values)


def _plain(key: str, value: str) -> Any:
    """A value of the command line as plain data: of a key that takes text the text itself, which may be a path with
    anything in it, else YAML."""
    if get_type_hints(TrainRecipe).get(key) in (str, str | None):
        return None if value in ("", "null") else value
    if key == "text" and value[:1] != "[":
        return paths.listed(value)
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise Refusal(f"{key}={value}: this cannot be read; quote what has braces, colons or commas in it") from error


def from_values(values: Mapping[str, Any]) -> TrainRecipe:
    """A mapping of plain values as a TrainRecipe. A strategy may be its name, a list its entries with commas.

    Raises:
        Refusal: an unknown or missing key, or a value of another type or out of range.
    """
    plain = dict(values)
    if isinstance(plain.get("strategy"), str):
        plain["strategy"] = {"name": plain["strategy"]}
    for name in ("strategy", "shape"):
        if isinstance(plain.get(name), list):
            raise Refusal(f"{name}={plain[name]}: give {name}.KEY=VALUE, a key at a time")
    for name in ("text", "betas"):
        if isinstance(plain.get(name), dict):
            raise Refusal(f"{name}={plain[name]}: give a list, with commas")
        if isinstance(plain.get(name), str):
            plain[name] = plain[name].split(",")
    return schema.structured(TrainRecipe, plain)


def published(name: str) -> dict[str, Any]:
    """The values of conf/train/NAME.yaml.

    Raises:
        Refusal: there is none of that name.
    """
    path, known = CONF / f"{name}.yaml", sorted(file.stem for file in CONF.glob("*.yaml"))
    if name not in known:
        hint = suggestion(name, known)
        raise Refusal(
            f"recipe={name}: there is none of that name; {hint}there are {', '.join(known)}, "
            f"or add {path.name} to conf/train"
        )
    return schema.read(path)
