"""Plain values -> typed dataclasses; an unknown key or a value of another type is refused with what is allowed.

Owns omegaconf together with config.py, which does the same for what Hydra composes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_type_hints

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError

from pipelines.records.cells import Refusal

Schema = TypeVar("Schema")

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def read(path: Path) -> dict[str, Any]:
    """A YAML file as plain data.

    Raises:
        Refusal: it cannot be read, or does not hold keys with values.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, yaml.YAMLError) as error:
        raise Refusal(f"{path.name}: {error}") from error
    if not isinstance(values, dict):
        raise Refusal(f"{path.name}: give keys with values, as the other files of {path.parent.name} have")
    return cast(dict[str, Any], values)


def structured(schema: type[Schema], values: Mapping[str, Any], prefix: str = "") -> Schema:
    """Values as a dataclass, every one of the type that its field has; nested dataclasses likewise.

    prefix: of the keys on the command line, such as `tune.`.

    Raises:
        Refusal: a key is unknown or missing, or a value of another type.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(schema), dict(values))
    except ConfigKeyError as error:
        owner: Any = error.object_type or schema
        allowed = ", ".join(f"{prefix}{entry.name}" for entry in fields(owner))
        raise Refusal(f"{prefix}{error.full_key}: {owner.__name__} has no such key; there are {allowed}") from error
    except ValidationError as error:
        given = "" if error.value is None else f"={error.value}"
        raise Refusal(f"{prefix}{error.full_key}{given}: give {_wanted(error)}") from error
    if missing := sorted(map(str, OmegaConf.missing_keys(config))):
        raise Refusal(f"{', '.join(f'{prefix}{name}' for name in missing)} not given: give {prefix}{missing[0]}=...")
    return cast(Schema, OmegaConf.to_object(config))


def _wanted(error: ValidationError) -> str:
    owner = error.object_type
    if not is_dataclass(owner):  # an entry of a list or a mapping
        return str(error).splitlines()[0]
    hint = get_type_hints(owner)[str(error.key)]
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return " or ".join(KINDS.get(kind, str(kind)) for kind in kinds)
