"""Mechanical corrections of a config, and the corrected folder: with the keys of transformers v4 and v5 both."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.doctor.families import FLAT_MEANS_FULL
from pipelines.doctor.files import Files
from pipelines.doctor.rules import Correction, RuleFinding
from pipelines.models import find
from pipelines.records.cells import Model, Refusal
from rope.config import LENGTH_KEYS, rope_parameters, text_config
from rope.geometry import ALL_LAYERS

BLOCKS = ("rope_parameters", "rope_scaling")


def rewrite(text: dict[str, Any]) -> None:
    """No change of its own: the corrected folder has the keys of v4 and v5, and a new tokenizer_config.json."""


def set_top(**values: Any) -> Correction:
    """Set keys beside the rope parameters, such as max_position_embeddings."""
    return lambda text: text.update(values)


def set_rope(**values: Any) -> Correction:
    """Set keys of every mapping of rope parameters."""

    def correct(text: dict[str, Any]) -> None:
        for block in _blocks(text):
            block.update(values)

    return correct


def rename(old: str, new: str) -> Correction:
    """Rename a key of the rope parameters; where both are there, the right one stays."""

    def correct(text: dict[str, Any]) -> None:
        for block in _blocks(text):
            if old in block:
                block.setdefault(new, block.pop(old))

    return correct


def set_theta(theta: float) -> Correction:
    """Set the base wherever it is written."""

    def correct(text: dict[str, Any]) -> None:
        text["rope_theta"] = theta
        for block in _blocks(text):
            if "rope_theta" in block:
                block["rope_theta"] = theta

    return correct


def replace_scaling(block: Mapping[str, Any]) -> Correction:
    """Put another scaling in place of the declared one, with its theta."""

    def correct(text: dict[str, Any]) -> None:
        text.pop("rope_parameters", None)
        text["rope_scaling"], text["rope_theta"] = dict(block), block["rope_theta"]

    return correct


def remove_scaling(layer_type: str) -> Correction:
    """Remove the scaling of one layer type."""

    def correct(text: dict[str, Any]) -> None:
        for name in BLOCKS:
            block = text.get(name)
            if isinstance(block, dict) and isinstance(block.get(layer_type), dict):
                theta = block[layer_type].get("rope_theta")
                block[layer_type] = {"rope_type": "default"} | ({} if theta is None else {"rope_theta": theta})

    return correct


def _blocks(text: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every mapping of rope parameters in a config: a single one, or one per layer type."""
    for name in BLOCKS:
        block = text.get(name)
        if isinstance(block, dict):
            nested = [value for value in block.values() if isinstance(value, dict)]
            yield from nested or [block]


def corrected(config: Mapping[str, Any], findings: Iterable[RuleFinding]) -> dict[str, Any]:
    """A config with all mechanical corrections, in the keys of transformers v4 and v5.

    Raises:
        ValueError: it still describes no known rotary embedding.
    """
    result = copy.deepcopy(dict(config))
    text: Any = text_config(result)
    for finding in findings:
        if finding.correction is not None:
            finding.correction(text)
    if text is not result:
        for key in ("rope_parameters", "rope_theta", "rope_scaling"):
            result.pop(key, None)  # no program reads them there
    _write_both(text)
    return result


def _write_both(text: dict[str, Any]) -> None:
    """Write rope parameters with the keys of v4 and v5, in place. Of those by layer type v4 knows only Gemma 3's and
    Olmo 3's, as flat keys: theta and scaling of the full-attention layers, rope_local_base_freq of the others."""
    parameters = {key: value and {**value} for key, value in rope_parameters(text).items()}
    flat, full = parameters.get(ALL_LAYERS), parameters.get("full_attention")
    text["rope_parameters"] = flat if flat is not None else parameters
    for key in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
        text.pop(key, None)
    block = flat or (full if text.get("model_type") in FLAT_MEANS_FULL else None)
    if block is None:
        return
    text["rope_theta"] = block["rope_theta"]
    if block["rope_type"] != "default":
        # transformers 5 lets rope_scaling win over rope_parameters, so it must be complete
        text["rope_scaling"] = {**block, "type": block["rope_type"]}
    if flat is None and (local := parameters.get("sliding_attention")):
        text["rope_local_base_freq"] = local["rope_theta"]


def write(files: Files, model: Model, findings: Iterable[RuleFinding], out: Path) -> list[Path]:
    """Write the model's folder with a corrected config.json, tokenizer_config.json with the config's limit, and links
    to all other files. Returns what was written.

    Raises:
        Refusal: the model is not a local folder, `out` holds a model already, or the corrected config cannot be read.
    """
    folder = find.locate(model).folder
    if folder is None:
        raise Refusal(f"--fix: model {model.name} is not a local folder; download it, and give model=FOLDER")
    if (out / "config.json").exists():
        raise Refusal(f"--fix: {out} holds a config.json already; give a new folder")
    try:
        config = corrected(files.config, findings)
    except ValueError as error:
        raise Refusal(f"--fix: mechanical corrections were not enough: {error}; correct that by hand first") from error
    bodies: dict[str, Mapping[str, Any]] = {"config.json": config}
    if files.tokenizer:
        bodies["tokenizer_config.json"] = _tokenizer(files, config)
    out.mkdir(parents=True, exist_ok=True)
    for name, body in bodies.items():
        (out / name).write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        if file.is_file() and file.name not in bodies:
            (out / file.name).symlink_to(file.resolve())
    return [out / name for name in bodies]


def _tokenizer(files: Files, config: Mapping[str, Any]) -> dict[str, Any]:
    text = text_config(config)
    limit = next((text[key] for key in LENGTH_KEYS if text.get(key)), None)
    needed = max(limit or 0, files.target or 0)
    present = files.tokenizer.get("model_max_length")
    raised = {"model_max_length": needed} if isinstance(present, (int, float)) and present < needed else {}
    return {**files.tokenizer, **raised}
