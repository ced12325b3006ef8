"""The command line: what is rewritten, what is refused, with which exit code and which sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import PROJECT, ropewalk

from pipelines.cli.main import RESUMED, VERBS, run


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["grid", "model=random", "strategy=yran", "length=64"], ["yran", "yarn"]),
        (["grid", "model=random", "strategy=yarn", "strategy.beta_fst=3", "length=64"], ["beta_fst"]),
        (["grid", "model=random", "strategy=yarn", "strategy.beta_fast=abc", "length=64"], ["beta_fast", "abc"]),
        (["grid", "model=random", "length=1"], ["length=1", "2"]),
        (["grid", "model=random", "length=abc"], ["abc", "Integer"]),
        (["grid", "model=random", "lenght=64"], ["lenght"]),
        (["grid", "model=random", "strategy=linear", "factor=1", "length=64"], ["factor=1", "above 1"]),
        (["grid", "model=random", "strategy=yarn", "factor=0.5", "length=64"], ["factor=0.5", "above 1"]),
        (["grid", "model=random", "strategy=none"], ["length"]),
        (["grid", "model=random", "length=64", "limit=0"], ["limit=0"]),
        (["grid", "model=random", "length=64", "dtype=int8"], ["int8"]),
        (["grid", "model=./no/such/folder", "length=64"], ["no/such/folder"]),
        (["grid", "model=random", "length=64", "task.text=./no/such/text"], ["no/such/text"]),
        (["grid", "model=random", "length=64", "task=no_such_task"], ["no_such_task"]),
        (["grid", "model=random", "length=64", "cluster=gpu"], ["no NVIDIA GPU", "cluster=cpu"]),
        (["gird"], ["gird", "grid"]),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) and value[0] == "grid" else None,
)
def test_bad_input_is_refused_in_a_sentence_with_exit_code_2(arguments, told, tmp_path):
    ran = ropewalk(*arguments, ROPEWALK_STORE=str(tmp_path / "store"))
    assert ran.returncode == 2, ran.stdout + ran.stderr
    for words in told:
        assert words in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "store").exists(), "something was written for a grid that was refused"


def test_text_shorter_than_the_length_is_refused_before_a_model_loads(tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    ran = ropewalk(
        "grid",
        "model=random",
        "length=64",
        f"task.text={tmp_path / 'short.txt'}",
        ROPEWALK_STORE=str(tmp_path / "store"),
    )
    assert ran.returncode == 2
    assert "64" in ran.stderr and "short.txt" in ran.stderr and "Traceback" not in ran.stderr


def test_another_package_called_rope_is_named(tmp_path):
    other = tmp_path / "rope"
    other.mkdir()
    (other / "__init__.py").write_text("")
    folders = [str(tmp_path), str(PROJECT)]
    script = f"import sys; sys.path[:0] = {folders!r}; from pipelines.cli.main import run; run(['--help'])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 2 and "not ours" in ran.stderr


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_ctrl_c_tells_what_goes_on_only_where_something_does(monkeypatch, capsys, verb):
    def stopped(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, verb, stopped)
    assert run([verb, "x=a b"]) == 130
    told = capsys.readouterr().err
    assert "stopped" in told and (f"ropewalk {verb} 'x=a b'" in told) == (verb in {*RESUMED})
    assert {"grid", "tune"} <= RESUMED and "doctor" not in RESUMED
