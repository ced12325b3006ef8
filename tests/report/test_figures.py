"""Figures: which are drawn of what, as PNG and SVG, with the data that they show."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
from measured import TRAINED, cell_of, measured, perplexity

from pipelines.report import drawing, figures, short, tables
from pipelines.report.palette import style


@pytest.fixture(autouse=True)
def trained_on_512(monkeypatch):
    assert short.trained_length
    monkeypatch.setattr(short, "trained_length", lambda cell: TRAINED)


def kinds(rows, folder):
    return [one.kind for one in figures.draw(rows, folder)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short, "trained_length", lambda cell: TRAINED)
        return figures.draw(measured(), tmp_path_factory.mktemp("drawn"))


def test_a_grid_of_two_tasks_has_every_figure(drawn):
    first, second = (
        [one.kind for one in drawn if f", {task}" in one.title and one.kind != "plans"]
        for task in ("perplexity", "passkey")
    )
    assert first == [
        "score",
        "gain",
        "gain by position",
        "gain by distance",
        "nll by position",
        "effective length",
        "cost",
    ]
    assert second == ["score", "gain", "retrieval", *["effective length"] * 3]
    assert [one.kind for one in drawn].count("plans") == 1 and len(drawn) == 14


def test_every_figure_is_a_png_an_svg_and_its_data_as_csv(drawn):
    for one in drawn:
        assert one.path.read_bytes().startswith(b"\x89PNG") and "<svg" in one.svg.read_text()
        with one.csv.open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == list(one.header) and rows == [["" if v is None else str(v) for v in row] for row in one.rows]
        assert rows and one.says.endswith(".")


def test_figures_ask_for_no_font_and_have_text_as_paths(drawn):
    for one in drawn:
        svg = one.svg.read_text()
        assert "<text" not in svg and "@font-face" not in svg and "DejaVuSans" in svg


def test_the_data_of_a_score_are_the_results_with_their_intervals(drawn):
    score = drawn[0]
    rows = {(label, length): (value, low, high) for label, length, value, low, high in score.rows}
    for cell, result in measured(passkeys=False):
        value, low, high = rows[cell.strategy_label, cell.length]
        assert value == result.metrics["ppl"]
        assert (high - low) / 2 == pytest.approx(1.96 * result.metrics["ppl_stderr"])


def test_a_gain_is_drawn_as_the_table_has_it(drawn):
    [shown] = tables.tables(measured(passkeys=False))
    gain = next(one for one in drawn if one.kind == "gain")
    [standing] = [one for one in shown.gains.standings if one.strategy == "yarn"]
    wanted = [(n, 100 * g.gain, 100 * g.low, 100 * g.high) for n, g in sorted(standing.gains.items())]
    got = [row[1:] for row in gain.rows if row[0] == "yarn"]
    assert got == pytest.approx(np.array(wanted)) and got[-1][1] > 0


def test_a_gain_by_distance_names_pairs_that_never_stood_before(drawn):
    one = next(one for one in drawn if one.kind == "gain by distance")
    rows = [row[1:] for row in one.rows if row[0] == "yarn"]
    assert [end for end, *_ in rows] == [16, 32, 64, 128, 256, 512, 1024, 2048, "never before"]
    by_id = {cell.strategy: result for cell, result in measured(passkeys=False) if cell.length == 2048}
    saved = np.array([[d["nll"] for d in by_id[name].documents] for name in ("crop", "yarn")])
    assert [gain for _, gain, *_ in rows] == pytest.approx([(saved[0] - saved[1]).mean()] * 9)
    assert "never stood before" in one.says and "yarn" in one.says


def test_a_strategy_has_its_own_colour_in_every_figure(drawn):
    for one in drawn:
        if one.kind not in (
            "retrieval",
            "gain",
            "gain by position",
            "gain by distance",
            "effective length",
        ):  # of these none is no part
            assert style("none").colour in one.svg.read_text()
        if one.kind != "retrieval":
            assert style("yarn").colour in one.svg.read_text()
        assert 'id="strategy:yarn:' in one.svg.read_text()


@pytest.mark.parametrize(("highest", "log"), [(9.0, False), (300.0, True)])
def test_values_over_more_than_a_decade_are_drawn_on_a_log_scale(tmp_path, monkeypatch, highest, log):
    scales = []
    draw = drawing._scales

    def spy(axes, *rest):
        draw(axes, *rest)
        scales.append(axes.get_yscale())

    monkeypatch.setattr(drawing, "_scales", spy)
    curves = {"none": [(512.0, 3.0, None, None), (1024.0, highest, 2.0, highest + 1)]}
    drawing.lines(curves, tmp_path / "a.png", drawing.Axes("length", "ppl", "a", 512, doubling=True))
    assert scales == ["log" if log else "linear"]


def test_results_of_several_texts_are_figures_of_their_own():
    rows = measured(passkeys=False)
    other = [
        (replace(cell, task=replace(cell.task, options=(("text", "bible"),)), data="d2"), result)
        for cell, result in rows
    ]
    assert list(figures.settings(rows)) == ["tiny, perplexity"]
    assert list(figures.settings([*rows, *other])) == ["tiny, perplexity, text=pydoc", "tiny, perplexity, text=bible"]


def test_one_length_is_drawn_as_numbers_below_each_other(tmp_path):
    drawn = figures.draw(measured(lengths=[512], passkeys=False), tmp_path)
    assert [one.kind for one in drawn] == ["score", "nll by position", "cost", "plans"]
    assert len(drawn[0].rows) == 4


def test_what_has_no_number_is_not_drawn(tmp_path):
    rows = [(cell, replace(result, status="oom", metrics={}, series={}, cost={}, documents=[])) for cell, result in
            measured(passkeys=False)]  # fmt: skip
    assert kinds(rows, tmp_path) == ["plans"]
    assert figures.draw([], tmp_path) == []


def test_options_of_a_strategy_are_told_apart(tmp_path):
    cells = [cell_of("yarn", length, beta_fast=fast) for fast in (16.0, 32.0) for length in (1024, 2048)]
    figures.draw([(cell, perplexity(cell, 0.0)) for cell in cells], tmp_path)
    svg = (tmp_path / "tiny_perplexity_ppl.svg").read_text()
    assert set(re.findall(r'id="strategy:(.*?):', svg)) == {"yarn beta_fast=16.0", "yarn beta_fast=32.0"}


def test_fifty_curves_leave_room_for_the_axes(tmp_path):
    curves = {f"yarn factor={n} beta_fast={3 * n}": [(512.0, 20.0 + n, 19.0 + n, 21.0 + n)] for n in range(50)}
    labels = drawing.Axes("length", "ppl", "tiny", trained=512, doubling=True)
    svg = drawing.lines(curves, tmp_path / "many.png", labels).with_suffix(".svg").read_text()
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    assert width == pytest.approx(72 * drawing.WIDTH) and height > 72 * (2.8 + 0.19 * 25)
    assert len(set(re.findall(r'id="strategy:(.*?):name"', svg))) == 50


def test_figures_of_other_rooms_are_png_and_svg_in_a_folder_of_their_own(tmp_path):
    spectrum = drawing.Spectrum("truncated", [1.0, 0.1, 0.0], [6.28, 62.8, np.inf])
    paths = [
        drawing.spectra([spectrum], {"trained length": 512.0}, "tiny", tmp_path / "a" / "spectra.png"),
        drawing.beside({"yarn": [(0, 3.5, 3.6), (1, None, 40.0)]}, ["2k", "4k"], "a table", tmp_path / "beside.png"),
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.with_suffix(".svg").is_file() for path in paths)
