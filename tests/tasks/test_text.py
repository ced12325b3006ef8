"""Sources of text: what they hold, how they are cut, and what is said of bad ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import PROJECT

from pipelines.records.cells import Refusal
from pipelines.tasks import text


def letters(document: str) -> list[int]:
    return [ord(letter) for letter in document]


@pytest.fixture
def folder(tmp_path):
    for name, content in {"b.txt": "bb" * 10, "a.md": "a" * 7, "in/c.py": "c" * 30, "in/.hidden.txt": "h" * 99}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "latin.txt").write_bytes("né".encode("latin-1"))
    return tmp_path


@pytest.fixture
def data_set(tmp_path):
    rows = [{"text": "t" * n, "other": "o" * 9, "n": n} for n in (5, 50, 8, 80)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_a_stream_is_cut_into_consecutive_windows_that_begin_at_its_first_token(tmp_path):
    path = tmp_path / "stream.txt"
    path.write_text("".join(chr(97 + n % 26) for n in range(103)))
    found = text.windows(str(path), letters, 10)
    assert [window.start for window in found] == list(range(0, 100, 10))
    assert [number for window in found for number in window.ids] == letters(path.read_text())[:100]


def test_pydoc_is_one_stream():
    [first, second] = text.windows("pydoc", letters, 1000, count=2)
    assert text.is_stream("pydoc") and (first.start, second.start) == (0, 1000)
    [whole] = text.documents("pydoc")
    assert letters(whole)[:2000] == [*first.ids, *second.ids]


def test_the_parts_of_a_stream_share_no_token_at_any_length(tmp_path):
    path = tmp_path / "stream.txt"
    path.write_text("".join(chr(97 + n % 26) for n in range(1001)))
    seen = {part: set() for part in text.PARTS}
    for length in (7, 10, 333, 500):
        for part in text.PARTS:
            found = text.windows(str(path), letters, length, part=part)
            assert len(found) == (500 if part == "tune" else 501) // length
            seen[part] |= {n for window in found for n in range(window.start, window.start + length)}
    assert not seen["tune"] & seen["report"] and len(seen["tune"]) == 500 and len(seen["report"]) == 500


def test_the_parts_of_a_collection_share_no_document_at_any_length(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text(str(number) * (10 + 10 * number))
    for length in (5, 40):
        seen = {
            part: [w.document for w in text.windows(str(tmp_path), letters, length, part=part)] for part in text.PARTS
        }
        assert seen["tune"] == [n for n in range(9) if n % 2 == 0 and 10 + 10 * n >= length]
        assert seen["report"] == [n for n in range(9) if n % 2 == 1 and 10 + 10 * n >= length]


def test_what_is_skipped_is_the_beginning_of_what_there_would_be(tmp_path):
    path = tmp_path / "stream.txt"
    path.write_text("abcdefghij" * 20)
    for part in (None, "report"):
        whole = text.windows(str(path), letters, 9, part=part)
        assert text.windows(str(path), letters, 9, 3, part=part, skip=4) == whole[4:7]
    with pytest.raises(Refusal, match="skip=30 leaves none of the 22 of 9"):
        text.windows(str(path), letters, 9, skip=30)
    with pytest.raises(Refusal, match="part report, holds 100 tokens and 101 are needed"):
        text.windows(str(path), letters, 101, part="report")
    with pytest.raises(Refusal, match="part=test: give tune or report"):
        text.windows(str(path), letters, 9, part="test")


def test_the_standard_library_is_one_stream_without_tests_and_the_topics():
    [whole] = text.documents("stdlib")
    assert text.is_stream("stdlib") and text.digest("stdlib") != text.digest("pydoc")
    assert "def namedtuple(" in whole and "class TestCase(" in whole
    assert "pydoc_data" not in {path.parent.name for path in text.modules(Path(pathlib_folder()))}
    assert not [path for path in text.modules(Path(pathlib_folder())) if "test" in path.parts]


def pathlib_folder() -> str:
    import pathlib

    return str(Path(pathlib.__file__).parent)


def test_of_a_folder_each_document_long_enough_gives_its_beginning(folder):
    assert list(text.documents(str(folder))) == ["a" * 7, "bb" * 10, "c" * 30]
    found = text.windows(str(folder), letters, 20)
    assert [(window.document, window.start, len(window.ids)) for window in found] == [(1, 0, 20), (2, 0, 20)]


def test_a_count_above_what_there_is_gives_what_there_is(folder):
    assert len(text.windows(str(folder), letters, 7, count=2)) == 2
    assert len(text.windows(str(folder), letters, 7, count=100)) == 3


def test_a_data_set_gives_a_document_a_row(data_set):
    assert [len(document) for document in text.documents(f"hub:{data_set}")] == [5, 50, 8, 80]
    assert [len(document) for document in text.documents(f"hub:{data_set}@test:other")] == [9] * 4
    found = text.windows(f"hub:{data_set}", letters, 50, count=1)
    assert [window.document for window in found] == [1]


def test_a_data_set_is_read_only_as_far_as_needed(data_set, monkeypatch):
    monkeypatch.setattr(text, "READ_AT_MOST", 3)
    with pytest.raises(Refusal, match="3 documents, the longest of 50"):
        text.windows(f"hub:{data_set}", letters, 80)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hub:emozilla/pg19", ("emozilla/pg19", None, "test", "text")),
        ("hub:emozilla/pg19@validation", ("emozilla/pg19", None, "validation", "text")),
        ("hub:wikimedia/wikipedia/20231101.en@train:title", ("wikimedia/wikipedia", "20231101.en", "train", "title")),
        ("hub:a/b:content", ("a/b", None, "test", "content")),
    ],
)
def test_a_data_set_is_named_by_owner_name_config_split_and_field(source, parts):
    assert text.parse(source) == text.DataSet(*parts)


@pytest.mark.parametrize("source", ["hub:", "hub:pg19", "hub:a/b/c/d", "hub:a/b@", "hub:a/b@x@y", "hub:a//c"])
def test_a_malformed_data_set_is_refused_with_the_expected_grammar(source):
    with pytest.raises(Refusal, match=r"hub:OWNER/NAME\[/CONFIG\]"):
        text.parse(source)


def test_a_data_set_that_does_not_match_the_request_is_refused(data_set):
    with pytest.raises(Refusal, match="there is no folder"):
        text.digest(f"hub:{data_set}/nowhere")
    with pytest.raises(Refusal, match=r"no text in field n; its fields of text: text, other"):
        list(text.documents(f"hub:{data_set}:n"))
    with pytest.raises(Refusal, match="split train, cannot be read"):
        list(text.documents(f"hub:{data_set}@train"))


def test_text_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(Refusal, match="no such file or folder; give one, pydoc"):
        text.digest(str(tmp_path / "nowhere.txt"))
    with pytest.raises(Refusal, match="the folder holds no text file"):
        text.windows(str(tmp_path), letters, 1)
    (tmp_path / "latin.txt").write_bytes("né".encode("latin-1"))
    for source in (tmp_path, tmp_path / "latin.txt"):
        with pytest.raises(Refusal, match="not UTF-8"):
            text.digest(str(source))


def test_text_that_is_too_short_is_refused_with_its_size_and_the_size_needed(folder):
    with pytest.raises(Refusal, match=r"holds 30 tokens and 31 are needed .* choose a shorter length"):
        text.windows(str(folder / "in" / "c.py"), letters, 31)
    with pytest.raises(Refusal, match=r"has 3 documents, the longest of 30 tokens and 31 are needed"):
        text.windows(str(folder), letters, 31)


def test_a_digest_follows_the_text_and_nothing_else(folder, data_set):
    source, elsewhere = folder / "b.txt", folder / "copy" / "other.md"
    elsewhere.parent.mkdir()
    elsewhere.write_text(source.read_text())
    first = text.digest(str(source))
    assert first == text.digest(str(elsewhere)) and len(first) == 16
    source.write_text("changed!")
    assert text.digest(str(source)) != first
    before = text.digest(str(folder))
    (folder / "in" / "c.py").write_text("d" * 31)
    assert text.digest(str(folder)) != before
    rows = f"hub:{data_set}"
    assert text.digest(rows) == text.digest(rows) != text.digest(f"{rows}@test:other")


def test_a_folder_is_not_the_concatenation_of_its_files(tmp_path):
    for name, parts in {"one": ("ab", "c"), "two": ("a", "bc")}.items():
        (tmp_path / name).mkdir()
        for number, part in enumerate(parts):
            (tmp_path / name / f"{number}.txt").write_text(part)
    assert text.digest(str(tmp_path / "one")) != text.digest(str(tmp_path / "two"))


def test_reading_local_text_loads_nothing_heavy_and_digests_alike_in_every_process():
    script = (
        "import sys; from pipelines.tasks import text; print(text.digest('pydoc')); "
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'datasets', 'numpy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=True)
    outcome, heavy = ran.stdout.splitlines()
    assert outcome == text.digest("pydoc")
    assert set(json.loads(heavy.replace("'", '"'))) <= {"numpy"}


def test_a_stream_cut_by_stride_gives_pieces_that_do_not_overlap(tmp_path):
    path = tmp_path / "stream.txt"
    path.write_text("".join(chr(65 + n % 26) for n in range(100)))
    found = text.pieces(str(path), letters, text.Cut(10, 4, 10))
    assert [(w.start, len(w.ids)) for w in found] == [(start, 4) for start in range(0, 100, 10)]
    assert [len(w.ids) for w in text.pieces(str(path), letters, text.Cut(30, None, 40))] == [40, 40]
    assert [len(w.ids) for w in text.pieces(str(path), letters, text.Cut(30, None, None))] == [100]
