"""Where ropewalk's own files lie: beside the code in a checkout, inside the package in an installed wheel."""

from __future__ import annotations

from pathlib import Path

SITE = Path(__file__).resolve().parent.parent.parent
"""The folder that holds the packages rope, pipelines and ropewalk."""

CHECKOUT = (SITE / "pyproject.toml").is_file()
"""Whether this is a clone; its top-level conf/ and models/ are used then."""

DATA = SITE if CHECKOUT else SITE / "ropewalk"
CONF = DATA / "conf"
