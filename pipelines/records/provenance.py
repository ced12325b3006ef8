"""Where a number was computed: which code, which packages, which machine."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.records.places import SITE, cache_folder, keep
from pipelines.records.processes import machine

PACKAGES = ("torch", "transformers", "lm-eval", "numpy", "tokenizers")
"""Packages whose version may change a number."""


DECIDING = (*PACKAGES, "python", "cuda", "device", "attention")
"""Of a result's provenance what must be equal for two to compare. The commit need not: what of our code decides a
number has a version of its own in the cell. Host, driver, threads and time move the last digits at most."""

MEASURING = (
    "rope/*",
    "rope/strategies/*",
    "pipelines/tasks/*",
    "pipelines/models/built.py",
    "pipelines/models/conversion.py",
    "pipelines/models/load.py",
    "pipelines/workers/evaluate.py",
)
"""Files of ours that compute a number: how a model is read and loaded, what is put into it, and what is scored."""


KEPT = 30 * 24 * 3600
"""Seconds after which a digest of measuring code that lies in the user's cache is removed."""


def version() -> str:
    """ropewalk's version as installed; where the code runs from a folder that nothing installed, `not installed`."""
    try:
        return importlib.metadata.version("ropewalk")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@lru_cache(maxsize=1)
def code() -> dict[str, Any]:
    """The git commit that computes; where the tree differs from it, `dirty` and a digest of the difference.

    Empty outside a checkout.
    """
    if shutil.which("git") is None or not (commit := _git("rev-parse", "HEAD").decode().strip()):
        return {}
    untracked = _git("ls-files", "--others", "--exclude-standard", "-z", "rope", "pipelines", "conf").split(b"\0")
    changes = _git("diff", "HEAD", "--binary") + b"".join(
        name + (SITE / name.decode()).read_bytes() for name in untracked if name
    )
    digest = {"difference": hashlib.sha256(changes).hexdigest()[:12]} if changes else {}
    return {"commit": commit, "dirty": bool(changes), **digest}


def code_label(version: Mapping[str, Any]) -> str:
    """`cea3244`, `cea3244 with changes 1f00ba4dbeef`, or `unknown code`."""
    if not version:
        return "unknown code"
    changes = f" with changes {version.get('difference', '')}".rstrip() if version.get("dirty") else ""
    return f"{version['commit'][:7]}{changes}"


def code_labels(provenances: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Results by version of the code. Two versions or more: they were not all computed by the same code."""
    labels = [code_label(provenance.get("code", {})) for provenance in provenances]
    return {label: labels.count(label) for label in dict.fromkeys(labels)}


@lru_cache(maxsize=1)
def environment() -> dict[str, str]:
    """Python, the packages that may change a number, the machine by a digest, and its GPU driver where there is one."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    driver = [version for version, _ in gpus()]
    return {
        "python": platform.python_version(),
        **packages,
        "measuring": measuring(),
        "machine": machine(),
        **({"driver": driver[0]} if driver else {}),
    }


def state(folders: Iterable[str], site: Path = SITE) -> str:
    """What is other when a file in one of these folders of ours is: 12 digits of their names, sizes and times."""
    files = (path for folder in folders for path in (site / folder).rglob("*") if path.suffix != ".pyc")
    states = ((str(path.relative_to(site)), path.stat()) for path in files if path.is_file())
    listed = sorted((name, found.st_size, found.st_mtime_ns) for name, found in states)
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def measuring(site: Path = SITE) -> str:
    """12 hexadecimal digits of the source that computes numbers: the same for other comments, docstrings and layout.

    In a clone code changes without a new version of it; of an installed release it is always the same. Kept in the
    user's cache for as long as no file of ours is another, as parsing them all takes half a second.
    """
    now = state(dict.fromkeys(name.partition("/")[0] for name in MEASURING), site)
    key = f"{now} {site} {platform.python_version()}"
    kept = cache_folder() / f"measuring-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    with suppress(OSError, ValueError):
        if len(bytes.fromhex(known := kept.read_text(encoding="ascii"))) == 6:
            return known
    digits = _measuring(site)
    with suppress(OSError):  # another process may remove them too
        for old in kept.parent.glob("measuring-*"):
            if time.time() - old.stat().st_mtime > KEPT:
                old.unlink(missing_ok=True)
    keep(kept, digits.encode())
    return digits


def _measuring(site: Path) -> str:
    digest = hashlib.sha256()
    for name in sorted(file.relative_to(site).as_posix() for file in _measuring_files(site)):
        content = (site / name).read_bytes()
        digest.update(f"{name}\0".encode() + (_meaning(content) if name.endswith(".py") else content))
    return digest.hexdigest()[:12]


def _measuring_files(site: Path) -> Iterator[Path]:
    for pattern in MEASURING:
        yield from (file for file in site.glob(pattern) if file.suffix in (".py", ".json", ".yaml"))


def _meaning(source: bytes) -> bytes:
    """A module's syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    return ast.dump(tree).encode()


def made_otherwise(provenances: Iterable[Mapping[str, Any]]) -> str:
    """How many results were computed by other measuring code, or with other packages, than is here now, and what to do,
    in a sentence; "" where none was. Of a result that says nothing of it, nothing is known.

    A cell's id has the versions that its number is meant to depend on, so these results still count: what differs here
    should change no number, unless by a fault, or by an edit that was not meant to be kept.
    """
    now, differences, count = environment(), dict[str, None](), 0
    for provenance in provenances:
        own = [name for name in PACKAGES if provenance.get(name, now[name]) != now[name]]
        differences |= dict.fromkeys(f"{name} {provenance[name]}" for name in own)
        # the syntax trees of two versions of Python do not compare
        if _series(provenance.get("python")) == _series(now["python"]) and provenance.get("measuring") is not None:
            own += ["measuring"] if provenance["measuring"] != now["measuring"] else []
        differences |= {"other measuring code (rope, pipelines/tasks)": None} if "measuring" in own else {}
        count += bool(own)
    if not differences:
        return ""
    results = "1 of them was" if count == 1 else f"{count} of them were"
    return (
        f"{results} computed with {' and '.join(differences)}, which is not what is here now; force=true computes anew"
    )


def _series(python: Any) -> list[str]:
    return str(python).split(".")[:2]


@lru_cache(maxsize=1)
def gpus() -> tuple[tuple[str, int | None], ...]:
    """Of every NVIDIA GPU the driver's version, and the memory in MiB where it says that: by nvidia-smi, asked once,
    which is faster than importing torch."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    rows = (line.partition(",") for line in answer.splitlines() if line[:1].isdigit())
    return tuple((driver, int(mib) if mib.strip().isdecimal() else None) for driver, _, mib in rows)


def _git(*arguments: str) -> bytes:
    ran = subprocess.run(["git", "-C", str(SITE), *arguments], capture_output=True, check=False)
    return ran.stdout if ran.returncode == 0 else b""
