"""`ropewalk train`: its command line."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.cli import arguments, meanings
from pipelines.cli.arguments import Options, Verbs
from pipelines.cli.meanings import Key
from pipelines.records.places import SITE

DESCRIPTION = """
Trains a Llama from scratch (recipe=tiny, the default), or continues a checkpoint at a longer length under any rope
strategy (recipe=extend_tiny; recipe=pi and recipe=yarn are the published ones). Recipes are files in conf/train; every
key in them can be given here. A training that was stopped continues when the same command is given again.
  ropewalk train steps=200 batch=16 out=mlruns/models/small
  ropewalk train recipe=extend_tiny strategy=linear out=mlruns/models/linear
  ropewalk train recipe=yarn model=~/models/Llama-2-7b text=~/books length=16384 factor=4 out=~/models/Llama-2-7b-16k
  torchrun --nproc_per_node 4 -m pipelines train recipe=tiny             on four GPUs
Exit codes: 0 trained, 1 the loss diverged, 2 refused before training.
"""


def add(verbs: Verbs) -> None:
    arguments.add_verb(
        verbs,
        "train",
        "train a tiny Llama, or extend a checkpoint to longer contexts",
        DESCRIPTION,
        run,
        usage="[recipe=NAME] [KEY=VALUE ...]",
        keys=[Key("recipe", "str", "tiny", f"a file of conf/train: {', '.join(meanings.values('train'))}")],
        details=details,
    )


def details() -> Iterator[str]:
    yield "keys of a recipe, with type and default:"
    yield from meanings.table(recipe_keys())


def recipe_keys() -> list[Key]:
    return meanings.record_keys(SITE / "pipelines" / "train" / "recipe.py", "TrainRecipe")


def run(options: Options) -> int:
    from pipelines.train import recipe

    asked = recipe.read(options.words)  # refused before torch is imported
    from pipelines.train import train

    return train.main(asked)
