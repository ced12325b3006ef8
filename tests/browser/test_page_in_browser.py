"""The page in a browser: legible, quiet, and every button of it works; also in the frame in which MLflow shows it."""

from __future__ import annotations

import csv
import io

import pytest
from measured import TRAINED, measured

from pipelines.report import page, recommend, short
from pipelines.report.recommend import Recommendation

pytestmark = pytest.mark.slow

ANSWER = Recommendation("use", "yarn", ("Use yarn.", "It costs nothing."), "ropewalk export abc --to all", "tiny")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short, "trained_length", lambda cell: TRAINED)
        patch.setattr(recommend, "recommend", lambda rows, **_: ANSWER)
        return page.write(measured(), tmp_path_factory.mktemp("page")).html


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_asks_for_nothing_and_complains_of_nothing(visit, html, width, dark):
    opened = visit(html.as_uri(), width=width, dark=dark)
    assert opened.errors == [] and opened.requests == [html.as_uri()]
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    ink, ground = (
        opened.page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)")
        for name in ("color", "backgroundColor")
    )
    assert (sum(ink) > sum(ground)) == dark and abs(sum(ink) - sum(ground)) > 500
    figures = opened.page.locator("figure svg")
    assert figures.count() == 14
    axis = figures.first.evaluate("svg => getComputedStyle(svg).color.match(/\\d+/g).map(Number)")
    assert axis == ink


def test_a_strategy_goes_and_comes_by_its_button_and_by_the_legend_of_a_figure(visit, html):
    opened = visit(html.as_uri()).page
    drawn = opened.locator("figure svg").first.locator('.s:not(.key)[data-s="yarn"]').first
    row = opened.locator('#table tr[data-s="yarn"]').first
    button = opened.locator('#legend button[data-s="yarn"]')
    assert drawn.is_visible() and row.is_visible() and button.get_attribute("aria-pressed") == "true"
    button.press("Enter")
    assert not drawn.is_visible() and not row.is_visible() and button.get_attribute("aria-pressed") == "false"
    opened.locator("figure svg").first.locator('.key[data-s="yarn"]').last.click(force=True)
    assert drawn.is_visible() and row.is_visible()
    button.click()
    opened.locator("#all").click()
    assert drawn.is_visible()


def test_what_is_hidden_takes_no_letter_of_another_with_it(visit, html):
    """Shapes of letters are defined where they are first used."""
    opened = visit(html.as_uri()).page
    title = opened.locator("figure svg").first.locator("g > use").first
    before = title.bounding_box()
    for button in opened.locator("#legend button[data-s]").all():
        button.click()
    after = title.bounding_box()
    assert [after[name] for name in ("x", "width", "height")] == pytest.approx(
        [before[name] for name in ("x", "width", "height")]
    )


def test_tables_are_sorted_filtered_and_given_as_csv(visit, html):
    opened = visit(html.as_uri()).page
    opened.locator("figure summary").first.click()
    table = opened.locator("figure details table").first
    heads = table.locator("thead button")
    heads.nth(2).click()
    values = [
        float(cell) for cell in table.locator("tbody tr td:nth-child(3)").evaluate_all("c => c.map(x => x.dataset.v)")
    ]
    assert values == sorted(values) and table.locator("th").nth(2).get_attribute("aria-sort") == "ascending"
    heads.nth(2).click()
    assert table.locator("th").nth(2).get_attribute("aria-sort") == "descending"
    card = opened.locator("figure details .card").first
    card.locator("input").fill("yarn 2,048")
    assert table.locator("tbody tr:visible").count() == 1
    card.locator(".bar button").click()
    shown = list(csv.reader(io.StringIO(card.locator("textarea").input_value())))
    [beside] = html.parent.glob("figures/tiny_perplexity_ppl.csv")
    wanted = list(csv.reader(io.StringIO(beside.read_text())))
    numbers = [[row[0], *(float(value) if value else None for value in row[1:])] for row in wanted[1:]]
    assert shown[0] == wanted[0]
    assert sorted([row[0], *(float(v) if v else None for v in row[1:])] for row in shown[1:]) == sorted(numbers)


def test_the_page_works_in_a_frame_that_allows_scripts_alone(visit, html, tmp_path):
    frame = tmp_path / "frame.html"
    frame.write_text(f'<iframe sandbox="allow-scripts" src="{html.as_uri()}" width="900" height="700"></iframe>')
    opened = visit(frame.as_uri())
    inside = opened.page.frame_locator("iframe")
    inside.locator('#legend button[data-s="yarn"]').click()
    assert inside.locator('#table tr[data-s="yarn"]').first.is_hidden()
    inside.locator("#table .bar button").first.click()
    assert inside.locator("#table textarea").first.input_value().startswith("strategy,")
    assert opened.errors == [] and opened.requests == [frame.as_uri(), html.as_uri()]


def test_print_has_the_answer_and_the_figures_and_no_buttons(visit, html):
    opened = visit(html.as_uri(), dark=True).page
    opened.emulate_media(media="print")
    assert opened.locator("#answer").is_visible() and opened.locator("figure svg").first.is_visible()
    assert not opened.locator("#legend").is_visible() and not opened.locator(".bar button").first.is_visible()
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
