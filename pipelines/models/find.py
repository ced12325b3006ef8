"""A model by hub id, folder, GGUF file, package or random shape: its config as plain data, its weights on demand.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.models import header
from pipelines.models.header import Header
from pipelines.records.cells import Model, Refusal, digest_of
from pipelines.records.places import DATA
from rope.dialects import from_llama_cpp, to_transformers

PACKAGE = "package://"
RANDOM = "random"
BYTE_VOCABULARY = 257
"""Of a random model's tokenizer: the bytes and an end-of-text."""

BYTE_END = "<|endoftext|>"

CONVERSION = 2
"""Of GGUF files, in the name of the folder they are converted into: up with whatever a conversion does otherwise."""

SAMPLES, SAMPLE_BYTES = 16, 1 << 20


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files lie, found but not read: exactly one of folder, gguf, hub and shape is set."""

    folder: Path | None = None
    gguf: Path | None = None
    hub: str | None = None
    shape: Mapping[str, Any] | None = None


def locate(model: Model) -> ModelFiles:
    """Find a model's files.

    Raises:
        Refusal: the path names nothing that can be a model.
    """
    if model.path == RANDOM:
        return ModelFiles(shape=dict(model.shape))
    path = _in_package(model) if model.path.startswith(PACKAGE) else _here(model.path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise Refusal(f"model {model.name}: the folder {path} has no config.json; give a folder that holds a model")
        return ModelFiles(folder=path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise Refusal(
                f"model {model.name}: {path} is a file but not a GGUF file; give a folder, a .gguf or a hub id"
            )
        return ModelFiles(gguf=path)
    if model.path.startswith((".", "/", "~")) or model.path.endswith(".gguf") or model.path.count("/") > 1:
        raise Refusal(f"model {model.name}: there is no file or folder {path}; check the path")
    return ModelFiles(hub=model.path)


def describe(model: Model) -> tuple[Model, dict[str, Any]]:
    """The model with its fingerprint (and, of the hub, its commit), and its config.json as plain data; no weights.

    Raises:
        Refusal: the model is not there, or its config cannot be read.
    """
    source = locate(model)
    if source.shape is not None:
        config = random_config(source.shape)
        return replace(model, fingerprint=f"random-{digest_of(config)[:16]}"), config
    if source.hub is not None:
        path, commit = _hub_file(source.hub, "config.json", model.revision)
        return replace(model, fingerprint=f"{source.hub}@{commit}", revision=commit), read_json(path)
    if source.folder is not None:
        return replace(model, fingerprint=_fingerprint(source.folder)), read_json(source.folder / "config.json")
    assert source.gguf is not None
    model = replace(model, fingerprint=_fingerprint(source.gguf))
    converted = converted_folder(model)
    if converted.is_dir():
        return model, read_json(converted / "config.json")
    gguf = gguf_header(source.gguf)
    return model, with_scaling(gguf_config(gguf), gguf, source.gguf.name)


def side_file(model: Model, name: str) -> dict[str, Any]:
    """Another JSON file of a model's folder or repository, such as tokenizer_config.json; {} where there is none."""
    source = locate(model)
    if source.hub is not None:
        try:
            return read_json(_hub_file(source.hub, name, model.revision)[0])
        except Refusal:
            return {}
    return read_json(source.folder / name) if source.folder is not None and (source.folder / name).is_file() else {}


def gguf_header(path: Path) -> Header:
    """A GGUF file's header.

    Raises:
        Refusal: the file is not GGUF.
    """
    try:
        return header.read(path)
    except ValueError as error:
        raise Refusal(str(error)) from error


def gguf_config(gguf: Header) -> dict[str, Any]:
    """What a GGUF header says of positions and of sizes, under the keys of a Hugging Face config; no scaling."""
    named = {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "intermediate_size": "feed_forward_length",
        "head_dim": "attention.key_length",
        "max_position_embeddings": "context_length",
        "rope_theta": "rope.freq_base",
        "rotary_dim": "rope.dimension_count",
    }
    config = {name: gguf.value(key) for name, key in named.items()}
    config["model_type"] = gguf.architecture
    config["vocab_size"] = gguf.count("tokenizer.ggml.tokens") or gguf.value("vocab_size")
    config["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    return {name: entry for name, entry in config.items() if entry is not None}


class PlainTokenizer:
    """A tokenizer.json without transformers, which takes seconds to import: enough of a tokenizer to count with.

    backend_tokenizer: of the package tokenizers. bos_token_id: None where there is none.
    """

    def __init__(self, backend: Any, bos: str | None = None) -> None:
        backend.no_truncation()  # a file may declare both, and transformers leaves both aside too
        backend.no_padding()
        self.backend_tokenizer = backend
        self.bos_token_id = backend.token_to_id(bos) if bos else None

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: list[int], **_: Any) -> str:
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=False))


@lru_cache(maxsize=4)
def plain_tokenizer(model: Model) -> PlainTokenizer | None:
    """The model's tokenizer without transformers; None where it has no tokenizer.json (a GGUF file before its
    conversion).

    Raises:
        Refusal: the model is not there.
    """
    from tokenizers import Tokenizer

    source = locate(model)
    if source.shape is not None:
        return PlainTokenizer(byte_backend())
    folder = source.folder or (converted_folder(model) if source.gguf is not None else None)
    try:
        if source.hub is not None:
            folder = _hub_file(source.hub, "tokenizer.json", model.revision)[0].parent
            _hub_file(source.hub, "tokenizer_config.json", model.revision)
    except Refusal:
        return None
    assert folder is not None
    if not (folder / "tokenizer.json").is_file():
        return None
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    bos = settings.get("bos_token")
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # tokenizers raises nothing narrower; what is wrong with the file is load.tokenizer's to say
        return None
    return PlainTokenizer(backend, bos["content"] if isinstance(bos, dict) else bos)


class Unreachable(Refusal):
    """A model is not here, and the hub did not answer: nothing else can be had from it for now."""


def cached(repository: str, kind: str = "model") -> bool:
    """Whether a repository of the hub (kind: model or dataset) was fetched to this machine before; asks no network."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE, f"{kind}s--{repository.replace('/', '--')}", "snapshots").is_dir()


def byte_backend() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate([*alphabet, BYTE_END])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _here(path: str) -> Path:
    """A path as the user sees it, or else as conf/model means it: below the project."""
    given = Path(path).expanduser()
    return given if given.exists() or not (DATA / given).exists() else DATA / given


def _in_package(model: Model) -> Path:
    package, _, file = model.path.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise Refusal(
            f"model {model.name} takes its weights from the package {package}, which is not installed; "
            f"install the extra of that name (uv sync --extra {model.name}) or give another model"
        )
    return Path(spec.submodule_search_locations[0]) / file


def random_config(shape: Mapping[str, Any]) -> dict[str, Any]:
    base = {"model_type": "llama", "rope_theta": 10000.0, "vocab_size": BYTE_VOCABULARY, "seed": 0}
    config = {**base, **shape}
    if config["vocab_size"] < BYTE_VOCABULARY:
        raise Refusal(f"model.shape.vocab_size={config['vocab_size']}: give at least {BYTE_VOCABULARY}, a token a byte")
    return config


def _hub_file(repository: str, file: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(repository, file, revision=revision))
    except GatedRepoError as error:
        raise Refusal(
            f"model {repository} is gated: accept its licence on the hub and log in (`hf auth login`), "
            "or give a folder with model=PATH"
        ) from error
    except HFValidationError as error:
        raise Refusal(f"model {repository}: neither a file here nor a hub id (OWNER/NAME)") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise (Unreachable if isinstance(error, LocalEntryNotFoundError) else Refusal)(
            f"model {repository}{at} is neither a folder here nor to be had from the hub ({first_line(error)}); "
            "check the name and the network, or give a folder or GGUF file with model=PATH"
        ) from error
    # .../snapshots/<commit>/config.json
    return path, path.parent.name


def converted_folder(model: Model) -> Path:
    cache = os.environ.get("ROPEWALK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ropewalk")
    return Path(cache).expanduser() / f"gguf-{model.fingerprint}-{CONVERSION}"


def with_scaling(config: dict[str, Any], gguf: Header, file: str) -> dict[str, Any]:
    """The config with the scaling that a GGUF file declares, as llama.cpp runs it: transformers reads none from there.

    Left out are lists of two lengths (rope_factors_long), as of Phi-3; the doctor's P02 tells of those.

    Raises:
        Refusal: the scaling is none that llama.cpp takes.
    """
    own = {key.removeprefix(f"{gguf.architecture}."): value for key, value in gguf.keys.items()}
    if not gguf.rope_freqs and not any(key.startswith("rope.scaling.") for key in own):
        return config
    try:
        [(layers, declared)] = from_llama_cpp((), config, own, gguf.rope_freqs).items()
        geometry = declared.geometry
        scaled = to_transformers(
            config, declared.strategy, declared.options, {layers: geometry}, geometry.trained_length
        )
    except ValueError as error:
        raise Refusal(f"{file}: {error}") from error
    # How far it was trained, or extended, is what the file says, whatever a factor comes to.
    return {**scaled, "max_position_embeddings": config["max_position_embeddings"]}


def _fingerprint(path: Path) -> str:
    """Digest of a model's files: names, sizes and evenly spread samples, so that 100 GB take no minute."""
    kinds = (".json", ".safetensors", ".bin", ".gguf", ".model")
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in kinds)
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''} {size}\n".encode())
        with file.open("rb") as stream:
            for sample in range(SAMPLES if size > SAMPLES * SAMPLE_BYTES else 1):
                stream.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE_BYTES if size > SAMPLES * SAMPLE_BYTES else -1))
    return digest.hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refusal(f"{path} cannot be read as JSON ({first_line(error)})") from error
    return config


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
