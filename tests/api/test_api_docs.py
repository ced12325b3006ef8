"""The Python of docs/python.md and README.md runs as it is printed."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
from support import PROJECT

PAGES = {path.name: path.read_text() for path in (PROJECT / "docs" / "python.md", PROJECT / "README.md")}
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:```text( measured)?\n(.*?)^```\n)?", flags=re.M | re.S)


def without_numbers(text):
    """What of a measurement is the same with another Python or machine, whose numbers, and columns, may differ."""
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.,e+-]*", "0", text)).strip()


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_as_printed(page, tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(PROJECT / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROPEWALK_STORE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names: dict[str, object] = {}
    blocks = BLOCK.findall(PAGES[page])
    assert blocks
    for code, measured, expected in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, page, "exec"), names)
        if measured:
            assert without_numbers(printed.getvalue()) == without_numbers(expected), code
        elif expected:
            assert printed.getvalue() == expected, code


def test_every_public_name_is_on_the_page():
    import ropewalk

    assert [name for name in ropewalk.__all__ if name not in PAGES["python.md"]] == []
