"""What the installed transformers builds from a config: its class on the meta device, without weights or remote code.

Reading config.json as data is quick and needs no transformers; this is what that reading must agree with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.records.cells import Refusal, digest_of
from pipelines.records.places import cache_folder, keep

if TYPE_CHECKING:
    from torch import nn

    from rope.patch import RotaryState

FORMAT = 2
"""Of the cached answers: up with whatever they hold, or with how it is found."""


@dataclass(frozen=True)
class Rotary:
    """What the rotary modules of a built model hold for one layer type; rope_type as the module names it."""

    layer_type: str
    inv_freq: tuple[float, ...]
    attention_factor: float
    rope_type: str


@dataclass(frozen=True)
class Built:
    """A model as transformers builds it.

    name: its class. rotary: what its modules hold, by layer type, each distinct content once; () for a model without a
    rotary module. trained_length: max_position_embeddings of the config object, None where it has none.
    """

    name: str
    rotary: tuple[Rotary, ...]
    trained_length: int | None


def built(config: Mapping[str, Any]) -> Built:
    """What transformers builds from a config.json, remembered in the user's cache folder.

    Raises:
        Refusal: the installed transformers has no class for it, or its class does not take this config.
    """
    place = _place(config)
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept["digest"] != digest_of(kept["built"]):
            raise ValueError("damaged")
        return _plain(kept["built"])
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: built anew
        answer = describe(config)
    plain = json.loads(json.dumps(asdict(answer)))
    keep(place, json.dumps({"digest": digest_of(plain), "built": plain}).encode())
    return answer


def describe(config: Mapping[str, Any]) -> Built:
    """The same, built now.

    Raises:
        Refusal: as `built`.
    """
    from rope.patch import rotary_states

    model = on_meta(config)
    try:
        states = rotary_states(model)
    except ValueError:
        states = []
    own: Any = model.config
    text = own.get_text_config(decoder=True)
    distinct = dict.fromkeys(map(_rotary, states))
    return Built(type(model).__name__, tuple(distinct), getattr(text, "max_position_embeddings", None))


def on_meta(config: Mapping[str, Any]) -> nn.Module:
    """The model that transformers builds from a config: weights on the meta device, rotary modules with their numbers.

    Those numbers are what from_pretrained computes, which builds on the meta device too and then fills buffers that no
    checkpoint has.

    Raises:
        Refusal: as `built`.
    """
    import torch
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as auto

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise Refusal(f"transformers {version('transformers')} has no class for model_type {kind!r}")
    mappings = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_MAPPING,
    )
    try:
        own = CONFIG_MAPPING[kind].from_dict(_decoder_alone(config))
        # a text decoder that stands alone is built without the towers for images and sound around it
        candidates = [own.get_text_config(decoder=True), own] if kind != own.get_text_config().model_type else [own]
        chosen = next((c, m[type(c)]) for c in candidates for m in mappings if type(c) in m)
        chosen[0].pad_token_id = None  # of a vocabulary that may be cut
        with torch.device("meta"), torch.no_grad():
            model = chosen[1]._from_config(chosen[0], dtype=torch.float32)
            _fill(model, torch)
    except StopIteration:
        raise Refusal(f"transformers {version('transformers')} has no language model for model_type {kind!r}") from None
    except Exception as error:  # config classes and models raise whatever they meet
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise Refusal(f"transformers {version('transformers')} cannot build this {kind} ({reason})") from error
    return model  # type: ignore[no-any-return]


NOT_BUILT = frozenset({"auto_map", "quantization_config", "attn_implementation", "_attn_implementation"})
"""Keys that bring other code, or need other libraries, and no other frequencies."""


def _decoder_alone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the least that stands for towers of images and sound: the class's own."""
    kept = {key: value for key, value in config.items() if key not in NOT_BUILT}
    for key in [key for key in kept if key.endswith("_config") and key.startswith(("vision", "audio", "speech"))]:
        tower = kept.pop(key) or {}
        if "model_type" in tower:
            kept[key] = {"model_type": tower["model_type"]}
    return kept


def _fill(model: Any, torch: Any) -> None:
    """Real numbers for the buffers of rotary modules, by the model's own _init_weights."""
    from transformers import PreTrainedModel

    def visit(module: Any, owner: Any) -> None:
        owner = module if isinstance(module, PreTrainedModel) else owner
        if any(name.endswith("inv_freq") for name in module._buffers):
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    module._buffers[name] = torch.full(buffer.shape, math.nan, dtype=buffer.dtype, device="cpu")
            with torch.device("cpu"):
                owner._init_weights(module)
        for child in module.children():
            visit(child, owner)

    visit(model, model)


def _rotary(state: RotaryState) -> Rotary:
    if not all(map(math.isfinite, state.inv_freq)):
        raise Refusal(f"transformers computes the frequencies of {state.module} at its first forward only")
    return Rotary(state.layer_type, state.inv_freq, state.attention_factor, state.rope_type)


def _place(config: Mapping[str, Any]) -> Path:
    key = digest_of({"config": config, "transformers": version("transformers"), "format": FORMAT})
    return cache_folder() / "built" / f"{key[:32]}.json"


def _plain(read: Mapping[str, Any]) -> Built:
    """What was kept; KeyError or TypeError where it is damaged."""
    rotary = tuple(
        Rotary(
            str(entry["layer_type"]),
            tuple(map(float, entry["inv_freq"])),
            float(entry["attention_factor"]),
            str(entry["rope_type"]),
        )
        for entry in read["rotary"]
    )
    return Built(str(read["name"]), rotary, read["trained_length"])
