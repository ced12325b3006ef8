"""What no message shows: what was read from the environment, passwords in addresses, whose a machine is."""

from __future__ import annotations

import os
import re
import socket

SHORTEST = 4
"""Characters; values of the environment that are shorter are in any text, and no secret."""

_GIVEN_OUT: dict[str, str] = {}

_PASSWORD = re.compile(r"(\w://[^/\s:@]*):[^/\s@]+@")


def give_out(name: str, value: str) -> str:
    """The value of an environment variable, which no message shows from now on."""
    if len(value) >= SHORTEST:
        _GIVEN_OUT[value] = f"${{oc.env:{name}}}"
    return value


def without_secrets(text: str) -> str:
    """A text with ${oc.env:NAME} in the place of what `give_out` gave out, and *** in that of passwords in addresses.

    >>> without_secrets("http://me:secret@host/path")
    'http://me:***@host/path'
    """
    for value in sorted(_GIVEN_OUT, key=len, reverse=True):
        text = text.replace(value, _GIVEN_OUT[value])
    return _PASSWORD.sub(r"\1:***@", text)


def without_places(text: str) -> str:
    """The same, without the home folder, the user's name and the machine's: what a bug report may hold."""
    text = without_secrets(text)
    home = os.path.expanduser("~")
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or os.path.basename(home)
    for private, shown in ((home, "~"), (socket.gethostname(), "HOST"), (user, "USER")):
        if len(private) > 1:
            text = re.sub(rf"(?<!\w){re.escape(private)}(?!\w)", shown, text)
    return text
