"""Command-line overrides -> choices, by Hydra's compose API: one expansion for every verb."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra import initialize_config_dir
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import GroupDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, RangeSweep
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipelines.choices import config, schema, suites
from pipelines.choices.combine import OPTIONED, Given, combined
from pipelines.choices.config import Workbench
from pipelines.records import paths
from pipelines.records.cells import Refusal
from pipelines.records.places import CONF
from pipelines.records.refusal import first_line, suggestion
from pipelines.tasks import files

LONGEST_WORD, MOST_COMBINATIONS, MOST_FILES = 20_000, 20_000, 2_000
"""Characters of an override, combinations of one grid, and files of a folder of own configs."""

READS = re.compile(r"oc\.env|\$\{[^{}]*\$\{")
"""What reads the environment, or may: the name of a resolver can be put together too."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Expansion:
    """Every combination that overrides ask for.

    jobs: for each choice the overrides that give it alone. config, loader: Hydra's, for its own launchers.
    """

    choices: tuple[Workbench, ...]
    jobs: tuple[tuple[str, ...], ...]
    config: DictConfig
    loader: ConfigLoader

    @property
    def experiment(self) -> str | None:
        return self._chosen("experiment")

    @property
    def launcher(self) -> str | None:
        """What hydra/launcher names: `pool`, ours, unless the overrides name another."""
        return self._chosen("hydra/launcher")

    @property
    def settings(self) -> list[str]:
        """The overrides of Hydra itself, such as hydra.searchpath."""
        return list(self.config.hydra.overrides.hydra)

    def _chosen(self, group: str) -> str | None:
        name: str | None = self.config.hydra.runtime.choices.get(group)
        return name


def expand(overrides: Sequence[str]) -> list[Workbench]:
    """Every combination of the overrides' comma lists, typed; nothing is run.

    Raises:
        Refusal: an override that cannot be parsed, an unknown name or option, a missing value or one of another type.
    """
    return list(expansion(overrides).choices)


def expansion(overrides: Sequence[str]) -> Expansion:
    """As `expand`, with what a grid needs besides the choices.

    An option reaches the strategies (or tasks) that have it: `strategy=none,yarn strategy.beta_fast=16,32` are three
    combinations. `yarn.beta_fast=16` is an option of yarn alone.

    Raises:
        Refusal: as `expand`.
    """
    overrides = suites.expanded(overrides)
    with _composing(overrides) as (loader, located):
        parser = OverridesParser.create(config_loader=loader)
        parsed = _asked(parser.parse_overrides, located)
        for override in parsed:
            if _is_group(override, loader):
                _check_name(override, loader)
        decisive = [o for o in parsed if o.is_hydra_override() or (_is_group(o, loader) and not o.is_sweep_override())]
        base = _asked(loader.load_configuration, "config", [str(o.input_line) for o in decisive], RunMode.MULTIRUN)
        if (sweeper := base.hydra.runtime.choices.get("hydra/sweeper")) != "basic":
            raise Refusal(f"hydra/sweeper={sweeper}: commas are expanded here; to search for options use ropewalk tune")
        params = base.hydra.sweeper.get("params") or {}
        usual = _located([f"{key}={value}" for key, value in params.items()])
        wanted = [*_asked(parser.parse_overrides, usual), *(o for o in parsed if not o.is_hydra_override())]
        compose = partial(_asked, loader.load_sweep_config, base)
        read, leaves = cache(partial(_read, loader, base.hydra)), cache(partial(_leaves, loader))
        [chosen] = _product(parser, [o for o in decisive if not o.is_hydra_override()], loader)
        product, names = _product(parser, wanted, loader), _names(overrides)
        jobs = dict(combined(compose, read, leaves, (base, chosen), product, names))
        if not jobs:
            raise Refusal(f"{' '.join(overrides)}: these make no combination; give each key at least one value")
        return Expansion(tuple(job.choice for job in jobs.values()), tuple(jobs), base, loader)


@contextmanager
def hydra(overrides: Sequence[str]) -> Iterator[tuple[Any, list[str]]]:
    """Hydra itself with the overrides as it takes them: for its --cfg, --info and --hydra-help.

    Raises:
        Refusal: what Hydra refuses, in a sentence.
    """
    with _composing(overrides) as (_, located):
        yield GlobalHydra.instance().hydra, located


@contextmanager
def _composing(overrides: Sequence[str]) -> Iterator[tuple[ConfigLoader, list[str]]]:
    _check_words(overrides)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield GlobalHydra.instance().config_loader(), _located(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise Refusal(_sentence(error)) from error


def _asked(ask: Callable[..., Answer], *arguments: Any) -> Answer:
    """What Hydra answers. Whatever it raises instead is over what the overrides, or the files that they name, hold."""
    try:
        return ask(*arguments)
    except Exception as error:
        raise Refusal(_sentence(error)) from error


def _check_words(overrides: Sequence[str]) -> None:
    """Refuse what is no text to Hydra's parser, and what would show the environment.

    Raises:
        Refusal: a word is too long, holds the character 0, or reads the environment.
    """
    for word in overrides:
        key, _, value = word.partition("=")
        if len(word) > LONGEST_WORD:
            raise Refusal(f"{word[:60]}...: it has {len(word):,} characters, and may have {LONGEST_WORD:,}; use a file")
        if "\0" in word:
            raise Refusal(f"{key!a}: a value holds the character 0, which no name and no path has")
        if READS.search(word) and not paths.is_here(value):
            raise Refusal(
                f"{key}: the environment is read by files that you name alone (a model, strategy or experiment of "
                "--config-dir, or strategy=FILE.yaml), and never by a command line, which is kept with the results"
            )


def _check_name(override: Override, loader: ConfigLoader) -> None:
    """Refuse what is no name where a group takes one of its files."""
    value = None if override.is_delete() else override.value()
    names = value if isinstance(value, list) else [value]
    named = all(isinstance(name, (str, QuotedString)) for name in names)
    if not override.is_delete() and not override.is_sweep_override() and not named:
        known = [name for name in loader.get_group_options(override.key_or_group) if not name.startswith("given-")]
        shown = f"there are {', '.join(known[:12])}" if known else "it has files of its own"
        raise Refusal(f"{override.input_line}: give a name, or leave it out; {shown}")


def _read(loader: ConfigLoader, hydra: DictConfig, path: str) -> DictConfig | None:
    """combine.Read of a file in conf/. Hydra must compose what has defaults or a package of its own, or is no file; and
    everything where own folders have files."""
    found = _files(loader).load_config(path) if re.fullmatch(r"\w+/\w+", path) and not hydra.searchpath else None
    if found is None or found.is_schema_source or found.defaults_list or found.header.get("package"):
        return None
    return cast(DictConfig, found.config)


def _leaves(loader: ConfigLoader, line: str) -> bool:
    """combine.Leaves: a file of a group that sets its own field alone, or an experiment that only chooses files of
    theirs. What adds a key, or takes one away, may do more."""
    group, _, name = line.partition("=")
    if group != "experiment" or not re.fullmatch(r"\w+", name):
        return group in ("model", "cluster")
    found = _files(loader).load_config(f"experiment/{name}")
    if found is None or found.header.get("package") != "_global_":
        return False
    chooses = all(isinstance(entry, GroupDefault) and entry.override for entry in found.defaults_list or ())
    return chooses and not {str(key) for key in found.config}.intersection(OPTIONED)


def _is_group(override: Override, loader: ConfigLoader) -> bool:
    return bool(_files(loader).group_exists(override.key_or_group))


def _files(loader: ConfigLoader) -> IConfigRepository:
    files: IConfigRepository = loader.repository  # type: ignore[attr-defined]
    return files


def _product(
    parser: OverridesParser, overrides: Sequence[Override], loader: ConfigLoader
) -> Iterator[tuple[Given, ...]]:
    """Every combination of comma lists. Of two overrides of one key the later wins."""
    axes: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_delete():
            axes[key] = [str(override.input_line)]
        elif not override.is_sweep_override():
            axes[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            _check_range(override)
            values = itertools.islice(override.sweep_string_iterator(), MOST_COMBINATIONS + 1)
            axes[key] = [f"{key}={value}" for value in values]
        else:
            raise Refusal(f"{override.input_line}: give a list of values, such as {key}=1,2; or search: ropewalk tune")
    if (count := math.prod(map(len, axes.values()))) > MOST_COMBINATIONS:
        raise Refusal(f"these make {count:,} combinations or more, and one grid takes {MOST_COMBINATIONS:,}; split it")
    # each value is parsed once, however many combinations it is in
    parsed = [parser.parse_overrides(axis) for axis in axes.values()]
    given = [[Given.of(each, group=_is_group(axis[0], loader)) for each in axis] for axis in parsed]
    yield from itertools.product(*given)


def _check_range(override: Override) -> None:
    """Refuse a range whose numbers alone are too many: to sort or to shuffle them, Hydra writes them all out."""
    value = override.value()
    if not isinstance(value, RangeSweep) or value.start is None or value.stop is None:
        return
    if not value.step or not abs((value.stop - value.start) / value.step) <= MOST_COMBINATIONS:
        raise Refusal(f"{override.input_line}: give a range of at most {MOST_COMBINATIONS:,} numbers")


def _names(overrides: Sequence[str]) -> dict[str, set[str]]:
    """The files of conf/model, conf/strategy and conf/task, and of the folders that hydra.searchpath adds.

    Raises:
        Refusal: such a folder is not there.
    """
    folders = [CONF]
    for override in overrides:
        if override.startswith("hydra.searchpath="):
            value = _asked(OverridesParser.create().parse_override, override).value()
            given = value if isinstance(value, list) else [value]
            folders += [Path(str(path).removeprefix("file://")) for path in given if "pkg://" not in str(path)]
    for folder in folders:
        if not folder.is_dir():
            raise Refusal(f"{folder}: there is no such folder of configs; give one like conf/")
        if folder != CONF:
            for file in sorted(itertools.islice(folder.glob("*/*.yaml"), MOST_FILES)):
                schema.check_yaml(file)
    return {
        group: {file.stem for folder in folders for file in (folder / group).glob("*.yaml")}
        for group in ("model", *OPTIONED)
    }


PATHS = ("store", "task.text", "model.path")
"""Keys whose values are paths, or may be."""

FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|extend_list)\(")
"""What a value of Hydra's grammar begins with that is more than a list."""


def _located(overrides: Sequence[str]) -> list[str]:
    """What is a path, or may be, in Hydra's grammar. A model that is no file of conf/model, and a strategy's FILE.yaml,
    get a name that Hydra knows; task=NAME of lm-eval's is task=lm_eval task.name=NAME.

    Raises:
        Refusal: a model or task that cannot be meant.
    """
    names, located = _names(overrides), list[str]()
    for override in overrides:
        group, _, value = override.partition("=")
        if FUNCTION.match(value) and not paths.is_here(value):
            located.append(override)
        elif group == "strategy" and ".yaml" in value:
            files = [
                config.strategy_file(Path(v).expanduser()) if v.endswith(".yaml") else v for v in paths.listed(value)
            ]
            located.append(f"strategy={','.join(files)}")
        elif group == "model" and value:
            located.append(f"model={','.join(_models(value, names['model']))}")
        elif group == "task" and any(map(_is_path, value.split(","))):
            located.append(f"task={','.join(_tasks(value, names['task']))}")
        elif group == "short" and "," in value and not value.startswith("["):
            located.append(f"short=[{value}]")  # several lengths of one grid, not several grids
        elif group in PATHS:
            located.append(f"{group}={_path_value(group, value)}")
        elif group == "task" and "," in value:
            for name in value.split(","):
                if name and name not in names["task"]:
                    config.named_task(name)
            located.append(override)
        elif group != "task" or value in names["task"] or not value:
            located.append(override)
        else:
            located += ["task=lm_eval", f"task.name={paths.quoted(value)}"]
    return located


def _is_path(entry: str) -> bool:
    """Whether a task is a file or a folder: no name of one has a slash, or ends so."""
    return (
        ("/" in entry and not entry.startswith(suites.PREFIX))
        or entry.endswith((".yaml", ".yml"))
        or entry in (".", "..")
    )


def _tasks(value: str, known: set[str]) -> list[str]:
    """The names under which Hydra knows the tasks of task=...: files and folders among them."""
    entries: list[str] = []
    for entry in paths.listed(value):
        if _is_path(entry):
            entries += [config.task_file(file) for file in files.tasks_of(Path(entry).expanduser())]
        else:
            if entry and entry not in known:
                config.named_task(entry)
            entries.append(entry)
    return list(dict.fromkeys(entries))


def _models(value: str, known: set[str]) -> list[str]:
    """The names under which Hydra knows the models of model=...: folders, files and hub ids among them."""
    entries = paths.listed(value)
    for entry in entries:
        if not entry:
            raise Refusal(f"model={value}: a model between commas is empty; give a name, a folder, a file or a hub id")
        unknown = "/" not in entry and entry not in known and not paths.is_here(entry)
        if unknown and (hint := suggestion(entry, known, cutoff=0.8)):
            listed = ", ".join(sorted(known))
            raise Refusal(f"model={value}: unknown model; {hint}there are {listed}, or give a folder")
    here = [os.path.abspath(os.path.expanduser(e)) if e not in known and paths.is_here(e) else None for e in entries]
    shown = iter(paths.apart([path.removesuffix(".gguf") for path in here if path is not None]))
    return [
        entry if entry in known else config.given_model(path or entry, next(shown) if path else entry)
        for entry, path in zip(entries, here, strict=True)
    ]


def _path_value(key: str, value: str) -> str:
    """A path, or where the key takes several a list, as Hydra reads it; what is in its grammar already stays."""
    if value[:1] in ("'", '"', "") or value == "null" or ("${" in value and not paths.is_here(value)):
        return value
    entries = [value] if key == "store" else paths.listed(value)
    return ",".join(map(paths.written, entries))


def _sentence(error: BaseException) -> str:
    """What Hydra refused, with what it would have taken in its place; without its stack and its internals."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        hint = suggestion(name, error.options)
        return f"{group}={name}: unknown {group}; {hint}there are {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: this cannot be read; give KEY=VALUE, and quote what has spaces or commas in it"
    if ambiguous := re.match(r"Ambiguous value for argument '(.+)'", str(error)):
        return f"{ambiguous[1]}: give one value here, without commas"
    if refused := re.match(r"Could not override '([^']+)'", str(error)):
        return f"{refused[1]}: no such option; `ropewalk grid --help` shows which there are"
    message = first_line(error).removeprefix("Error merging override ")
    return f"{message}: {first_line(error.__cause__)}" if error.__cause__ else message
