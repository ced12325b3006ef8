"""One colour, marker and dash a strategy: the same in the terminal, in figures, on the page and in MLflow.

The colours were searched for in Oklab (https://bottosson.github.io/posts/oklab/), among those that show on white and on
near black, so that the strategies drawn together most stay apart to people who see no red, no green or no blue, as
Machado et al. 2009 (doi 10.1109/TVCG.2009.113) simulate it; tests/report/test_palette.py holds by how much. Marker and
dash tell the rest apart, and everything in a black and white print.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

SOLID, LONG, DASH_DOT, SHORT, DOTS = (), (7.0, 2.5), (7.0, 2.0, 1.5, 2.0), (3.5, 1.5), (1.2, 1.4)
DASHES: tuple[tuple[float, ...], ...] = (SOLID, LONG, DASH_DOT, SHORT, DOTS)

TOGETHER = (
    *("none", "crop", "streaming", "linear", "ntk", "dynamic_ntk", "yarn", "llama3", "longrope"),
    *("self_extend", "dual_chunk"),
)
"""Strategies that stand in one figure most."""


@dataclass(frozen=True)
class Style:
    """How a strategy is drawn. colour: #rrggbb. marker: one of matplotlib's. dash: lengths of line and gap in turn, in
    line widths, as matplotlib and SVG take them; () is a solid line."""

    colour: str
    marker: str
    dash: tuple[float, ...]

    @property
    def sign(self) -> str:
        """The marker as a character."""
        return SIGNS[self.marker]


SIGNS = dict(zip(["o", "s", "D", "d", "^", "v", "<", ">", "P", "X", "*", "h", "p", "8"], "●■◆♦△▽◀▶✚✖★⬢⬟⯃", strict=True))
"""Triangles that point up and down are hollow here: full ones say better and worse in tables."""

STYLES = {
    "none": Style("#3c5a5a", "o", SOLID),
    "crop": Style("#784b00", "s", LONG),
    "streaming": Style("#87780f", "X", DASH_DOT),
    "linear": Style("#f05a78", "^", SOLID),
    "ntk": Style("#00a5b4", "v", SHORT),
    "dynamic_ntk": Style("#4b78c3", "P", SOLID),
    "yarn": Style("#e1961e", "D", SOLID),
    "llama3": Style("#c30087", "*", LONG),
    "longrope": Style("#781ed2", "h", DASH_DOT),
    "self_extend": Style("#c387ff", "<", SOLID),
    "dual_chunk": Style("#c34bff", ">", LONG),
    "by_parts": Style("#b4871e", "d", LONG),
    "ntk_fixed": Style("#3c6996", "v", DASH_DOT),
    "ntk_mixed": Style("#00c3c3", "v", DOTS),
    "dynamic": Style("#690fff", "p", LONG),
    "base": Style("#a51e69", "8", SOLID),
    "truncated": Style("#69694b", "8", SHORT),
    "power": Style("#d23cd2", "p", DOTS),
    "proportional": Style("#a5b478", "d", DASH_DOT),
    "resonance": Style("#d2a5a5", "8", DOTS),
    "logn": Style("#699687", "p", SHORT),
    "rerope": Style("#871ea5", "<", SHORT),
    "leaky_rerope": Style("#d278a5", ">", SHORT),
    "factors": Style("#78875a", "d", SHORT),
    "per_layer": Style("#875a0f", "p", DASH_DOT),
    "part_ntk": Style("#54543c", "d", SOLID),
    "cope": Style("#9c606c", "8", LONG),
    "nope": Style("#9090d8", "8", DASH_DOT),
    "compose": Style("#1884e4", "h", SOLID),
    "string": Style("#48c048", "<", LONG),
    "temperature": Style("#a86c9c", "p", SOLID),
}


def style(strategy: str) -> Style:
    """The style of a strategy, whatever its options: `yarn beta_fast=16` has that of yarn.

    A name that is no strategy of ours has one too, always the same.
    """
    name = strategy.split(" ")[0]
    if name in STYLES:
        return STYLES[name]
    number = zlib.crc32(name.encode())
    colours = [one.colour for one in STYLES.values()]
    return Style(colours[number % len(colours)], list(SIGNS)[number % len(SIGNS)], DASHES[number % len(DASHES)])


def known(label: str) -> Style | None:
    """The style of a strategy of ours, whatever its options; None of anything else."""
    return STYLES.get(label.split(" ")[0])


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each of these, no two of some twenty alike: a strategy's first has its own, and each further one with
    other options the same marker in another shade with another dash."""
    given: dict[str, Style] = {}
    before: dict[Style, int] = {}
    for label in dict.fromkeys(labels):
        own = style(label)
        number = before[own] = before.get(own, -1) + 1
        given[label] = _variant(own, number)
    return given


def _variant(own: Style, number: int) -> Style:
    if not number:
        return own
    red, green, blue = (int(own.colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    shades = (0.7, 1.3, 0.85, 1.15)
    lightness = min(0.72, max(0.2, lightness * shades[(number - 1) % len(shades)]))
    parts = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, saturation))
    dash = DASHES[(DASHES.index(own.dash) + number) % len(DASHES)]
    return Style(f"#{''.join(f'{part:02x}' for part in parts)}", own.marker, dash)
