"""The page: what stands in it, in which order, whatever there is to show; and that it asks for nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from measured import TRAINED, cell_of, measured, perplexity
from support import CELL

from pipelines.choices.sweep import Sweep
from pipelines.cli.main import run
from pipelines.records.cells import Result
from pipelines.records.results import Store
from pipelines.report import figures, page, recommend, short
from pipelines.report.recommend import Recommendation

ANSWER = Recommendation(
    "use", "yarn", ("Use <yarn>: +6 %.", "It costs nothing."), "ropewalk export abc --to all", "tiny"
)


@pytest.fixture(autouse=True)
def constructed(monkeypatch):
    assert short.trained_length
    monkeypatch.setattr(short, "trained_length", lambda cell: TRAINED)
    assert recommend.recommend
    monkeypatch.setattr(recommend, "recommend", lambda rows, **_: ANSWER if rows else Recommendation("incomplete", None, ("Nothing was measured.",)))  # fmt: skip  # noqa: E501


class Outline(HTMLParser):
    """A page's headings, elements without an end, and attributes that could ask for something."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self, text):
        super().__init__()
        self.headings, self.open, self.addresses, self.ids, self.cells = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.addresses += [given[n] for n in ("src", "href", "xlink:href", "action", "data") if n in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")
        if tag == "th":
            self.cells.append(given.get("scope"))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.headings[-1] += data


def sweep_of(rows):
    return Sweep("first", tuple(cell for cell, _ in rows), "ropewalk grid --of tests", code={})


def written(rows, folder, **sweeps):
    made = page.write(rows, folder, **sweeps)
    text = made.html.read_text(encoding="utf-8")
    return made, text, Outline(text)


def test_the_page_says_everything_in_its_order(tmp_path):
    rows = measured()
    failed = [(cell, replace(result, status="failed", error="Traceback\nValueError: <b>planted</b>")) for cell, result in rows[-1:]]  # fmt: skip  # noqa: E501
    made, text, outline = written([*rows[:-1], *failed], tmp_path, sweeps=[sweep_of(rows)])
    assert outline.headings == [
        *("The answer", "The table", "Score against length", "Context gain", "NLL by position"),
        *("Retrieval by length and depth", "Effective length", "Frequencies of the plans"),
        *("Seconds, tokens a second, memory", "Which differences are more than chance"),
        *("Failed, invalid and out of memory", "Where the numbers come from", "Deploy"),
    ]
    assert not outline.open
    assert "Use &lt;yarn&gt;: +6 %." in text and "ropewalk export abc --to all" in text
    assert "ValueError: &lt;b&gt;planted&lt;/b&gt;" in text and "1 failed" in text
    for fact in ("ropewalk grid --of tests", "abcdef0", "2.9.0", "a device", "Python Software Foundation License"):
        assert fact in text, fact
    assert text.count("<figure>") == made.count == len(list(made.figures.glob("*.png"))) == 14


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of a whole grid: its text and its outline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short, "trained_length", lambda cell: TRAINED)
        patch.setattr(recommend, "recommend", lambda rows, **_: ANSWER)
        return written(measured(), tmp_path_factory.mktemp("whole"), sweeps=[sweep_of(measured())])[1:]


def test_the_page_asks_for_nothing_from_anywhere(whole):
    text, outline = whole
    assert [address for address in outline.addresses if not address.startswith(("#", "data:,"))] == []
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttp|WebSocket|import\(", text)
    assert "default-src 'none'" in text


def test_a_screen_reader_finds_language_headings_headers_and_texts_for_figures(whole):
    text, outline = whole
    assert '<html lang="en">' in text and text.count("<h1>") == 1
    assert outline.cells and None not in outline.cells
    assert text.count('role="img" aria-label=') == text.count("<figcaption>") == text.count("<figure>")
    assert text.count("<caption>") == text.count("<table>")
    own = [name for name in outline.ids if not re.match(r"DejaVu|[mpC][0-9a-f_]+", name)]  # of shapes in figures
    assert len(own) == len(set(own))


def test_figures_take_the_colours_of_the_page_and_name_their_strategies(whole):
    text, _ = whole
    pictures = re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL)
    for picture in pictures:
        assert "#1f2428" not in picture and "#ffffff" not in picture and "currentColor" in picture
        assert 'data-s="yarn"' in picture and 'id="strategy' not in picture


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(lambda: measured(["yarn"], [1024]), id="one strategy at one length"),
        pytest.param(lambda: measured(["none", "yarn"], [512]), id="one length"),
        pytest.param(lambda: measured(["linear"]), id="one strategy"),
        pytest.param(
            lambda: [(c, Result(c.id, "oom", error="CUDA out of memory")) for c, _ in measured()], id="all failed"
        ),
        pytest.param(list, id="nothing at all"),
        pytest.param(lambda: [(CELL, Result(CELL.id, "invalid", error="a reason"))], id="one invalid"),
    ],
)
def test_there_is_a_sensible_page_of(rows, tmp_path):
    results = rows()
    _, text, outline = written(results, tmp_path)
    assert outline.headings[:2] == ["The answer", "The table"] and not outline.open
    assert "Failed, invalid and out of memory" in outline.headings
    assert ("There are no results yet." in text) == (not results)
    assert "nan" not in re.sub(r"<svg.*?</svg>|<script.*?</script>", "", text, flags=re.DOTALL).lower().split()
    for _, result in results:
        assert (result.error or "ok") in text


def test_cells_that_were_not_run_are_not_hidden(tmp_path):
    rows = measured(passkeys=False)
    _, text, _ = written(rows[:-1], tmp_path, sweeps=[sweep_of(rows)])
    assert f"{len(rows) - 1} ok, 1 not run" in text or "not run" in text
    assert rows[-1][0].id in text


def test_strategies_of_one_plan_are_rows_of_their_own_and_one_cell(tmp_path):
    rows = measured(["none", "yarn"], [512], passkeys=False)
    assert rows[0][0].id == rows[1][0].id
    _, text, _ = written(rows, tmp_path, sweeps=[sweep_of(rows)])
    assert "Of all cells: 1 ok." in text and text.count('data-s="yarn"') > 2


def test_nothing_private_is_on_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("A_TOKEN", "planted-secret")
    cell, _ = measured()[0]
    rows = [(cell, Result(cell.id, "failed", error="no /home/ada/model with planted-secret"))]
    _, text, _ = written(rows, tmp_path)
    assert "/home/ada" not in text and "planted-secret" not in text and "~/model" in text


def test_a_page_that_cannot_be_drawn_is_a_sentence(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no fonts here\nand more")

    monkeypatch.setattr(figures, "draw", broken)
    assert page.attempt(measured(), tmp_path) == (
        None,
        "no page was written (no fonts here); `ropewalk report` tries again",
    )


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    for number, strategies in enumerate((["none", "yarn"], ["none", "linear"])):
        rows = measured(strategies, [512, 1024], passkeys=False)
        for cell, result in rows:
            store.save(cell, result)
        sweep = replace(sweep_of(rows), created=f"2026-11-2{number}T10:00:00+00:00")
        store.save_sweep(sweep.id, sweep.spec())
    return store


def test_report_without_a_name_is_of_the_latest_sweep(store, capsys):
    assert run(["report", f"store={store.root}"]) == 0
    latest = max(store.root.glob("sweeps/*"))
    assert capsys.readouterr().out.startswith(f"page: {latest / 'report.html'}; 4 figures")
    assert (
        "linear" in (latest / "report.html").read_text() and 'data-s="yarn"' not in (latest / "report.html").read_text()
    )


def test_report_of_several_sweeps_has_them_all_on_one_page(store, tmp_path):
    names = sorted(path.name for path in store.root.glob("sweeps/*"))
    assert run(["report", *names, "--out", str(tmp_path / "both"), f"store={store.root}"]) == 0
    text = (tmp_path / "both" / "report.html").read_text()
    assert all(word in text for word in ('data-s="linear"', 'data-s="yarn"', *names))
    assert run(["report", names[0][:12], names[1][:12], f"store={store.root}"]) == 0
    assert len(list(store.root.glob("reports/2026-11-21T100000-2-sweeps-*/report.html"))) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["2025"], "2025: nothing has an id that begins so"),
        (["2026-11-2"], "2 sweeps and cells have an id that begins so"),
        (["limit=3"], "ropewalk report takes store=..."),
    ],
)
def test_report_refuses_in_a_sentence(store, capsys, words, sentence):
    assert run(["report", *words, f"store={store.root}"]) == 2
    assert sentence in capsys.readouterr().err


def test_report_of_no_sweeps_says_what_to_do(tmp_path, capsys):
    assert run(["report", f"store={tmp_path}"]) == 2
    assert "there are no sweeps" in capsys.readouterr().err


@pytest.mark.slow
def test_five_hundred_cells_make_a_page_of_few_megabytes_in_seconds(tmp_path):
    import time

    strategies = [(name, {"factor": n}) for n in range(1, 26) for name in ("yarn", "linear")]
    cells = [cell_of(name, 512 * 2**n, **options) for name, options in strategies for n in range(10)]
    rows = [(cell, perplexity(cell, 0.1)) for cell in cells]
    assert len(rows) == 500
    start = time.process_time()
    made = page.write(rows, tmp_path, sweeps=[sweep_of(rows)])
    spent = time.process_time() - start
    print(f"{spent:.1f} s, {made.html.stat().st_size / 1e6:.2f} MB")
    assert made.html.stat().st_size < 5e6 and spent < 20
