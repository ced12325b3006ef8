"""What is written down for others to read: without the home folder, and without anything secret.

Results, runs, reports and exports are shown and passed on; an error may quote a path, an address with a password, or
the value of a variable.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache

SECRET = re.compile(r"TOKEN(?!IZER)|PASSWORD|PASSWD|SECRET|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
"""In the name of an environment variable whose value nobody else may see."""

SHORTEST = 6
"""Characters of a value from which on it is taken for a secret: `1` and `true` stand in every text."""

LOGIN = re.compile(r"(?<=://)[^/\s@'\"]+@")
"""User and password in an address."""

HIDDEN = "***"


def public(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text with ~ for the home folder, and *** for what is secret. The same for a text that was public already.

    >>> public("model=/home/ada/m http://ada:word@host", {"HOME": "/home/ada"})
    'model=~/m http://***@host'
    """
    for value in _secrets(environment):
        text = text.replace(value, HIDDEN)
    return LOGIN.sub(f"{HIDDEN}@", _without_home(text, "~", environment))


def public_script(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A shell command in which every path below the home folder begins with $HOME, quoted or not.

    >>> public_script("serve /home/ada/m '/home/ada/a b'", {"HOME": "/home/ada"})
    'serve "$HOME"/m "$HOME"\\'/a b\\''
    """
    return re.sub(r"('?)~/", r'"$HOME"\1/', _without_home(text, "~", environment))


def _without_home(text: str, sign: str, environment: Mapping[str, str]) -> str:
    home = environment.get("HOME", "").rstrip("/")
    for name in {home, os.path.realpath(home)} if home else ():
        if name.count("/") > 0 and len(name) > 1:
            for written in {name, _in_json(name)}:
                text = re.sub(rf"(?<![\w.~-]){re.escape(written)}(?![\w.-])", sign, text)
    return text


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Values of secret variables, as they are and as JSON writes them, the longest first."""
    # by name first: looking a value up takes most of the time, and every string that is recorded comes here
    values = {value for name in filter(_is_secret, environment) if len(value := environment[name]) >= SHORTEST}
    return sorted(values | set(map(_in_json, values)), key=len, reverse=True)


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    return SECRET.search(name) is not None


def _in_json(text: str) -> str:
    return json.dumps(text)[1:-1]
