"""Results -> one HTML file that asks for nothing from anywhere: the answer, every table and figure, and where they come
from. Owns jinja2 with its template, style and script in this folder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.choices.sweep import Sweep
from pipelines.records.public import public
from pipelines.records.refusal import first_line
from pipelines.report import canvas, figures, palette, recommend
from pipelines.report.curves import Results
from pipelines.report.figure import Figure
from pipelines.report.page.inline import inline
from pipelines.report.page.sections import Section, sections
from pipelines.report.painters import Painters
from pipelines.report.recommend import Recommendation
from pipelines.report.tables import ScoreTable

log = logging.getLogger(__name__)

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """What was written. html: the page. figures: the folder of its figures, each as PNG and SVG, and its data as CSV;
    not there where nothing was drawn. count: of the figures."""

    html: Path
    count: int

    @property
    def figures(self) -> Path:
        return self.html.with_name("figures")

    def __str__(self) -> str:
        drawn = f"; {self.count} figures as PNG, SVG and CSV: {self.figures}" if self.count else ""
        return f"page: {self.html}{drawn}"


def write(
    results: Results,
    folder: Path,
    *,
    sweeps: Sequence[Sweep] = (),
    shown: Sequence[ScoreTable] | None = None,
    answers: Sequence[Recommendation] | None = None,
    painters: Painters | None = None,
) -> Page:
    """Write report.html into the folder, and the figures into figures/ there, over those of an earlier page.

    results: of one sweep or of several, as their grids show them; strategies that come to one plan are rows of their
    own. sweeps: where they come from. shown, answers: their tables and what they say to deploy, where those are there
    already. painters: that draw the figures side by side.
    """
    folder.mkdir(parents=True, exist_ok=True)
    html = folder / "report.html"
    drawn = figures.draw(results, folder / "figures", shown, painters)
    html.write_text(public(render(results, drawn, sweeps, shown, answers)), encoding="utf-8")
    return Page(html, len(drawn))


def attempt(
    results: Results,
    folder: Path,
    *,
    sweeps: Sequence[Sweep] = (),
    shown: Sequence[ScoreTable] | None = None,
    answers: Sequence[Recommendation] | None = None,
    painters: Painters | None = None,
) -> tuple[Page | None, str]:
    """As `write`, for whom the page is not what matters: the page and where it lies, or None and why there is none."""
    try:
        page = write(results, folder, sweeps=sweeps, shown=shown, answers=answers, painters=painters)
    except Exception as error:  # whatever a drawing, or a disk, comes to
        log.debug("no page", exc_info=True)
        return None, f"no page was written ({public(first_line(error))}); `ropewalk report` tries again"
    return page, str(page)


def warm(painters: Painters | None = None) -> None:
    """Have painters begin, or import what draws; and read the template. That takes a second."""
    if painters is None:
        canvas.warm()
    else:
        painters.begin()
    _template()


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")


def render(
    results: Results,
    drawn: Sequence[Figure],
    sweeps: Sequence[Sweep] = (),
    shown: Sequence[ScoreTable] | None = None,
    answers: Sequence[Recommendation] | None = None,
) -> str:
    """The page as text."""
    command = sweeps[-1].command if sweeps else "ropewalk grid"
    answers = answers or recommend.recommendations(results, command=command) or [recommend.recommend(results)]
    look = palette.styles(cell.strategy_label for cell, _ in figures.asked(results))
    parts: list[Section] = sections(results, drawn, sweeps, answers, shown)
    page: str = _template().render(
        title=_title(results, answers),
        answers=answers,
        sections=parts,
        look=look,
        styled=lambda label: look.get(label) or palette.known(label),
        picture=lambda figure: inline(figure.svg.read_text(encoding="utf-8"), figure.title),
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        script=(HERE / "report.js").read_text(encoding="utf-8"),
    )
    return page


def _title(results: Results, answers: Sequence[Recommendation]) -> str:
    models = ", ".join(dict.fromkeys(cell.model.name for cell, _ in results)) or "nothing measured"
    target = max((answer.target or 0 for answer in answers), default=0)
    return f"{models}: which RoPE scaling{f' at {target:,} tokens' if target else ''}?"
