"""A model is known by every byte that decides its numbers, and its files are read once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from pipelines.models import digest, find
from pipelines.records.cells import Model

LARGE, UNSAMPLED = 24 << 20, 5 << 18
"""Bytes of a large file, and the place of one between two samples of the sampled digest."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files of a checkpoint, whose weights are above the size that was sampled."""
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    (folder / "more").mkdir(parents=True)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_text("{}")
    for name in ("merges.txt", "vocab.json", "chat_template.jinja", "adapter_model.bin", "spiece.model"):
        (folder / name).write_text('{"a": 1}')
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "more/2.safetensors"}}))
    (folder / "more" / "2.safetensors").write_bytes(b"0" * 64)
    (folder / "model.safetensors").write_bytes(b"0" * LARGE)
    return folder


def fingerprint(folder):
    return find.describe(Model("m", str(folder)))[0].fingerprint


def edited(file: Path, at: int) -> None:
    """One byte of a file changed in place, its size and time of writing as before."""
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "merges.txt",
        "vocab.json",
        "chat_template.jinja",
        "adapter_model.bin",
        "spiece.model",
        "model.safetensors",
        "more/2.safetensors",
    ],
)
def test_one_byte_of_any_file_that_decides_a_number_changes_the_fingerprint(folder, name):
    before = fingerprint(folder)
    file = folder / name
    if file.suffix == ".json":
        file.write_text(file.read_text() + " ")
    else:
        edited(file, UNSAMPLED if file.stat().st_size > digest.SMALL else 3)
    assert fingerprint(folder) != before


def test_the_sampled_digest_did_not_see_such_a_byte(folder):
    files = [("w", folder / "model.safetensors")]
    before = digest.sampled_digest(files)
    edited(files[0][1], UNSAMPLED)
    assert digest.sampled_digest(files) == before


def test_a_readme_beside_a_model_is_not_its_content(folder):
    before = fingerprint(folder)
    (folder / "README.md").write_text("about")
    (folder / "LICENSE.txt").write_text("about")
    assert fingerprint(folder) == before


def test_a_large_file_is_read_once_and_again_after_any_change(folder, monkeypatch):
    read = []

    class Counted:
        AUTO = digest.blake3.AUTO

        def __new__(cls, **options):
            read.append(1)
            return original(**options)

    original = digest.blake3
    monkeypatch.setattr(digest, "blake3", Counted)
    weights = folder / "model.safetensors"
    monkeypatch.setattr(digest, "SETTLED", -1.0)
    first = digest.file_digest(weights)
    assert digest.file_digest(weights) == first and len(read) == 1
    edited(weights, 7)
    assert digest.file_digest(weights) != first and len(read) == 2
    weights.write_bytes(b"0" * LARGE)
    assert digest.file_digest(weights) == first and len(read) == 3


def test_a_file_that_was_written_this_moment_is_not_remembered(folder, tmp_path):
    digest.file_digest(folder / "model.safetensors")
    assert not (tmp_path / "cache" / "digests").exists()


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"state": [1], "blake3": 5}'])
def test_a_damaged_memory_of_a_digest_is_not_believed(folder, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(digest, "SETTLED", -1.0)
    first = digest.file_digest(folder / "model.safetensors")
    [kept] = (tmp_path / "cache" / "digests").iterdir()
    kept.write_text(damage)
    assert digest.file_digest(folder / "model.safetensors") == first


def test_reading_for_long_is_announced_with_its_size_and_only_when_it_is_read(folder, monkeypatch, capsys):
    monkeypatch.setattr(digest, "LONG", digest.SMALL)
    monkeypatch.setattr(digest, "SETTLED", -1.0)
    for said in (1, 0):
        fingerprint(folder)
        assert capsys.readouterr().err.count("of weights in") == said


def test_a_model_of_small_files_keeps_the_fingerprint_of_earlier_versions(folder):
    (folder / "model.safetensors").write_bytes(b"0" * 4096)
    for name in ("merges.txt", "chat_template.jinja"):
        (folder / name).unlink()
    (folder / "more" / "2.safetensors").rename(folder / "2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "2.safetensors"}}))
    assert find.earlier_fingerprint(Model("m", str(folder))) is None
    (folder / "merges.txt").write_text("a b")
    assert find.earlier_fingerprint(Model("m", str(folder))) not in (None, fingerprint(folder))


def test_a_change_of_any_file_is_dated(folder):
    (folder / "merges.txt").write_text("a b")
    assert abs(find.changed_at(Model("m", str(folder))) - time.time()) < 60
