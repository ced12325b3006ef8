"""YAML files and plain values -> typed dataclasses; an unknown key or a value of another type is refused with what is
allowed.

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
from omegaconf.errors import ConfigKeyError, ConfigTypeError, OmegaConfBaseException, ValidationError

from pipelines.records import inputs
from pipelines.records.paths import uninterpolated
from pipelines.records.refusal import Refusal, first_line

Schema = TypeVar("Schema")

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


LARGEST_YAML, MOST_ENTRIES, DEEPEST = 1 << 20, 100_000, 32
"""Of a YAML file: bytes; entries with its aliases written out; lists and mappings within each other."""


def read(path: Path) -> dict[str, Any]:
    """A YAML file as plain data.

    Raises:
        Refusal: as `check_yaml`, or it does not hold keys with values.
    """
    check_yaml(path)
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise Refusal(f"{path.name}: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise Refusal(f"{path.name}: give keys with values, as the other files of {path.parent.name} have")
    return cast(dict[str, Any], values)


def check_yaml(path: Path) -> None:
    """Refuse a YAML file that cannot be read, or that grows when it is.

    Raises:
        Refusal: it is no regular file, too large or deep, no YAML, or its aliases make it too large.
    """
    try:
        check_yaml_text(inputs.text(path, LARGEST_YAML))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        if isinstance(error, Refusal):
            raise
        why = "it is nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise Refusal(f"{path}: {why}") from error


def check_yaml_text(text: str) -> None:
    """The same of YAML that is no file; ValueError, YAMLError or RecursionError say what is wrong.

    Nodes are looked at, and nothing is built of them: an alias is still the one node that it names.
    """
    seen: dict[int, tuple[int, int]] = {}

    def measured(node: yaml.Node) -> tuple[int, int]:
        """(entries, depth) with aliases written out."""
        if isinstance(node, yaml.ScalarNode):
            if "\0" in node.value:
                raise ValueError("a text holds the character 0")
            return 1, 0
        if id(node) not in seen:
            seen[id(node)] = (1, DEEPEST + 1)  # for what it says of itself, within itself
            inner = [entry for pair in node.value for entry in (pair if isinstance(pair, tuple) else (pair,))]
            parts = [measured(entry) for entry in inner]
            seen[id(node)] = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
        return seen[id(node)]

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    entries, depth = measured(root) if root else (0, 0)
    if depth > DEEPEST:
        raise ValueError(f"lists and mappings lie deeper than {DEEPEST} within each other, or within themselves")
    if entries > MOST_ENTRIES:
        raise ValueError(f"it holds {entries:,} entries with its aliases written out, and may hold {MOST_ENTRIES:,}")


def _literal(value: Any) -> Any:
    """Plain data in which no text is an interpolation."""
    if isinstance(value, dict):
        return {key: _literal(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return list(map(_literal, value))
    return uninterpolated(value) if isinstance(value, str) else value


def structured(schema: type[Schema], values: Mapping[str, Any], prefix: str = "") -> Schema:
    """Values as a dataclass, every one of the type that its field has; nested dataclasses likewise. They are taken as
    they are: a text with ${...} in it stands for nothing else.

    prefix: of the keys on the command line, such as `tune.`.

    Raises:
        Refusal: a key is unknown or missing, or a value of another type.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(schema), _literal(dict(values)))
        missing = sorted(map(str, OmegaConf.missing_keys(config)))
        chosen = None if missing else cast(Schema, OmegaConf.to_object(config))
    except ConfigKeyError as error:
        owner: Any = error.object_type or schema
        allowed = ", ".join(f"{prefix}{entry.name}" for entry in fields(owner))
        raise Refusal(f"{prefix}{error.full_key}: {owner.__name__} has no such key; there are {allowed}") from error
    except ValidationError as error:
        given = "" if error.value is None else f"={error.value}"
        raise Refusal(f"{prefix}{error.full_key}{given}: give {_wanted(error)}") from error
    except ConfigTypeError as error:
        raise Refusal(f"a list stands where a mapping belongs, or the other way round: {first_line(error)}") from error
    except OverflowError as error:
        raise Refusal(f"a value is larger than any number with a point: {error}") from error
    if chosen is None:
        raise Refusal(f"{', '.join(f'{prefix}{name}' for name in missing)} not given: give {prefix}{missing[0]}=...")
    return chosen


def _wanted(error: ValidationError) -> str:
    owner = error.object_type
    if not is_dataclass(owner):  # an entry of a list or a mapping
        return str(error).splitlines()[0]
    hint = get_type_hints(owner)[str(error.key)]
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return " or ".join(KINDS.get(kind, str(kind)) for kind in kinds)
