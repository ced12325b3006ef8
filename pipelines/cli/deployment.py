"""A strategy over a model in the form an engine takes: the files it needs and the command line that serves it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.choices.config import Workbench
from pipelines.choices.sweep import PlanChoice, geometry_for, planned_of
from pipelines.models import copies, find, gguf_files, header, load, weights
from pipelines.records import inputs, provenance
from pipelines.records.cells import Cell, Refusal, option_text
from pipelines.records.public import public, public_script
from pipelines.records.results import Store
from pipelines.report import terminal
from rope import strategies
from rope.dialects import Deployment, Unsupported, deploy

RECORD = "export.json"
"""What was exported; it also marks a folder that may be overwritten."""

RECENT = 8
"""Cells listed where the requested one is not known."""

PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("vllm", "serve"),
    "sglang": ("python", "-m", "sglang.launch_server", "--model-path"),
    "llama.cpp": ("llama-server", "-m"),
    "exllama": ("python", "test_inference.py", "-m"),
}
"""What comes before the model on an engine's command line; transformers has none."""


PINNED = frozenset({"vllm", "sglang"})
"""Engines that take a hub id with --revision: what was measured is a commit, and the id alone is the latest."""


@dataclass(frozen=True)
class ExportRequest:
    """What to export: a finished cell by its id or name, or a choice that need not be measured.

    all_engines: engines that cannot express the strategy are then no failure. out: folder; None: in the store.
    """

    cell: str
    choice: Workbench | None
    engines: tuple[str, ...]
    all_engines: bool = False
    out: str | None = None


def main(request: ExportRequest) -> int:
    """Write what each engine needs and print how to serve it. Returns the exit code.

    Raises:
        Refusal: the cell is not known, or the folder is in use.
    """
    choice = request.choice
    store = Store.at(choice.store if choice else None)
    planned, slug = (planned_of(choice), "") if choice else _measured(request.cell, store)
    slug = slug or f"{planned.model.name}_{planned.label}_{planned.length}".replace(" ", "_").replace("/", "_")[:80]
    root = Path(request.out).expanduser() if request.out else store.root / "exports" / slug
    root = root.resolve()
    console = terminal.plain_console()
    console.print(f"{planned.model.name}: {planned.label} @{planned.length}", style="bold")
    unsupported = 0
    for engine in request.engines:
        try:
            deployment = _deployment(planned, engine)
        except Unsupported as reason:
            console.print(f"\n{engine}: not possible. {reason}")
            unsupported += 1
            continue
        lines = write(planned, deployment, root / engine if len(request.engines) > 1 else root)
        console.print(f"\n{engine}: {deployment.name}")
        for line in lines:
            console.print(f"  {line}")
    return 2 if unsupported == len(request.engines) else int(bool(unsupported) and not request.all_engines)


def _measured(name: str, store: Store) -> tuple[PlanChoice, str]:
    """What a finished cell ran, and its id; refused where its strategy gives other frequencies by now."""
    cell = _cell(name, store)
    model, _, geometries = geometry_for(cell.model)
    if cell.model.fingerprint not in (model.fingerprint, find.earlier_fingerprint(cell.model)):
        raise Refusal(
            f"cell {cell.id} was measured with other files of {model.name} than lie there now; measure it again, or "
            f"give overrides instead of the cell: model=... strategy={cell.strategy} length={cell.length}"
        )
    plans = strategies.plans(cell.strategy, geometries, cell.length, **dict(cell.options))
    then, now = ([np.array(plan.inv_freq) for _, plan in part] for part in (cell.plans, plans))
    if len(then) != len(now) or not all(np.allclose(a, b, rtol=1e-9, atol=0) for a, b in zip(then, now, strict=True)):
        raise Refusal(
            f"cell {cell.id} was measured with an older {cell.strategy}, whose frequencies differ; run it again"
        )
    return PlanChoice(model, geometries, cell.strategy, cell.options, cell.length, cell.plans), cell.id


def _cell(name: str, store: Store) -> Cell:
    """The finished cell of an id, the beginning of one, or a label."""
    finished = [Cell.of(spec) for spec, _ in store.newest(10**9)]
    matches = [c for c in finished if c.id.startswith(name)] or [c for c in finished if c.label == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise Refusal(f"{name!r} matches {len(matches)} cells; give the id of one:\n" + "\n".join(_listed(matches)))
    if not finished:
        raise Refusal(
            f"there is no finished cell in {store.root}; run a grid first, or give overrides instead of a cell"
        )
    recent = "\n".join(_listed(finished[:RECENT]))
    raise Refusal(f"there is no finished cell {name!r} in {store.root}; the last ones are\n{recent}")


def _listed(cells: Sequence[Cell]) -> list[str]:
    """A line a cell: its id, its label, and the settings in which cells of one label differ."""
    settings = []
    for cell in cells:
        own = {name: getattr(cell, name) for name in ("limit", "seed", "dtype", "device", "data")}
        own |= {"model": cell.model.fingerprint, **{f"task.{name}": value for name, value in cell.task.options}}
        own |= {f"version.{name}": value for name, value in cell.versions}
        settings.append({name: "null" if value is None else option_text(value) for name, value in own.items()})
    names = {name for own in settings for name in own}
    lines = []
    for cell, own in zip(cells, settings, strict=True):
        rivals = [other for rival, other in zip(cells, settings, strict=True) if rival.label == cell.label]
        apart = sorted(name for name in names if len({other.get(name) for other in rivals}) > 1)
        lines.append("  ".join(["", cell.id, cell.label, *(f"{name}={own.get(name, '-')[:24]}" for name in apart)]))
    return lines


def _deployment(planned: PlanChoice, engine: str) -> Deployment:
    _, config, _ = geometry_for(planned.model)
    options, source = dict(planned.options), find.locate(planned.model)
    try:
        deployment = deploy(engine, config, planned.strategy, options, planned.geometries, planned.length)
    except Unsupported:
        raise
    except ValueError as error:
        raise Refusal(f"{engine}: {error}") from error
    if engine == "llama.cpp" and deployment.needs_file and source.gguf is None:
        raise Unsupported(
            f"llama.cpp takes {planned.strategy} as a list of divisors within a GGUF file, and {planned.model.name} is "
            "none: give model=FILE.gguf; the closest supported alternatives by flags are yarn, ntk and linear"
        )
    return deployment


def write(planned: PlanChoice, deployment: Deployment, folder: Path) -> list[str]:
    """Write one deployment's files into a folder; returns the lines that describe it.

    Raises:
        Refusal: the folder holds something else.
    """
    source = find.locate(planned.model)
    _check_free(folder, source)
    inputs.made(folder)
    lines, command = (_gguf if deployment.engine == "llama.cpp" else _config)(planned, deployment, source, folder)
    record = {
        "model": planned.model.name,
        "fingerprint": planned.model.fingerprint,
        "strategy": planned.strategy,
        "options": dict(planned.options),
        "length": planned.length,
        "engine": deployment.engine,
        "named": deployment.name,
        "command": command,
        "notes": list(deployment.notes),
        "ropewalk": provenance.code(),
    }
    path = folder / RECORD
    path.write_text(public(json.dumps(record, indent=2)) + "\n", encoding="utf-8")
    if deployment.engine in PROGRAMS:
        script = folder / "serve.sh"
        script.write_text(f"#!/bin/sh\nexec {public_script(command)}\n", encoding="utf-8")
        script.chmod(script.stat().st_mode | (script.stat().st_mode & 0o444) >> 2)  # run by whoever may read it
    return [*lines, command, *(f"note: {note}" for note in deployment.notes)]


def _gguf(planned: PlanChoice, deployment: Deployment, source: find.ModelFiles, folder: Path) -> tuple[list[str], str]:
    """A copy of the GGUF file with the strategy in it, where there is one to copy; its lines, and the command line."""
    start = PROGRAMS[deployment.engine]
    if source.gguf is None:
        return [], deployment.command(*start, "MODEL.gguf")
    file = folder / f"{source.gguf.stem}-{planned.strategy}-{planned.length}.gguf"
    copies.copy_gguf(header.parts(source.gguf), file, deployment.keys, deployment.rope_freqs)
    flags = "needs no flags" if deployment.with_file[:1] == ("-c",) else "needs these flags"
    lines = [f"{file} ({file.stat().st_size / 1e6:,.0f} MB) {flags}:"]
    gguf_header = gguf_files.read_header(source.gguf)
    said = (f"{gguf_header.architecture}.{copies.SCALING}", f"{gguf_header.architecture}.{copies.OLD_FACTOR}")
    keys = [key for key in gguf_header.keys if key.startswith(said)]
    if own := [*keys, *copies.LISTS.intersection(gguf_header.tensors)]:
        lines = [f"in the place of {', '.join(own)} of {source.gguf.name}, which the strategy acts on top of", *lines]
    elif not deployment.needs_file:
        lines = [f"with the file as it is: {deployment.command(*start, str(source.gguf))}", *lines]
    return lines, deployment.command(*start, str(file), written=True)


def _config(
    planned: PlanChoice, deployment: Deployment, source: find.ModelFiles, folder: Path
) -> tuple[list[str], str]:
    """For engines that read config.json: the model as it is where arguments suffice, else a folder with another."""
    start = PROGRAMS.get(deployment.engine)
    original = str(source.folder.resolve() if source.folder else source.hub or "")
    revision = planned.model.revision if source.hub is not None else None
    served = [original, *(["--revision", revision] if revision and deployment.engine in PINNED else [])]
    if start and original and not deployment.needs_file:
        return [], deployment.command(*start, *served)
    if source.hub is not None:
        _write_json(folder / "config.json", deployment.config)
        line = f"{folder / 'config.json'}: in the place of the model's own"
        loading = _loading(original, str(folder), revision)
    else:
        _whole(planned, deployment.engine, source, folder)
        line, loading = f"{folder}: the whole model under another config.json", _loading(str(folder))
    served = served if original else [str(folder)]
    return [line], deployment.command(*start, *served, written=True) if start else loading


def _whole(planned: PlanChoice, engine: str, source: find.ModelFiles, folder: Path) -> None:
    """A folder that holds the whole model, and the config.json in which the engine finds the strategy."""
    if source.shape is None:
        weights.check(planned.model, needed=False)
        origin = Path(load.materialise(planned.model))
    else:
        origin = folder
        load.model(planned.model, "float32", "cpu").save_pretrained(folder)
        load.tokenizer(planned.model).save_pretrained(folder)
    # again, from the whole config.json: the header of a GGUF file, or a shape, has fewer keys
    full = json.loads((origin / "config.json").read_text(encoding="utf-8"))
    options = dict(planned.options)
    config = deploy(engine, full, planned.strategy, options, planned.geometries, planned.length).config
    if origin != folder:
        copies.copy_folder(origin, folder)
    _write_json(folder / "config.json", config)


def _loading(model: str, config: str | None = None, revision: str | None = None) -> str:
    given = f", revision={_literal(revision)}" if revision else ""
    given += f", config=AutoConfig.from_pretrained({_literal(config)})" if config else ""
    return f"AutoModelForCausalLM.from_pretrained({_literal(model)}{given})"


def _literal(text: str) -> str:
    """A text in Python's quotes, whatever is in it."""
    return json.dumps(text, ensure_ascii=False)


def _check_free(folder: Path, source: find.ModelFiles) -> None:
    """Refuse to write over anything but an earlier export."""
    if source.folder is not None and folder.resolve() == source.folder.resolve():
        raise Refusal(f"out={folder} is the model itself, which stays as it is; give another folder")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file()):
        raise Refusal(f"out={folder} holds something else than an export; give a new or an empty folder")


def _write_json(path: Path, body: Any) -> None:
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
