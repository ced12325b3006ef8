"""`ropewalk export`: what was measured, in the words of the engine that is to serve it: files and a command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipelines.choices.config import Workbench
from pipelines.choices.sweep import Planned, geometry_for, planned_of
from pipelines.models import copies, find, header, load
from pipelines.records import provenance
from pipelines.records.cells import Cell, Refusal
from pipelines.records.results import Store
from rope import strategies
from rope.dialects import ENGINES, Deployment, Unsupported, deploy

HELP = f"""ropewalk export CELL --to ENGINE[,ENGINE...] [out=FOLDER]

A strategy over a model in an engine's words: the files it needs and the command line that serves it.
CELL is a finished cell's id (its first characters will do) or its name, or overrides as for ropewalk theory:
  ropewalk export 3f9c02ab --to vllm
  ropewalk export 'smollm2: yarn @16384 perplexity' --to transformers out=~/models/SmolLM2-16k
  ropewalk export model=smollm2 strategy=yarn length=16384 --to llama.cpp,sglang
  ropewalk export model=smollm2 strategy=resonance length=32768 --to all

Engines: {", ".join(ENGINES)}; all.
  transformers, transformers-v4   a folder that from_pretrained loads as it is (v4's is read by v5 too)
  vllm, sglang                    overrides of the model's own config.json; a folder where the model has none
  llama.cpp                       a GGUF file with the keys, or the tensor, that it takes; and flags for the original
  exllama                         flags, and a folder where they do not say it
Weights are linked, not copied, where the disk allows. Without out=, everything goes to exports/ in the store.
Where an engine does not support a strategy, its closest supported alternative is named (exit code 2).
"""

RECORD = "export.json"
"""What an export was of; it also marks a folder that may be written again."""

RECENT = 8
"""Cells that are listed where the one asked for is not known."""

PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("vllm", "serve"),
    "sglang": ("python", "-m", "sglang.launch_server", "--model-path"),
    "llama.cpp": ("llama-server", "-m"),
    "exllama": ("python", "test_inference.py", "-m"),
}
"""What comes before the model on an engine's command line; transformers has none."""


@dataclass(frozen=True)
class Asked:
    """A command line: either a cell or overrides."""

    cell: str
    overrides: tuple[str, ...]
    engines: tuple[str, ...]
    all_engines: bool
    out: str | None


def parse(arguments: Sequence[str]) -> Asked:
    """Read the verb's command line.

    Raises:
        Refusal: no engine, an unknown one, neither cell nor overrides, or both.
    """
    rest, engines, outs = [], [], []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag == "--to":
            engines += (value if equals else next(words, "")).split(",")
        elif flag == "out" and equals:
            outs.append(value)
        elif word.startswith("-"):
            raise Refusal(f"{word}: ropewalk export takes --to ENGINE and out=FOLDER (ropewalk export --help)")
        else:
            rest.append(word)
    engines = [engine.strip().lower() for engine in engines if engine.strip()]
    for engine in engines:
        if engine not in (*ENGINES, "all"):
            raise Refusal(f"--to {engine}: there is no such engine; there are {', '.join(ENGINES)} and all")
    if not engines:
        raise Refusal(f"give --to ENGINE: one or more of {', '.join(ENGINES)}, or all")
    # `smollm2: yarn factor=4 @16384 perplexity` holds an equals sign too
    overrides = [word for word in rest if "=" in word.split(" ")[0]]
    if bool(overrides) == (len(rest) > len(overrides)) or len(rest) - len(overrides) > 1 or len(outs) > 1:
        raise Refusal(
            f"given: {shlex.join(arguments)}; give one CELL (an id, or a name in quotes) or overrides such as "
            "model=smollm2 strategy=yarn length=16384, not both, and at most one out=FOLDER"
        )
    chosen = tuple(ENGINES) if "all" in engines else tuple(dict.fromkeys(engines))
    return Asked("" if overrides else rest[0], tuple(overrides), chosen, "all" in engines, outs[0] if outs else None)


def main(asked: Asked, choices: Sequence[Workbench]) -> int:
    """Export what the command line asks for.

    Raises:
        Refusal: the cell is not known, several choices, or the folder is in use.
    """
    if len(choices) > 1:
        raise Refusal(
            f"the overrides make {len(choices)} combinations, and one is exported at a time; leave one of each"
        )
    store = Store.at(choices[0].store if choices else None)
    planned, slug = (planned_of(choices[0]), "") if choices else _measured(asked.cell, store)
    slug = slug or f"{planned.model.name}_{planned.label}_{planned.length}".replace(" ", "_").replace("/", "_")[:80]
    root = Path(asked.out).expanduser() if asked.out else store.root / "exports" / slug
    root = root.resolve()
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{planned.model.name}: {planned.label} @{planned.length}", style="bold", markup=False)
    refused = 0
    for engine in asked.engines:
        try:
            found, folder = _said(planned, engine), root / engine if len(asked.engines) > 1 else root
        except Unsupported as sentence:
            console.print(f"\n{engine}: not possible. {sentence}", markup=False)
            refused += 1
            continue
        lines = write(planned, found, folder)
        console.print(f"\n{engine}: {found.name}", markup=False)
        for line in lines:
            console.print(f"  {line}", markup=False)
    return 2 if refused == len(asked.engines) else int(bool(refused) and not asked.all_engines)


def _measured(name: str, store: Store) -> tuple[Planned, str]:
    """What a finished cell ran, and its id; refused where its strategy gives other frequencies by now."""
    cell = _cell(name, store)
    model, _, geometries = geometry_for(cell.model)
    if model.fingerprint != cell.model.fingerprint:
        raise Refusal(
            f"cell {cell.id} was measured with other files of {model.name} than lie there now; measure it again, or "
            f"give overrides instead of the cell: model=... strategy={cell.strategy} length={cell.length}"
        )
    plans = strategies.plans(cell.strategy, geometries, cell.length, **dict(cell.options))
    then, now = ([np.array(p.inv_freq) for _, p in found] for found in (cell.plans, plans))
    if len(then) != len(now) or not all(np.allclose(a, b, rtol=1e-9, atol=0) for a, b in zip(then, now, strict=True)):
        raise Refusal(
            f"cell {cell.id} was measured with an older {cell.strategy}, whose frequencies differ; run it again"
        )
    return Planned(model, geometries, cell.strategy, cell.options, cell.length, cell.plans), cell.id


def _cell(name: str, store: Store) -> Cell:
    """The finished cell of an id, the beginning of one, or a label."""
    finished = [Cell.of(spec) for spec, _ in store.newest(10**9)]
    found = [cell for cell in finished if cell.id.startswith(name)] or [cell for cell in finished if cell.label == name]
    if len(found) == 1:
        return found[0]
    listed = "\n".join(f"  {cell.id}  {cell.label}" for cell in (found or finished)[:RECENT])
    if found:
        raise Refusal(f"{name!r} are {len(found)} cells; give one of\n{listed}")
    if not finished:
        raise Refusal(
            f"there is no finished cell in {store.root}; run a grid first, or give overrides instead of a cell"
        )
    raise Refusal(f"there is no finished cell {name!r} in {store.root}; the last ones are\n{listed}")


def _said(planned: Planned, engine: str) -> Deployment:
    _, config, _ = geometry_for(planned.model)
    options, source = dict(planned.options), find.locate(planned.model)
    try:
        found = deploy(engine, config, planned.strategy, options, planned.geometries, planned.length)
    except Unsupported:
        raise
    except ValueError as error:
        raise Refusal(f"{engine}: {error}") from error
    if engine == "llama.cpp" and found.needs_file and source.gguf is None:
        raise Unsupported(
            f"llama.cpp takes {planned.strategy} as a list of divisors within a GGUF file, and {planned.model.name} is "
            "none: give model=FILE.gguf; the closest supported alternatives by flags are yarn, ntk and linear"
        )
    return found


def write(planned: Planned, found: Deployment, folder: Path) -> list[str]:
    """Write one deployment's files into a folder; what a terminal is told of it, line by line.

    Raises:
        Refusal: the folder holds something else.
    """
    source = find.locate(planned.model)
    _check_free(folder, source)
    folder.mkdir(parents=True, exist_ok=True)
    lines, command = (_gguf if found.engine == "llama.cpp" else _config)(planned, found, source, folder)
    _write_json(folder / RECORD, _record(planned, found, command))
    if found.engine in PROGRAMS:
        script = folder / "serve.sh"
        script.write_text(f"#!/bin/sh\nexec {command}\n", encoding="utf-8")
        script.chmod(0o755)
    return [*lines, command, *(f"note: {note}" for note in found.notes)]


def _gguf(planned: Planned, found: Deployment, source: find.Source, folder: Path) -> tuple[list[str], str]:
    """A GGUF file that says it by itself, where there is one to copy; what is told of it, and the command line."""
    start = PROGRAMS[found.engine]
    if source.gguf is None:
        return [], found.command(*start, "MODEL.gguf")
    file = folder / f"{source.gguf.stem}-{planned.strategy}-{planned.length}.gguf"
    copies.copy_gguf(source.gguf, file, found.keys, found.rope_freqs)
    lines = [f"{file} ({file.stat().st_size / 1e6:,.0f} MB) says it by itself:"]
    told = header.read(source.gguf)
    keys = [key for key in told.keys if key.startswith(f"{told.architecture}.{copies.SCALING}")]
    if own := [*keys, *copies.LISTS.intersection(told.tensors)]:
        lines = [f"in the place of {', '.join(own)} of {source.gguf.name}, which the strategy acts on top of", *lines]
    elif not found.needs_file:
        lines = [f"with the file as it is: {found.command(*start, str(source.gguf))}", *lines]
    return lines, found.command(*start, str(file), written=True)


def _config(planned: Planned, found: Deployment, source: find.Source, folder: Path) -> tuple[list[str], str]:
    """Of engines that read config.json: the model as it is where arguments say it all, else a folder with another."""
    start = PROGRAMS.get(found.engine)
    original = str(source.folder.resolve() if source.folder else source.hub or "")
    if start and original and not found.needs_file:
        return [], found.command(*start, original)
    if source.hub is not None:
        _write_json(folder / "config.json", found.config)
        line = f"{folder / 'config.json'}: in the place of the model's own"
        loading = _loading(original, str(folder))
    else:
        _whole(planned, found.engine, source, folder)
        line, loading = f"{folder}: the whole model under another config.json", _loading(str(folder))
    return [line], found.command(*start, original or str(folder), written=True) if start else loading


def _whole(planned: Planned, engine: str, source: find.Source, folder: Path) -> None:
    """A folder that holds the whole model, and the config.json in which the engine finds the strategy."""
    if source.shape is None:
        origin = Path(load.materialise(planned.model))
    else:
        origin = folder
        load.model(planned.model, "float32", "cpu").save_pretrained(folder)
        load.tokenizer(planned.model).save_pretrained(folder)
    # said anew: the header of a GGUF file, or a shape, is less than a config.json
    full = json.loads((origin / "config.json").read_text(encoding="utf-8"))
    config = deploy(
        engine, full, planned.strategy, dict(planned.options), planned.geometries, planned.length
    ).config  # fmt: skip
    if origin != folder:
        copies.copy_folder(origin, folder)
    _write_json(folder / "config.json", config)


def _loading(model: str, config: str | None = None) -> str:
    given = f', config=AutoConfig.from_pretrained("{config}")' if config else ""
    return f'AutoModelForCausalLM.from_pretrained("{model}"{given})'


def _check_free(folder: Path, source: find.Source) -> None:
    """Refuse to write over anything but an earlier export."""
    if source.folder is not None and folder.resolve() == source.folder.resolve():
        raise Refusal(f"out={folder} is the model itself, which stays as it is; give another folder")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file()):
        raise Refusal(f"out={folder} holds something else than an export; give a new or an empty folder")


def _record(planned: Planned, found: Deployment, command: str) -> dict[str, Any]:
    return {
        "model": planned.model.name,
        "fingerprint": planned.model.fingerprint,
        "strategy": planned.strategy,
        "options": dict(planned.options),
        "length": planned.length,
        "engine": found.engine,
        "named": found.name,
        "command": command,
        "notes": list(found.notes),
        "ropewalk": provenance.code(),
    }


def _write_json(path: Path, body: Any) -> None:
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
