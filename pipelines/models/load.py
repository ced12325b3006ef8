"""A checkpoint's tokenizer and weights in memory. Owns the conversion of GGUF files; imports torch where it loads."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.models.find import (
    BYTE_END,
    RANDOM,
    byte_backend,
    converted_folder,
    first_line,
    gguf_header,
    locate,
    random_config,
    read_json,
    with_scaling,
)
from pipelines.records.cells import Model, Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def materialise(model: Model) -> str:
    """What from_pretrained takes: a folder, or a hub id. A GGUF file is converted once, into the user's cache.

    transformers takes 25 s to read SmolLM2's GGUF file and its tokenizer, and 0.3 s for the folder made of it.
    """
    source = locate(model)
    if source.gguf is None:
        return str(source.folder or source.hub)
    folder = converted_folder(model)
    if not folder.is_dir():
        print(f"converting {source.gguf.name} to safetensors, once ...", file=sys.stderr, flush=True)
        _convert(source.gguf, folder)
    return str(folder)


@lru_cache(maxsize=4)
def tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer; of a random model one of bytes.

    Raises:
        Refusal: the model has no tokenizer that loads.
    """
    from transformers import AutoTokenizer

    if model.path == RANDOM:
        return byte_tokenizer()
    try:
        tokenizer = AutoTokenizer.from_pretrained(materialise(model), revision=model.revision)
    except (OSError, ValueError) as error:
        raise Refusal(f"model {model.name}: its tokenizer does not load ({first_line(error)})") from error
    # Its own limit only makes it warn about long texts; what fits is decided by the scorer.
    tokenizer.model_max_length = sys.maxsize
    return tokenizer  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def model(model: Model, dtype: str, device: str) -> PreTrainedModel:
    """The model in evaluation mode. The last one stays in memory: cells come a model at a time.

    Raises:
        Refusal: its weights do not load.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    source, kind = locate(model), getattr(torch, dtype)
    # A worker that holds several GPUs was given them for a model that one does not hold.
    spread = {"device_map": "auto"} if device == "cuda" and torch.cuda.device_count() > 1 else {}
    if source.shape is not None:
        shape = {key: value for key, value in random_config(source.shape).items() if key != "model_type"}
        torch.manual_seed(int(shape.pop("seed")))
        return LlamaForCausalLM(LlamaConfig(**shape)).to(device=device, dtype=kind).eval()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(materialise(model), revision=model.revision, dtype=kind, **spread)
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(f"model {model.name}: its weights do not load ({first_line(error)})") from error
    return (loaded if spread else loaded.to(device)).eval()  # type: ignore[no-any-return]


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of the 256 bytes: what a model without a vocabulary of its own is fed with."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=byte_backend(), eos_token=BYTE_END)


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix="converting-"))
    try:
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(temporary)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # a bar that no option turns off
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # A dequantised model refuses to be saved while its config still speaks of the quantised file.
        fresh = type(model)(type(model.config)(**_without_quantization(model.config.to_dict())))
        fresh.load_state_dict(model.state_dict())
        fresh.save_pretrained(temporary)
        written = temporary / "config.json"
        config = with_scaling(read_json(written), gguf_header(gguf), gguf.name)
        written.write_text(json.dumps(config, indent=2), encoding="utf-8")
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:  # another process was first, with the same files
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _without_quantization(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}
