"""matplotlib's SVG files -> elements of a page: in the page's colours, with what belongs to a strategy as a class."""

from __future__ import annotations

import re
from html import escape, unescape

from pipelines.report.canvas import GRID, INK, PAPER

OURS = re.compile(r'id="strategy:(.*?):(\d+|key|name)"')
OTHERS = re.compile(r'(<g) id="[^"]*"')


def inline(svg: str, title: str) -> str:
    """An <svg> element whose ids are only those that it refers to itself, which are the same for the same content.

    title: what a screen reader says it is.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = OURS.sub(lambda match: f'class="{_classes(match[2])}" data-s="{escape(unescape(match[1]))}"', body)
    body = OTHERS.sub(r"\1", body)
    for colour, variable in ((INK, "currentColor"), (GRID, "var(--grid)"), (PAPER, "var(--card)")):
        body = body.replace(colour, variable)
    body = re.sub(r"\s*\n\s*", " ", body)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body)
    wide = ' class="wide"' if box and float(box[1]) > 500 else ""
    return re.sub(
        r"<svg .*?>",
        f'<svg viewBox="0 0 {box[1]} {box[2]}"{wide} role="img" aria-label="{escape(title)}">' if box else r"\g<0>",
        body,
        count=1,
        flags=re.DOTALL,
    )


def _classes(part: str) -> str:
    return "s" if part.isdigit() else "s key"
