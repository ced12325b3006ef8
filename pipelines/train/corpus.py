"""Text to train on, as token ids: the standard library, installed packages of permissive licence, any local text.

What grids score stays out: `pydoc_data.topics`, and every file that quotes it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.records.cells import Refusal, digest_of
from pipelines.records.public import public
from pipelines.tasks import text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 2
"""Of the selection of text; a change is a new corpus."""

PACKAGES = "packages"
END = "<|endoftext|>"
"""Before every document."""

MOST_OF_A_PACKAGE = 6_000_000
"""Bytes of one package: the largest ones repeat themselves."""

LONGEST_FILE, DIGITS = 1_000_000, 0.15
"""Bytes of a file, and the share of digits in it, above which it is a table rather than text."""

HELD_OUT = 100
"""One file in so many is kept for validation."""

QUOTE, STRIDE = 12, 4
"""Words: a file with 15 consecutive words of the topics always holds a run of 12 that starts at a multiple of 4."""

FOR_TOKENIZER = 60_000_000
"""Bytes of text from which a tokenizer is trained."""

SPDX = """
    MIT MIT-0 MIT-CMU BSD-2-Clause BSD-3-Clause 0BSD Apache-2.0 PSF-2.0 Python-2.0 CNRI-Python ISC Zlib BSL-1.0 CC0-1.0
    Unlicense HPND LLVM-exception
"""
PERMISSIVE = frozenset(SPDX.split())
"""SPDX licences that ask for no more than their notice."""

CLASSIFIERS = frozenset(
    {
        "MIT License",
        "MIT No Attribution License (MIT-0)",
        "BSD License",
        "Zero-Clause BSD (0BSD)",
        "Apache Software License",
        "Python Software Foundation License",
        "ISC License (ISCL)",
        "zlib/libpng License",
        "The Unlicense (Unlicense)",
        "Historical Permission Notice and Disclaimer (HPND)",
    }
)
FREE_WORDS = re.compile(
    r"(the )?(apache([ -]software)?([ ,-]+licen[sc]e)?([ ,-]+(version )?v?2(\.0)?)?|mit|isc|psf(-2\.0)?"
    r"|((new|modified|simplified|[23][ -]clause) )?bsd([ -][23][ -]clause)?)( licen[sc]e)?",
    re.IGNORECASE,
)
"""What packages write into their License field where they mean a permissive one."""

Tokens = npt.NDArray[Any]
"""(tokens,) ids, uint16 or uint32."""


@dataclass(frozen=True)
class CorpusSource:
    """What one package (or the standard library, or a given text) gave to a corpus."""

    package: str
    version: str
    licence: str
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Corpus:
    """Token ids of all documents one after another, each with an end-of-text before it.

    tokens: (tokens,) to train on. held_out: (tokens,) to validate on, other documents; may be empty.
    card: its contents as plain data: text, sources, tokens, digest.
    folder: where it lies: tokens.npy, held_out.npy, tokenizer.json, corpus.json.
    """

    tokens: Tokens
    held_out: Tokens
    card: dict[str, Any]
    folder: Path

    @property
    def tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))


def prepared(sources: Sequence[str], folder: Path, tokenizer: Tokenizer | int) -> Corpus:
    """The corpus of these texts, encoded; written below `folder`, from which the next call reads it.

    sources: stdlib, packages, and sources of pipelines/tasks/text.py (a file, a folder, hub:OWNER/NAME); or the one
        folder of a corpus prepared before, taken as it is.
    tokenizer: to encode with; or the number of tokens of one to train on this text (byte-level, digits apart).

    Raises:
        Refusal: a source is not there or holds no text, or a corpus prepared before has another tokenizer.
    """
    if len(sources) == 1 and (Path(sources[0]).expanduser() / "corpus.json").is_file():
        corpus = load(Path(sources[0]).expanduser())
        _check_tokenizer(corpus, tokenizer)
        return corpus
    stamp = digest_of([VERSION, list(sources), [_stamp(source) for source in sources]])[:12]
    if isinstance(tokenizer, int):
        place = folder / f"{stamp}-{tokenizer}"
    else:
        # The text may have been encoded with this very tokenizer when that was trained on it.
        digest = tokenizer_digest(tokenizer)
        before = (path.parent for path in sorted(folder.glob(f"{stamp}-*/corpus.json")))
        place = next((p for p in before if load(p).card["tokenizer"] == digest), folder / f"{stamp}-{digest}")
    if not (place / "corpus.json").is_file():
        _write(place, sources, tokenizer)
    return load(place)


def load(folder: Path) -> Corpus:
    """A corpus from its folder; its tokens stay on disk and are read as they are needed."""
    card = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    tokens, held_out = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tokens", "held_out"))
    return Corpus(tokens, held_out, card, folder)


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """16 hex digits of a tokenizer's vocabulary and merges."""
    return digest_of(json.loads(tokenizer.to_str())["model"])[:16]


def documents(sources: Sequence[str]) -> Iterator[tuple[CorpusSource, str]]:
    """Every document of these texts with its source, in an order of their own, each text once.

    Raises:
        Refusal: a source is not there, or none holds any text.
    """
    seen = set[bytes]()
    quotes = _topic_runs()
    for source in sources:
        for origin, document in _documents(source):
            digest = hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()
            if digest not in seen and not _quotes(document, quotes):
                seen.add(digest)
                yield origin, document
    if not seen:
        raise Refusal(
            f"text {', '.join(sources) or '(none)'}: no text was found to train on; give stdlib, packages, a text "
            "file, a folder of text files or hub:OWNER/NAME"
        )


def licence(metadata: Any) -> str | None:
    """The licence that a package's metadata declare, where it is permissive; None where it is not, or not clear.

    A licence expression wins over classifiers, and these over the free License field.
    """
    expression = metadata.get("License-Expression")
    if expression:
        names = re.findall(r"[\w.+-]+", re.sub(r"\b(AND|OR|WITH)\b", " ", expression))
        return expression if all(name in PERMISSIVE for name in names) else None
    classified = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or () if c.startswith("License ::")]
    classified = [name for name in classified if name != "OSI Approved"]
    if classified:
        return " AND ".join(classified) if all(name in CLASSIFIERS for name in classified) else None
    free = (metadata.get("License") or "").strip()
    return free if FREE_WORDS.fullmatch(free) else None


def _documents(source: str) -> Iterator[tuple[CorpusSource, str]]:
    if source == text.STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        yield from _files(CorpusSource("Python", platform.python_version(), "PSF-2.0"), root, text.modules(root))
    elif source == PACKAGES:
        for origin, distribution in _packages():
            listed = sorted(Path(str(file)) for file in distribution.files or () if file.suffix == ".py")
            root = Path(str(distribution.locate_file("")))
            yield from _files(origin, root, [root / file for file in listed])
    else:
        if source == text.PYDOC:
            raise Refusal(
                "text pydoc is what grids score, so nothing is trained on it; give stdlib, packages or a path"
            )
        origin = CorpusSource(source, text.digest(source), "as given")
        yield from ((origin, document) for document in text.documents(source))


def _packages() -> list[tuple[CorpusSource, importlib.metadata.Distribution]]:
    """Installed packages with a permissive licence, by name."""
    packages: dict[str, tuple[CorpusSource, importlib.metadata.Distribution]] = {}
    for distribution in importlib.metadata.distributions():
        name, declared = distribution.metadata["Name"], licence(distribution.metadata)
        if name and declared:
            packages.setdefault(name.lower(), (CorpusSource(name, distribution.version, declared), distribution))
    return [packages[name] for name in sorted(packages)]


def _files(origin: CorpusSource, root: Path, paths: Iterable[Path]) -> Iterator[tuple[CorpusSource, str]]:
    """The text of a package's files; of a package too large the files whose digests come first."""
    texts = []
    for path in paths:
        if path.is_relative_to(root) and not text.APART.intersection(path.relative_to(root).parts):
            try:
                document = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            digits = sum(map(document.count, "0123456789"))
            if document.strip() and len(document) <= LONGEST_FILE and digits <= DIGITS * len(document):
                texts.append(document)
    if sum(map(len, texts)) > MOST_OF_A_PACKAGE:
        chosen, room = set[int](), MOST_OF_A_PACKAGE
        for number in sorted(range(len(texts)), key=lambda n: hashlib.sha256(texts[n].encode()).digest()):
            room -= len(texts[number])
            if room < 0:
                break
            chosen.add(number)
        texts = [document for number, document in enumerate(texts) if number in chosen]
    yield from ((origin, document) for document in texts)


@lru_cache(maxsize=1)
def _topic_runs() -> frozenset[tuple[str, ...]]:
    """Every run of QUOTE words of the topics that grids score."""
    from pydoc_data.topics import topics

    words = [document.split() for document in topics.values()]
    return frozenset(tuple(row[n : n + QUOTE]) for row in words for n in range(len(row) - QUOTE + 1))


def _quotes(document: str, runs: frozenset[tuple[str, ...]]) -> bool:
    words = document.split()
    return any(tuple(words[n : n + QUOTE]) in runs for n in range(0, len(words) - QUOTE + 1, STRIDE))


def _stamp(source: str) -> Any:
    """What identifies a source without reading all of it."""
    if source == text.STDLIB:
        return platform.python_version()
    return [asdict(origin) for origin, _ in _packages()] if source == PACKAGES else text.digest(source)


def _check_tokenizer(corpus: Corpus, tokenizer: Tokenizer | int) -> None:
    """Refuse a corpus prepared before that was encoded with another tokenizer."""
    own = corpus.tokenizer
    if isinstance(tokenizer, int):
        if own.get_vocab_size() > tokenizer:
            raise Refusal(
                f"the corpus in {corpus.folder} has a vocabulary of {own.get_vocab_size()} tokens and vocabulary="
                f"{tokenizer} was given; give the same, or the texts themselves"
            )
    elif tokenizer_digest(own) != tokenizer_digest(tokenizer):
        raise Refusal(
            f"the corpus in {corpus.folder} was encoded with another tokenizer than the model's; "
            "give the texts themselves (text=stdlib,packages)"
        )


def _write(place: Path, sources: Sequence[str], tokenizer: Tokenizer | int) -> None:
    """Read, encode, and put into place whole."""
    print(f"reading {', '.join(sources)} ...", flush=True)
    origins: dict[str, CorpusSource] = {}
    train: list[str] = []
    held: list[str] = []
    for origin, document in documents(sources):
        known = origins.get(origin.package, origin)
        origins[origin.package] = replace(known, files=known.files + 1, bytes=known.bytes + len(document.encode()))
        digest = hashlib.sha256(document.encode("utf-8", "surrogatepass")).hexdigest()
        (train if int(digest[:8], 16) % HELD_OUT else held).append(document)
    if isinstance(tokenizer, int):
        print(f"training a tokenizer of {tokenizer} tokens ...", flush=True)
        tokenizer = trained_tokenizer(train, tokenizer)
    print(f"encoding {len(train) + len(held):,} documents ...", flush=True)
    tokens, held_out = _encoded(train, tokenizer), _encoded(held, tokenizer)
    if not held_out.size:  # few documents: the end of the last one
        cut = tokens.size - tokens.size // HELD_OUT
        tokens, held_out = tokens[:cut], tokens[cut:]
    card = {
        "text": list(sources),
        "sources": [asdict(origin) for origin in origins.values()],
        "documents": len(train) + len(held),
        "tokens": int(tokens.size),
        "held_out_tokens": int(held_out.size),
        "tokenizer": tokenizer_digest(tokenizer),
        "digest": hashlib.sha256(tokens.tobytes()).hexdigest()[:16],
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix="preparing-"))
    try:
        np.save(temporary / "tokens.npy", tokens)
        np.save(temporary / "held_out.npy", held_out)
        tokenizer.save(str(temporary / "tokenizer.json"))
        (temporary / "corpus.json").write_text(public(json.dumps(card, indent=1)), encoding="utf-8")
        temporary.chmod(0o755)
        shutil.rmtree(place, ignore_errors=True)
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def trained_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer in which every digit is a token of its own, so that a five-digit key takes five.

    vocabulary: tokens, the 256 bytes and the end-of-text among them; fewer where the text gives no more.

    Raises:
        Refusal: vocabulary is below 257.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocabulary < 257:
        raise Refusal(f"vocabulary={vocabulary}: give at least 257, a token a byte and the end-of-text")
    tokenizer = Tokenizer(models.BPE())
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    every = sum(map(len, texts)) // FOR_TOKENIZER + 1
    tokenizer.train_from_iterator(texts[::every], trainer)
    return tokenizer


def encoder(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """text -> ids, without special tokens. It can be given to another process."""
    return partial(_ids, tokenizer)


def _ids(tokenizer: Tokenizer, piece: str) -> list[int]:
    return list(tokenizer.encode(piece, add_special_tokens=False).ids)


def _encoded(texts: Sequence[str], tokenizer: Tokenizer) -> Tokens:
    end = tokenizer.token_to_id(END)
    kind = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    parts: list[Any] = []
    for start in range(0, len(texts), 256):
        batch = tokenizer.encode_batch_fast(list(texts[start : start + 256]), add_special_tokens=False)
        for encoding in batch:
            parts.append(np.array([end, *encoding.ids] if end is not None else encoding.ids, dtype=kind))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=kind)
