"""docs/python.md runs as it is printed."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
from support import PROJECT

PAGE = (PROJECT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", PAGE, flags=re.M | re.S)


def without_numbers(text):
    """What stays of a measurement on another machine: its numbers, and the columns that they widen, do not."""
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.,e+-]*", "0", text)).strip()


@pytest.mark.usefixtures("one_thread")
def test_the_page_runs_as_printed(tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(PROJECT / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROPEWALK_STORE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names: dict[str, object] = {}
    for code, expected in BLOCKS:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, "docs/python.md", "exec"), names)
        if expected:
            assert without_numbers(printed.getvalue()) == without_numbers(expected), code


def test_every_public_name_is_on_the_page():
    import ropewalk

    assert [name for name in ropewalk.__all__ if name not in PAGE] == []
