"""A corrected folder: every mechanical correction made, the keys of transformers v4 and v5 both written."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.doctor.files import Files
from pipelines.doctor.keys import FLAT_MEANS_FULL
from pipelines.doctor.rules import Finding
from pipelines.models import find
from pipelines.records.cells import Model, Refusal
from rope.config import LENGTH_KEYS, rope_parameters, text_config
from rope.geometry import ALL_LAYERS

REWRITTEN = ("config.json", "tokenizer_config.json")


def write(files: Files, model: Model, findings: Iterable[Finding], out: Path) -> list[Path]:
    """The model's folder anew: config.json corrected, tokenizer_config.json with the config's limit, all other files
    linked to. Returns what was written.

    Raises:
        Refusal: the model is no folder here, `out` holds a model already, or the corrected config cannot be read.
    """
    folder = find.locate(model).folder
    if folder is None:
        raise Refusal(f"--fix: model {model.name} is no folder here; download it, and give model=FOLDER")
    if (out / "config.json").exists():
        raise Refusal(f"--fix: {out} holds a config.json already; give a new folder")
    try:
        config = corrected(files.config, findings)
    except ValueError as error:
        raise Refusal(f"--fix: what is mechanical was not enough: {error}; correct that by hand first") from error
    out.mkdir(parents=True, exist_ok=True)
    made = [_json(out / "config.json", config)]
    if files.tokenizer:
        made.append(_json(out / "tokenizer_config.json", _tokenizer(files, config)))
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name not in {path.name for path in made}:
            (out / file.name).symlink_to(file.resolve())
    return made


def corrected(config: Mapping[str, Any], findings: Iterable[Finding]) -> dict[str, Any]:
    """A config with the mechanical corrections made, in the words of transformers v4 and v5.

    Raises:
        ValueError: it still describes no rotary embedding that is known.
    """
    result = copy.deepcopy(dict(config))
    text: Any = text_config(result)
    for found in findings:
        if found.mend is not None:
            found.mend(text)
    if text is not result:
        for key in ("rope_parameters", "rope_theta", "rope_scaling"):
            result.pop(key, None)  # nobody reads them there
    both(text)
    return result


def both(text: dict[str, Any]) -> None:
    """Write rope parameters in both vocabularies, in place. Of those by layer type v4 knows Gemma 3's and Olmo 3's
    alone, which it has flat: theta and scaling of the full-attention layers, rope_local_base_freq of the others."""
    parameters = {key: value and {**value} for key, value in rope_parameters(text).items()}
    flat, full = parameters.get(ALL_LAYERS), parameters.get("full_attention")
    text["rope_parameters"] = flat if flat is not None else parameters
    for key in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
        text.pop(key, None)
    one = flat or (full if text.get("model_type") in FLAT_MEANS_FULL else None)
    if one is None:
        return
    text["rope_theta"] = one["rope_theta"]
    if one["rope_type"] != "default":
        # transformers 5 lets rope_scaling win over rope_parameters, so it must say all of it
        text["rope_scaling"] = {**one, "type": one["rope_type"]}
    if flat is None and (local := parameters.get("sliding_attention")):
        text["rope_local_base_freq"] = local["rope_theta"]


def _tokenizer(files: Files, config: Mapping[str, Any]) -> dict[str, Any]:
    text = text_config(config)
    limit = next((text[key] for key in LENGTH_KEYS if text.get(key)), None)
    wanted = max(limit or 0, files.target or 0)
    told = files.tokenizer.get("model_max_length")
    raised = {"model_max_length": wanted} if isinstance(told, (int, float)) and told < wanted else {}
    return {**files.tokenizer, **raised}


def _json(path: Path, body: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
