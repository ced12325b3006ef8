"""A model by hub id, folder, GGUF file, package or random shape: its config as plain data, its weights on demand.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.models import conversion, header
from pipelines.models.digest import content_digest, file_state, sampled_digest
from pipelines.records import inputs
from pipelines.records.cells import Model, Options, Refusal, digest_of
from pipelines.records.places import DATA
from pipelines.records.refusal import first_line
from rope.config_types import check_types

PACKAGE = "package://"
RANDOM = "random"
BYTE_VOCABULARY = 257
"""Of a random model's tokenizer: the bytes and an end-of-text."""

BYTE_END = "<|endoftext|>"

HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
"""NAME or OWNER/NAME; what is nothing here and has other characters is a path that leads nowhere."""


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files lie, found but not read: exactly one of folder, gguf, hub and shape is set."""

    folder: Path | None = None
    gguf: Path | None = None
    hub: str | None = None
    shape: Mapping[str, Any] | None = None


def requested(
    name: str,
    path: str,
    revision: str | None = None,
    trained_length: int | None = None,
    shape: Options = (),
    allow_pickle: bool = False,
) -> Model:
    """A model as it is asked for, not looked for yet. OWNER/NAME@REVISION is a hub id at a commit, tag or branch.

    Raises:
        Refusal: two revisions are given.
    """
    repository, at, wanted = path.rpartition("@")
    if at and HUB_ID.fullmatch(repository) and not _here(path).exists():
        if not wanted or revision not in (None, wanted):
            both = f"and revision={revision} " if wanted else ""
            raise Refusal(f"model {path} {both}: give one revision, a commit, tag or branch, as in OWNER/NAME@REVISION")
        path, revision = repository, wanted
    return Model(name, path, revision, trained_length, shape, allow_pickle=allow_pickle)


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
            lacks = "has no config.json; give a folder that holds a model"
            adapter = (path / "adapter_config.json").is_file()
            raise Refusal(f"model {model.name}: {adapter_sentence(path) if adapter else f'the folder {path} {lacks}'}")
        return ModelFiles(folder=path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise Refusal(
                f"model {model.name}: {path} is a file but not a GGUF file; give a folder, a .gguf or a hub id"
            )
        return ModelFiles(gguf=path)
    if model.path.endswith(".gguf") or not HUB_ID.fullmatch(model.path):
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
        try:
            path, commit = _hub_file(source.hub, "config.json", model.revision)
        except Unreachable:
            raise
        except Refusal as reason:
            if side_file(model, "adapter_config.json"):
                folder = _hub_file(source.hub, "adapter_config.json", model.revision)[0].parent
                raise Refusal(f"model {model.name}: {adapter_sentence(folder)}") from reason
            raise
        return replace(model, fingerprint=f"{source.hub}@{commit}", revision=commit), read_config(path)
    if source.folder is not None:
        return replace(model, fingerprint=_fingerprint(source.folder)), read_config(source.folder / "config.json")
    assert source.gguf is not None
    model = replace(model, fingerprint=_fingerprint(source.gguf))
    return model, conversion.read_config(source.gguf, model.fingerprint)


def config_of(model: Model) -> dict[str, Any]:
    """The model's config.json as plain data, where its fingerprint is not needed: that takes a look into every file.

    Raises:
        Refusal: as `describe`.
    """
    folder = locate(model).folder
    return read_config(folder / "config.json") if folder is not None else describe(model)[1]


def side_file(model: Model, name: str) -> dict[str, Any]:
    """Another JSON file of a model's folder or repository, such as tokenizer_config.json; {} where there is none."""
    source = locate(model)
    if source.hub is not None:
        try:
            return inputs.json_object(_hub_file(source.hub, name, model.revision)[0])
        except Refusal:
            return {}
    there = source.folder is not None and (source.folder / name).is_file()
    return inputs.json_object(source.folder / name) if source.folder is not None and there else {}


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


def plain_tokenizer(model: Model) -> PlainTokenizer | None:
    """The model's tokenizer without transformers; None where it has no tokenizer.json (a GGUF file before its
    conversion).

    Raises:
        Refusal: the model is not there.
    """
    return _plain_tokenizer(model, state(model))


@lru_cache(maxsize=4)
def _plain_tokenizer(model: Model, state: tuple[Any, ...]) -> PlainTokenizer | None:
    """state: of the model's files; a tokenizer is kept only while they are the same."""
    from tokenizers import Tokenizer

    source = locate(model)
    if source.shape is not None:
        return PlainTokenizer(byte_backend())
    folder = source.folder or (conversion.converted_folder(describe(model)[0].fingerprint) if source.gguf else None)
    try:
        if source.hub is not None:
            folder = _hub_file(source.hub, "tokenizer.json", model.revision)[0].parent
            _hub_file(source.hub, "tokenizer_config.json", model.revision)
    except Refusal:
        return None
    assert folder is not None
    if not (folder / "tokenizer.json").is_file():
        return None
    beside = folder / "tokenizer_config.json"
    bos = inputs.json_object(beside).get("bos_token") if beside.is_file() else None
    bos = bos.get("content") if isinstance(bos, dict) else bos
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # tokenizers raises nothing narrower; what is wrong with the file is load.tokenizer's to say
        return None
    return PlainTokenizer(backend, bos if isinstance(bos, str) else None)


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
    given = Path(os.path.expanduser(path))
    return given if given.exists() or not (DATA / given).exists() else DATA / given


def _in_package(model: Model) -> Path:
    package, _, file = model.path.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise Refusal(
            f"model {model.name} takes its weights from the package {package}, which is not installed; "
            f"install the extra of that name (uv sync --extra {model.name}) or give another model"
        )
    return Path(spec.submodule_search_locations[0]) / file


def random_config(shape: Mapping[str, Any]) -> dict[str, Any]:
    base = {"model_type": "llama", "rope_theta": 10000.0, "vocab_size": BYTE_VOCABULARY, "seed": 0}
    config = {**base, **shape}
    _check(config, "model.shape")
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


def earlier_fingerprint(model: Model) -> str | None:
    """What earlier versions knew the same files by, which did not read all of them; None where it is the fingerprint.

    Raises:
        Refusal: the model is not there.
    """
    source = locate(model)
    place = source.folder or source.gguf
    if place is None:
        return None
    files = _files(place)
    earlier = sampled_digest(
        [(name, file) for name, file in files if not name or (name.endswith(KINDS) and file.parent == place)]
    )
    return None if earlier == content_digest(files) else earlier


def changed_at(model: Model) -> float:
    """When any of a model's local files last changed, in seconds since 1970: in content, name or links. inf of others.

    It is the system's own note, which no program sets back.
    """
    return max((written[3] / 1e9 for written in state(model)), default=math.inf)


def state(model: Model) -> tuple[tuple[str, int, int, int, int], ...]:
    """Name, size, times and inode of each of a model's local files: equal only while nothing of them was changed.

    Raises:
        Refusal: the model is not there.
    """
    source = locate(model)
    place = source.folder or source.gguf
    if place is None:
        return ()
    return tuple((name, *file_state(file)) for name, file in _files(place))


KINDS = (".json", ".safetensors", ".bin", ".gguf", ".model")
"""Suffixes of the files of a folder that were always digested."""

TOKENIZER = (".jinja", ".tiktoken", ".bpe", ".codes", ".spm")
TOKENIZER_TEXTS = frozenset({"merges.txt", "vocab.txt"})
"""Files of a tokenizer beside those: whatever else a folder holds, such as a README, decides no number."""


def _fingerprint(path: Path) -> str:
    """Digest of a model's files: of a folder, or of a GGUF file with its parts.

    Raises:
        Refusal: one of them cannot be read.
    """
    try:
        return content_digest(_files(path))
    except OSError as error:
        raise Refusal(f"{error.filename or path} cannot be read ({error.strerror}); check its permissions") from error


def _files(path: Path) -> list[tuple[str, Path]]:
    """The files that decide what a model computes. The parts of a GGUF file have no names: they do not matter."""
    if path.is_file():
        return [("", file) for file in _parts(path, file_state(path))]
    names = {file.name for file in path.iterdir() if file.suffix in (*KINDS, *TOKENIZER)}
    names |= TOKENIZER_TEXTS
    for index in path.glob("*.index.json"):  # which may name files in folders below
        read: Any = inputs.json_object(index)
        shards = read.get("weight_map") if isinstance(read, dict) else None
        names |= {str(shard) for shard in shards.values()} if isinstance(shards, dict) else set()
    return [(name, path / name) for name in sorted(names) if (path / name).is_file()]


@lru_cache(maxsize=64)
def _parts(path: Path, state: tuple[int, ...]) -> tuple[Path, ...]:
    """The parts of a GGUF file, whose header is read for their number: slowly, so once for each state."""
    try:
        return header.parts(path)
    except ValueError as error:  # parts of it are missing
        raise Refusal(str(error)) from error


def adapter_sentence(folder: Path) -> str:
    """What to do with a folder that holds an adapter and no model."""
    base = (
        inputs.json_object(folder / "adapter_config.json").get("base_model_name_or_path")
        or "a model that it does not name"
    )
    return (
        f"{folder} holds an adapter of {base} and no weights of a model; merge them first "
        f"(peft: AutoPeftModelForCausalLM.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained(FOLDER), "
        f"and the tokenizer of {base} into the same FOLDER) and give model=FOLDER"
    )


def read_config(path: Path) -> dict[str, Any]:
    """A config.json as plain data.

    Raises:
        Refusal: it cannot be read, or a key of it holds what no model has there.
    """
    config = inputs.json_object(path)
    _check(config, str(path))
    return config


def _check(config: Mapping[str, Any], where: str) -> None:
    try:
        check_types(config)
    except ValueError as error:
        raise Refusal(f"{where}: {error}") from error
