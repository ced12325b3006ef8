"""Where a number was computed: which code, which packages, which machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from pipelines.records.places import SITE

PACKAGES = ("torch", "transformers", "lm-eval", "numpy", "tokenizers")
"""Packages whose version may change a number."""


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
    """Python, the packages that may change a number, the host, and its GPU driver where there is one."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    lines = nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader")
    driver = [line.strip() for line in lines if line[:1].isdigit()]
    return {
        "python": platform.python_version(),
        **packages,
        "host": socket.gethostname(),
        **({"driver": driver[0]} if driver else {}),
    }


def nvidia_smi(*arguments: str) -> list[str]:
    """The output lines of nvidia-smi, [] without it: faster than importing torch."""
    if shutil.which("nvidia-smi") is None:
        return []
    return subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=False).stdout.splitlines()


def _git(*arguments: str) -> bytes:
    ran = subprocess.run(["git", "-C", str(SITE), *arguments], capture_output=True, check=False)
    return ran.stdout if ran.returncode == 0 else b""
