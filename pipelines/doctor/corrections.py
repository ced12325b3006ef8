"""Mechanical corrections of a config, and the corrected folder: with the keys of transformers v4 and v5 both."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.doctor.files import Files
from pipelines.doctor.rules import Correction, RuleFinding
from pipelines.models import find
from pipelines.records import inputs
from pipelines.records.cells import Model, Refusal
from rope.config import LENGTH_KEYS, geometry_of, length_key, rope_parameters, text_config
from rope.families import Family, language_model
from rope.geometry import ALL_LAYERS

BLOCKS = ("rope_parameters", "rope_scaling")


REWRITE = Correction(lambda text: None, keeps=True)
"""No change of its own: the corrected folder has the keys of v4 and v5, and a new tokenizer_config.json."""


def set_top(keeps: bool = False, **values: Any) -> Correction:
    """Set keys beside the rope parameters, such as max_position_embeddings, under the config's own name for it."""

    def correct(text: dict[str, Any]) -> None:
        text.update({length_key(text) if key == LENGTH_KEYS[0] else key: value for key, value in values.items()})

    return Correction(correct, keeps=keeps)


def set_rope(layers: str, keeps: bool = False, **values: Any) -> Correction:
    """Set rope parameters of one layer type."""

    def correct(text: dict[str, Any]) -> None:
        for block in _blocks(text, layers):
            block.update(values)

    promised = {key: value for key, value in values.items() if key != "type"}
    return Correction(correct, layers, promised, keeps)


def rename(layers: str, old: str, new: str) -> Correction:
    """Rename a key of the rope parameters; where both are there, the right one stays."""

    def correct(text: dict[str, Any]) -> None:
        for block in _blocks(text, layers):
            if old in block:
                block.setdefault(new, block.pop(old))
                block.pop(old, None)

    return Correction(correct)


def set_theta(theta: float) -> Correction:
    """Set the base of the layers that see the whole context, wherever it is written."""

    def correct(text: dict[str, Any]) -> None:
        text["rope_theta"] = theta
        for name in BLOCKS:
            block = text.get(name)
            nested = block.get("full_attention") if isinstance(block, dict) else None
            for place in (block, nested):
                if isinstance(place, dict) and "rope_theta" in place:
                    place["rope_theta"] = theta

    return Correction(correct)


def replace_scaling(block: Mapping[str, Any]) -> Correction:
    """Put another scaling in place of the declared one, with its theta."""

    def correct(text: dict[str, Any]) -> None:
        text.pop("rope_parameters", None)
        text["rope_scaling"], text["rope_theta"] = dict(block), block["rope_theta"]

    return Correction(correct, promised=block)


def remove_scaling(layer_type: str) -> Correction:
    """Remove the scaling of one layer type."""

    def correct(text: dict[str, Any]) -> None:
        for name in BLOCKS:
            block = text.get(name)
            if isinstance(block, dict) and isinstance(block.get(layer_type), dict):
                theta = block[layer_type].get("rope_theta")
                block[layer_type] = {"rope_type": "default"} | ({} if theta is None else {"rope_theta": theta})

    return Correction(correct, layer_type, {"rope_type": "default"})


def _blocks(text: dict[str, Any], layers: str) -> Iterator[dict[str, Any]]:
    """The mappings of rope parameters of one layer type: those under its name, or a single one for all."""
    for name in BLOCKS:
        block = text.get(name)
        if isinstance(block, dict):
            nested = {key: value for key, value in block.items() if isinstance(value, dict)}
            yield from (value for key, value in nested.items() if key == layers)
            if not nested:
                yield block


def corrected(config: Mapping[str, Any], findings: Iterable[RuleFinding]) -> dict[str, Any]:
    """A config with all mechanical corrections, in the keys of transformers v4 and v5.

    Raises:
        ValueError: it still describes no known rotary embedding.
    """
    result = copy.deepcopy(dict(config))
    text: Any = text_config(result)
    for finding in findings:
        if finding.correction is not None:
            finding.correction.change(text)
    if text is not result:
        for key in ("rope_parameters", "rope_theta", "rope_scaling"):
            result.pop(key, None)  # no program reads them there
    _write_both(result, text)
    return result


def _write_both(config: dict[str, Any], text: dict[str, Any]) -> None:
    """Write rope parameters with the keys of v4 and v5, in place. Parameters by layer type have v4 keys where a flat
    scaling and a theta beside it, as the class reads them, say the same: Gemma 3's and Olmo 3's do."""
    parameters = {key: value and {**value} for key, value in rope_parameters(config).items()}
    flat = parameters.get(ALL_LAYERS)
    geometries = geometry_of(config)
    family = language_model(config)[1]
    text["rope_parameters"] = flat if flat is not None else parameters
    for key in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
        text.pop(key, None)
    if flat is not None:
        text.update(_flat_keys(flat, text, family))
    elif family is not None:
        old = _nested_keys(parameters, family)
        try:
            same = geometry_of(_with(config, old)) == geometries
        except ValueError:
            same = False
        text.update(old if same else {})


def _flat_keys(block: Mapping[str, Any], text: Mapping[str, Any], family: Family | None) -> dict[str, Any]:
    """The keys of v4 for one block of all layers."""
    old: dict[str, Any] = {"rope_theta": block["rope_theta"]}
    if family is not None:
        old |= {key: block["rope_theta"] for key in family.theta_keys if key in text}
    if "partial_rotary_factor" in block and not text.get("rotary_dim"):
        share = family.partial_keys[0] if family is not None and family.partial_keys else "partial_rotary_factor"
        old[share] = block["partial_rotary_factor"]
    if block["rope_type"] != "default":
        # transformers 5 lets rope_scaling win over rope_parameters, so it must be complete
        old["rope_scaling"] = {**block, "type": block["rope_type"]}
    return old


def _nested_keys(parameters: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The keys of v4 for blocks by layer type, as far as there are any."""
    old: dict[str, Any] = {}
    for layers, block in parameters.items():
        if block is not None:
            old |= {key: block["rope_theta"] for key in (family.theta_keys or {}).get(layers, ())[:1]}
            if layers in family.scaled and block["rope_type"] != "default":
                old["rope_scaling"] = {**block, "type": block["rope_type"]}
    return old


def _with(config: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """The config with keys of v4 alone."""
    result = copy.deepcopy(dict(config))
    text: Any = text_config(result)
    text.pop("rope_parameters", None)
    text.update(old)
    return result


def write(files: Files, model: Model, findings: Iterable[RuleFinding], out: Path) -> list[Path]:
    """Write the model's folder with a corrected config.json, tokenizer_config.json with the config's limit, and links
    to all other files. Returns what was written.

    Raises:
        Refusal: the model is not a local folder, or `out` holds a model already.
        ValueError: the corrected config cannot be read, which verify.broken says first.
    """
    folder = find.locate(model).folder
    if folder is None:
        raise Refusal(f"--fix: model {model.name} is not a local folder; download it, and give model=FOLDER")
    if (out / "config.json").exists():
        raise Refusal(f"--fix: {out} holds a config.json already; give a new folder")
    config = corrected(files.config, findings)
    bodies: dict[str, Mapping[str, Any]] = {"config.json": config}
    if files.tokenizer:
        bodies["tokenizer_config.json"] = tokenizer(files, config)
    inputs.made(out)
    for name, body in bodies.items():
        (out / name).write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        if file.is_file() and file.name not in bodies:
            (out / file.name).symlink_to(file.resolve())
    return [out / name for name in bodies]


def tokenizer(files: Files, config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's settings, with a limit no lower than the config's; without settings none."""
    limit = text_config(config).get(length_key(config))
    needed = max(limit or 0, files.target or 0)
    present = files.tokenizer.get("model_max_length")
    raised = {"model_max_length": needed} if isinstance(present, (int, float)) and present < needed else {}
    return {**files.tokenizer, **raised}
