"""Where ropewalk's own files lie: beside the code in a checkout, inside the package in an installed wheel."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

SITE = Path(__file__).resolve().parent.parent.parent
"""The folder that holds the packages rope, pipelines and ropewalk."""

CHECKOUT = (SITE / "pyproject.toml").is_file()
"""Whether this is a clone; its top-level conf/ and models/ are used then."""

DATA = SITE if CHECKOUT else SITE / "ropewalk"
CONF = DATA / "conf"


def python_path() -> str:
    """PYTHONPATH for a process of our own: this one's, with the folder of our packages before it."""
    return os.pathsep.join([str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])])


def cache_folder() -> Path:
    """The user's folder for what is slow to make and can be made again."""
    cache = os.environ.get("ROPEWALK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ropewalk")
    return Path(cache).expanduser()


def keep(place: Path, content: bytes) -> None:
    """Write a file of the cache, whole or not at all. One that cannot be written costs the time again."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
        temporary.write_bytes(content)
        temporary.replace(place)
