"""What is printed in the place of a traceback: all that a report of a fault needs, and nothing about whose it is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import site
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from pipelines.records.places import SITE
from pipelines.records.privacy import without_places
from pipelines.records.refusal import first_line

LIBRARIES = ("torch", "transformers", "lm-eval", "ray", "mlflow", "hydra-core", "numpy")

LONGEST = 300
"""Characters of the error's first line, and of a word of the command."""


def of(error: BaseException, words: Sequence[str]) -> str:
    """The block. words: of the command line, without `ropewalk`."""
    command = shlex.join(["ropewalk", *(word[:LONGEST] for word in words)])
    frames = [
        f"  {_relative(frame.filename)}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    lines = [
        f"ropewalk: a fault of its own: {type(error).__name__}: {first_line(error)[:LONGEST]}",
        "Results that are finished are on disk. Please report this, down to the last line:",
        f"  {command}",
        f"  {', '.join(_versions())}",
        *frames[-30:],
    ]
    return without_places("\n".join(lines)).encode("utf-8", "backslashreplace").decode()


def _versions() -> list[str]:
    versions = [f"Python {platform.python_version()}", f"{platform.system()} {platform.machine()}"]
    for name in ("ropewalk", *LIBRARIES):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _relative(file: str) -> str:
    """A file by its name below the code, the libraries or Python; of any other its last part."""
    for root in (*site.getsitepackages(), str(SITE), os.path.dirname(os.__file__), sys.prefix):
        if file.startswith(f"{root}{os.sep}"):
            return os.path.relpath(file, root)
    return Path(file).name
