"""What figures are drawn on: their look and margins, their files, legends and scales. Owns matplotlib with drawing.py.

What belongs to a strategy is marked in the SVG (`strategy:LABEL:NUMBER`), so that a page can show it or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID, PAPER = "#1f2428", "#d0d4d9", "#ffffff"
"""Of text and axes, of grid lines, and of the background: what a page exchanges in the dark."""

DARK_INK, LIGHT_INK = "#000000", "#fefefe"
"""Of numbers on a coloured ground, which stay as they are."""


def warm() -> None:
    """Import all that a figure takes."""
    from matplotlib.backends import backend_agg, backend_svg  # noqa: F401
    from matplotlib.figure import Figure  # noqa: F401


@dataclass(frozen=True)
class Margins:
    """Inches around the axes. They are known beforehand: to have matplotlib find them takes as long as to draw."""

    left: float = 0.85
    right: float = 0.2
    top: float = 0.35
    bottom: float = 0.55


def rehearse() -> None:
    """Draw a figure for nobody: with the first one of a process fonts are found and read."""
    warm()
    with TemporaryDirectory() as folder, figure_at(Path(folder) / "none.png", 2, 1, Margins()) as figure:
        axes = figure.subplots()
        figure.legend(axes.plot([1, 2], marker="o"), ["none"])
        axes.set_title("none")


@contextmanager
def figure_at(path: Path, width: float, height: float, margins: Margins) -> Iterator[Figure]:
    """A figure, in inches, that is written as PNG, and as SVG beside it, when the block ends.

    height: of what is between the margins.
    """
    import matplotlib
    from matplotlib.figure import Figure

    look: dict[Any, Any] = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), INK),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), GRID),
        **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 9),
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "svg.fonttype": "path",  # the same everywhere
        "svg.hashsalt": "ropewalk",  # and the same every time
    }
    high = height + margins.top + margins.bottom
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(width, high))
        yield figure
        figure.subplots_adjust(
            margins.left / width, margins.bottom / high, 1 - margins.right / width, 1 - margins.top / high
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})


def mark(label: str, *artists: Any) -> None:
    for number, artist in enumerate(artists):
        artist.set_gid(f"strategy:{label}:{number}")


@dataclass(frozen=True)
class Legend:
    """The names below a figure of this width, in as many columns as there is room for. inches: its height."""

    names: Sequence[str]
    width: float

    @property
    def rows(self) -> int:
        longest = max(map(len, self.names), default=1)
        columns = max(1, min(len(self.names), int(self.width / (0.75 + 0.075 * longest))))
        return math.ceil(len(self.names) / columns)

    @property
    def inches(self) -> float:
        return 0.19 * self.rows + 0.1

    def draw(self, figure: Figure, handles: Iterable[Any], look: Mapping[str, str] | None = None) -> None:
        """look: what to call a name where it is called otherwise."""
        if not self.names:
            return
        labels = [(look or {}).get(name, name) for name in self.names]
        legend = figure.legend(
            list(handles), labels, loc="lower center", bbox_to_anchor=(0.5, 0.0), borderaxespad=0.3,
            ncols=math.ceil(len(labels) / self.rows), handlelength=3.2, columnspacing=1.4, labelspacing=0.3,
        )  # fmt: skip
        for name, handle, text in zip(self.names, legend.legend_handles, legend.get_texts(), strict=True):
            for artist, part in ((handle, "key"), (text, "name")):
                if artist is not None:
                    artist.set_gid(f"strategy:{name}:{part}")


def by_decades(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic scale where the values span more than a decade, with numbers that people read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not values or min(values) <= 0 or max(values) <= 10 * min(values):
        return
    axis._set_axes_scale("log")
    decades = math.log10(max(values) / min(values))
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1, 3) if decades < 4 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())


def by_powers(axis: Any) -> None:
    """A logarithmic scale with powers of ten, written as plain text: matplotlib would parse each as a formula, which
    takes as long as all else that is drawn."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    axis._set_axes_scale("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"10{str(round(math.log10(value))).translate(raised)}"))
    axis.set_minor_locator(NullLocator())


def around_zero(axis: Any, values: Sequence[float], even: float) -> None:
    """Signed numbers: linear up to `even` on either side of 0 and logarithmic beyond, where some are far beyond."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    far = max(map(abs, values), default=0.0)
    if far > 20 * even:
        axis._set_axes_scale("symlog", linthresh=even)
        steps = [even * step * 100**power for power in range(6) for step in (1, 4, 20)]
        steps = [step for step in steps if step <= 2 * far]
        axis.set_major_locator(FixedLocator([*(-step for step in steps), 0.0, *steps]))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+,.6g}" if value else "0"))


def headline(figure: Figure, title: str) -> None:
    x, y = 0.15 / figure.get_figwidth(), 1 - 0.15 / figure.get_figheight()
    figure.text(x, y, title, ha="left", va="top", fontsize=10.5, fontweight="bold")
