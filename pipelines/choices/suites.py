"""Suites: a few tasks with their limit and lengths under one word, `task=suite/quick`, each a file of conf/suite."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import OmegaConf

from pipelines.records.cells import Refusal
from pipelines.records.places import CONF
from pipelines.records.refusal import suggestion

PREFIX = "suite/"


def expanded(overrides: Sequence[str]) -> list[str]:
    """Overrides with every suite among the tasks written out. What is given beside it counts before what it says.

    Raises:
        Refusal: there is no such suite.
    """
    given: list[str] = []
    written: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key != "task" or PREFIX not in value:
            given.append(override)
            continue
        tasks: list[str] = []
        for name in value.split(","):
            if not name.startswith(PREFIX):
                tasks.append(name)
                continue
            body = _suite(name.removeprefix(PREFIX))
            tasks += body.pop("task").split(",")
            written += [f"{option}={said}" for option, said in body.items()]
        given.append(f"task={','.join(dict.fromkeys(tasks))}")
    return [*written, *given]


def _suite(name: str) -> dict[str, str]:
    path = CONF / "suite" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in (CONF / "suite").glob("*.yaml"))
        hint = suggestion(name, known)
        raise Refusal(f"task={PREFIX}{name}: unknown suite; {hint}there are {', '.join(known)}")
    body = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(body, dict)
    return {str(key): str(value) for key, value in body.items()}
