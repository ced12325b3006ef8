"""Combinations of overrides -> choices. Each part of a choice is composed once, however many combinations it is in: a
grid of 10,000 cells has a few strategies, lengths and tasks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pipelines.choices import config
from pipelines.choices.config import Workbench
from pipelines.records.refusal import Refusal, suggestion

OPTIONED = ("strategy", "task")
"""Groups whose values have options of their own."""

FIELDS = frozenset(entry.name for entry in fields(Workbench))

Answer = TypeVar("Answer")

Compose = Callable[[list[str]], DictConfig]
"""Hydra's own composing of overrides."""

Read = Callable[[str], DictConfig | None]
"""What a file, such as strategy/yarn, says of the field of its group; None where Hydra may make more or less of it."""

Leaves = Callable[[str], bool]
"""Whether an override that composes leaves the fields of OPTIONED to the files that are chosen for them."""


@dataclass(frozen=True, eq=False)
class Given:
    """One value of one key, shared by all combinations that it is in.

    composes: it chooses a file of a group, or adds or takes away a key: Hydra's own composing is for these.
    line: as it can be typed. text: its value in Hydra's grammar.
    """

    key: str
    line: str
    text: str
    value: Any
    composes: bool

    @classmethod
    def of(cls, override: Override, *, group: bool) -> Given:
        composes = group or override.is_delete() or override.is_add() or override.is_force_add()
        text, value = ("", None) if composes else (override.get_value_element_as_str(), override.value())
        return cls(override.key_or_group, str(override.input_line), text, value, composes)


class Part:
    """One field of a choice, with what is set of it. alone: the field as it was composed."""

    def __init__(self, alone: DictConfig, field: str, settings: Sequence[tuple[str, Given]]) -> None:
        self.field, self.interpolates = field, any("${" in str(given.value) for _, given in settings)
        self.config = alone.copy()
        for key, given in settings:
            OmegaConf.update(self.config, key, given.value, merge=True)

    @cached_property
    def value(self) -> Any:
        """As Workbench has it; _Unknown where `config.workbench` must say what is wrong, or must resolve it."""
        if self.interpolates or OmegaConf.missing_keys(self.config):
            return _Unknown
        value = getattr(config.structure(self.config), self.field)
        named = self.field not in OPTIONED or (isinstance(value, dict) and isinstance(value.get("name"), str))
        return value if named else _Unknown


_Unknown = object()


Parts = dict[tuple[str, str, tuple[Given, ...]], Part]
"""By field, what it holds as it was composed, and what is set of it."""


class Composed:
    """What Hydra composes of the choices of files alone.

    config: that, without Hydra's own part. chosen: the file of each group. parts: of any such choices, to be added to.
    """

    def __init__(self, config: DictConfig, chosen: Mapping[str, Any], names: dict[str, set[str]], parts: Parts) -> None:
        self.config, self.chosen, self.names = config, chosen, names
        plain: Any = OmegaConf.to_container(config)
        self.held = {str(field): repr(value) for field, value in plain.items()}
        self.independent = "${" not in str(plain) and FIELDS.issuperset(self.held)
        self.keys: dict[str, str | None] = {}
        self.alone: dict[str, DictConfig] = {}
        self.parts = parts

    @classmethod
    def by_hydra(cls, whole: DictConfig, names: dict[str, set[str]], parts: Parts) -> Composed:
        chosen = whole.hydra.runtime.choices
        return cls(_only(whole, {str(key) for key in whole} - {"hydra"}), chosen, names, parts)

    def is_plain(self, read: Read) -> bool:
        """Whether each file of OPTIONED is all that is said in its field."""
        return self.independent and all(
            (said := read(f"{group}/{self.chosen.get(group)}")) is not None and said == self.config[group]
            for group in OPTIONED
        )

    def with_files(self, files: Mapping[str, str], read: Read) -> Composed | None:
        """The same with other files of OPTIONED, where it is plain; None where Hydra must compose them."""
        config = self.config.copy()
        for group, name in files.items():
            if (said := read(f"{group}/{name}")) is None:
                return None
            config[group] = said
        return Composed(config, {**self.chosen, **files}, self.names, self.parts)

    def reached(self, key: str) -> str | None:
        """The key that an option has here; None where its strategy, or task, has no such option."""
        if key not in self.keys:
            self.keys[key] = self._reached(key)
        return self.keys[key]

    def _reached(self, key: str) -> str | None:
        head, _, option = key.partition(".")
        if not option:
            return key
        for group in OPTIONED:
            if head == group:
                return key if option.partition(".")[0] in list(self.config[group]) else None
            if head in self.names[group]:
                return f"{group}.{option}" if self.chosen[group] == head else None
        return key

    def combination(self, settings: Sequence[tuple[str, Given]]) -> Combination:
        """A choice of these files with plain values set.

        Raises:
            Refusal: a key is unknown, or a value of another type.
        """
        by_field: dict[str, list[tuple[str, Given]]] = {str(field): [] for field in self.config}
        for key, given in settings:
            by_field.setdefault(key.partition(".")[0], []).append((key, given))
        found = []
        if self.independent:
            for field, own in by_field.items():
                place = field, self.held.get(field, ""), tuple(given for _, given in own)
                if place not in self.parts:
                    if field not in self.alone:
                        self.alone[field] = _only(self.config.copy(), {field})
                    try:
                        self.parts[place] = Part(self.alone[field], field, own)
                    except (OmegaConfBaseException, KeyError):
                        break
                found.append(self.parts[place])
        combination = Combination(self, tuple(settings), tuple(found))
        if len(found) < len(by_field):  # said of the whole, or allowed in it
            _ = combination.config
        return combination


def _only(config: DictConfig, keys: set[str]) -> DictConfig:
    """A config without its other keys; those that stay keep their types."""
    with read_write(config), open_dict(config):
        for key in set(map(str, config)) - keys:
            del config[key]
    return config


@dataclass(frozen=True)
class Combination:
    """One choice, before it is typed. parts: all of them, where each can be had alone."""

    composed: Composed
    settings: tuple[tuple[str, Given], ...]
    parts: tuple[Part, ...]

    @cached_property
    def config(self) -> DictConfig:
        """The whole of it, for what is said of it.

        Raises:
            Refusal: as Composed.combination.
        """
        whole = self.composed.config.copy()
        for key, given in self.settings:
            _set(whole, key, given.value)
        return whole

    @property
    def choice(self) -> Workbench:
        """The same, typed.

        Raises:
            Refusal: as `config.workbench`.
        """
        values = {part.field: part.value for part in self.parts}
        if len(values) < len(self.composed.config) or any(value is _Unknown for value in values.values()):
            return config.workbench(self.config)
        return config.checked(Workbench(**values))


def combined(
    compose: Compose,
    read: Read,
    leaves: Leaves,
    base: tuple[DictConfig, Sequence[Given]],
    jobs: Iterable[Sequence[Given]],
    names: dict[str, set[str]],
) -> Iterator[tuple[tuple[str, ...], Combination]]:
    """Each job as the overrides that give it alone, and its choice.

    Hydra composes for every choice of files but those of OPTIONED, of which each is read once where that is enough.

    base: what it has composed already, and the files chosen for that.

    Raises:
        Refusal: an option that no job has, or that is refused.
    """
    composed, parts = dict[tuple[str, ...], Composed](), Parts()
    plain = dict[tuple[str, ...], Composed]()

    def note(others: tuple[str, ...], found: Composed) -> None:
        if all(map(leaves, others)) and found.is_plain(read):
            plain[others] = found

    note(_others(given.line for given in base[1]), Composed.by_hydra(base[0].copy(), names, parts))
    unused: dict[str, bool] = {}
    for job in jobs:
        groups = tuple(given.line for given in job if given.composes)
        if groups not in composed:
            files = {key: name for key, _, name in (line.partition("=") for line in groups) if key in OPTIONED}
            others = _others(groups)
            found = plain[others].with_files(files, read) if others in plain else None
            if found is None:
                found = Composed.by_hydra(compose(list(groups)), names, parts)
                note(others, found)
            composed[groups] = found
        of, lines, settings = composed[groups], [], []
        for given in job:
            if given.composes:
                lines.append(given.line)
                continue
            key = of.reached(given.key)
            unused[given.key] = unused.get(given.key, True) and key is None
            if key is not None:
                settings.append((key, given))
                lines.append(f"{key}={given.text}")
        yield tuple(lines), of.combination(settings)
    for key in (key for key, idle in unused.items() if idle):
        raise _unreached(key, list(composed.values()), names)


def _others(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(line for line in lines if line.partition("=")[0] not in OPTIONED)


def _unreached(key: str, composed: Sequence[Composed], names: dict[str, set[str]]) -> Refusal:
    """The sentence for an option that none of the configs has."""
    head, _, option = key.partition(".")
    group = next(group for group in OPTIONED if head == group or head in names[group])
    chosen = {str(of.chosen[group]): of.config for of in composed}
    if head != group and head not in chosen:
        return Refusal(f"{key}: {group} {head} is not among those given: {', '.join(chosen)}")
    if head != group or len(chosen) == 1:
        return _no_such(chosen.get(head, composed[0].config), f"{group}.{option}")
    known = [name for config in chosen.values() for name in config[group] if name != "name"]
    close = difflib.get_close_matches(option, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return Refusal(f"{key}: no {group} of those given has this option ({', '.join(chosen)}){hint}")


def _set(target: DictConfig, key: str, value: Any) -> None:
    try:
        OmegaConf.update(target, key, value, merge=True)
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise _no_such(target, key) from error
    except OmegaConfBaseException as error:
        raise Refusal(f"{key}={value}: {str(error).splitlines()[0]}") from error


def _no_such(composed: DictConfig, key: str) -> Refusal:
    """The sentence for an option that the composed config does not have, with those that it has in that place."""
    parent, _, leaf = key.rpartition(".")
    where = OmegaConf.select(composed, parent) if parent else composed
    known = [str(name) for name in where] if isinstance(where, DictConfig) else []
    hint = suggestion(leaf, known)
    return Refusal(f"{key}: no such option; {hint}{parent or 'the top level'} has {', '.join(known) or 'none'}")
