"""What the fuzz tests share: one hostile input into the command line, and what may come of it."""

# ruff: noqa: RUF005

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pipelines.cli.main import run

SECONDS = 3.0
"""Of the processor that one input may take; seconds on the wall are others' too on a busy machine."""

SECRET = "hf_planted_secret_value"
EXCUSED = ("__pycache__", "/dev/null", "/dev/tty")
"""Parts of paths that Python itself may write."""

_inside: list[Path] = []
_outside: list[str] = []


def _audit(event: str, arguments: tuple) -> None:
    if not _inside or event not in ("open", "os.mkdir", "os.rename", "os.remove"):
        return
    path, mode = arguments[0], arguments[1] if event == "open" else "w"
    flags = arguments[2] if event == "open" else os.O_WRONLY
    writes = event != "open" or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)) or "w" in str(mode)
    if writes and isinstance(path, (str, bytes, os.PathLike)):
        name = os.path.abspath(os.fsdecode(path))
        if not name.startswith(str(_inside[0])) and not any(part in name for part in EXCUSED):
            _outside.append(f"{event} {name}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def nothing_written_outside(folder: Path):
    _inside.append(folder)
    _outside.clear()
    try:
        yield
    finally:
        _inside.clear()
    assert not _outside, f"written outside {folder}: {_outside}"


def entered(folder: Path, *words: str) -> tuple[int, str]:
    """One command line, in this process: it succeeds, or is refused in a sentence."""
    out, err, start = io.StringIO(), io.StringIO(), time.process_time()
    with nothing_written_outside(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(words))
    spent, said = time.process_time() - start, out.getvalue() + err.getvalue()
    assert code in ((0, 1, 2) if words[0] in ("doctor", "compare", "gate") else (0, 2)), f"{words}: {code}\n{said}"
    assert "Traceback" not in said and "a fault of its own" not in said, f"{words}\n{said}"
    assert SECRET not in said, f"{words} shows the environment\n{said}"
    assert spent < SECONDS, f"{words}: {spent:.1f} s"
    assert code != 2 or "ropewalk: " in err.getvalue() or "invalid " in out.getvalue(), f"{words}: no sentence"
    return code, said


def examples(count: int, times: int) -> settings:
    """times 1: the same ones on every run, as CI takes; else that many times as many, drawn anew."""
    quick = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
    return settings(max_examples=count * times, derandomize=times == 1, **quick)


NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 3, 255, 2**31, 2**53 + 1, 2**63, 10**12, 10**20, 10**400, 0.5, -0.0, 1e-308, 1e12, 1e308, 4.5]
    + [float("inf"), float("nan"), True, False, None]
)
TEXTS = st.sampled_from(
    ["", "4", "abc", "yarn", "none", "null", "llama", "[red]", "[/INST]", "a b", "../x", "/", "/dev/null", "\ud800"]
    + ["é", "{}", "[]", "${x}", "full_attention", "nan", "1e308", "x" * 3000]
)
PLAIN = st.recursive(
    NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.sampled_from(["factor"]), inner, max_size=3),
    max_leaves=6,
)
