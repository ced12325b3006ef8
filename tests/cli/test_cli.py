"""The command line: what it reads, completes and refuses, with which exit code and which sentence."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys

import pytest
from support import PROJECT, ropewalk

from pipelines.cli import meanings, train
from pipelines.cli.main import RESUMED, VERBS, run


@pytest.mark.parametrize(
    ("arguments", "output"),
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
        (["gird"], ["gird", "grid"]),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) and value[0] == "grid" else None,
)
def test_bad_input_is_refused_in_a_sentence_with_exit_code_2(arguments, output, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROPEWALK_STORE", str(tmp_path / "store"))
    assert run(arguments) == 2
    said = capsys.readouterr().err
    for words in output:
        assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "store").exists(), "something was written for a grid that was refused"


def test_a_refusal_is_the_exit_code_and_the_last_words_of_the_process(tmp_path):
    ran = ropewalk("grid", "model=random", "length=64", "cluster=gpu", ROPEWALK_STORE=str(tmp_path / "store"))
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert "no NVIDIA GPU" in ran.stderr and "cluster=cpu" in ran.stderr and "Traceback" not in ran.stderr
    assert not (tmp_path / "store").exists()


def test_text_shorter_than_the_length_is_refused_before_a_model_loads(tmp_path, monkeypatch, capsys):
    (tmp_path / "short.txt").write_text("too short")
    monkeypatch.setenv("ROPEWALK_STORE", str(tmp_path / "store"))
    assert run(["grid", "model=random", "length=64", f"task.text={tmp_path / 'short.txt'}"]) == 2
    said = capsys.readouterr().err
    assert "64" in said and "short.txt" in said and "Traceback" not in said


def test_another_package_called_rope_is_named(tmp_path):
    other = tmp_path / "rope"
    other.mkdir()
    (other / "__init__.py").write_text("")
    folders = [str(tmp_path), str(PROJECT)]
    script = f"import sys; sys.path[:0] = {folders!r}; from pipelines.cli.main import run; run(['--help'])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 2 and "not ours" in ran.stderr


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_ctrl_c_says_that_a_command_continues_only_where_it_does(monkeypatch, capsys, verb):
    def stopped(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(VERBS[verb], "run", stopped)
    assert run([verb, "x=a b"]) == 130
    message = capsys.readouterr().err
    assert "stopped" in message and (f"ropewalk {verb} 'x=a b'" in message) == (verb in {*RESUMED})
    assert {"grid", "tune"} <= RESUMED and "doctor" not in RESUMED


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_a_help_of_its_own(verb, capsys):
    assert run([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: ropewalk {verb} ") and "-h, --help" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_help_describes_every_key_group_and_option(capsys):
    run(["grid", "--help"])
    text = capsys.readouterr().out
    assert re.search(r"length +int +- +tokens of context under test", text)
    assert re.search(r"limit +int +null +documents a task", text)
    for group in ("model", "strategy", "task", "cluster", "experiment"):
        for name in meanings.values(group):
            assert name in text
    run(["theory", "--help", "strategy=yarn,dynamic_yarn", "task=passkey"])
    text = capsys.readouterr().out
    assert re.search(r"strategy\.beta_fast +float +32\.0 +rotations within the trained length", text)
    assert re.search(r"strategy\.over +text +yarn ", text), "a preset has the options of what it is made from"
    assert re.search(r"task\.keys +int +2 +at every depth", text)


def test_every_option_has_a_meaning():
    keys = [*meanings.top_keys(), *train.recipe_keys()]
    for group in ("model", "strategy", "task", "cluster"):
        keys += [key for name in meanings.values(group) for key in meanings.options(group, name)]
    assert [key.name for key in keys if not key.meaning] == []


def test_help_has_the_defaults_of_the_code(capsys):
    from pipelines.doctor.profile import BUDGET
    from rope.dialects import ENGINES

    run(["doctor", "--help"])
    assert re.search(rf"budget +int +{BUDGET:.0f} ", capsys.readouterr().out)
    run(["export", "--help"])
    text = capsys.readouterr().out
    engines = text.partition("Engines:\n")[2].partition("Weights")[0]
    names = [name for line in engines.splitlines() for name in re.split(r"  +", line.strip())[0].split(", ")]
    assert sorted(filter(None, names)) == sorted(ENGINES)


def test_the_version_is_that_of_the_package(capsys):
    for words in (["--version"], ["grid", "--version"]):
        assert run(words) == 0
        assert capsys.readouterr().out == f"ropewalk {importlib.metadata.version('ropewalk')}\n"


def test_options_and_overrides_come_in_any_order(monkeypatch):
    seen = []
    monkeypatch.setattr(VERBS["plan"], "run", lambda options: seen.append((options.words, options.json)) or 0)
    for words in (["a=1", "--json", "b=2"], ["--json", "a=1", "b=2"], ["a=1", "b=2", "--json"]):
        assert run(["plan", *words]) == 0
    assert seen == [(["a=1", "b=2"], True)] * 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--josn"], "ropewalk has no option --josn"),
        (["grid", "--jobs"], "ropewalk grid has no option --jobs"),
        (["theory", "--jason", "length=64"], "did you mean --json?"),
        (["grid", "--shell-completion", "install=bash"], "ropewalk --shell-completion bash"),
        (["grid", "--cfg", "jobs"], "invalid choice: 'jobs'"),
        (["grid", "--cfg", "job", "length=64,128"], "length=64,128: give one value here, without commas"),
        (["grid", "length"], "length: give KEY=VALUE"),
        (["doctor", "taget=512"], "taget=512: did you mean target=...?"),
        (["theory", "out=a", "out=b"], "out is given twice"),
        (["tune", "tune.trails=4"], "tune.trails=4: did you mean tune.trials=...?"),
        (["reproduce", "published=yarn_table2", "--fast"], "ropewalk reproduce has no option --fast"),
        (["reproduce", "rows=1"], "published=NAME is missing"),
        (["reproduce", "published=yarn_table2", "strategy=yarn"], "strategy=... is the table's own"),
        (["reproduce", "published=yarn_table2", "model=tiny"], "add --transfer"),
        (["sync", "stroe=x"], "did you mean store=...?"),
        (["sync", "force=maybe"], "force=maybe: give true or false"),
        (["ui", "5000", "5001"], "5001: ropewalk ui takes one port"),
        (["train", "recipe=nope"], "recipe=nope"),
        (["gird"], "did you mean grid?"),
    ],
)
def test_a_misspelt_command_line_is_refused_in_a_sentence(words, sentence, capsys):
    assert run(words) == 2
    message = capsys.readouterr().err
    assert sentence in message and message.startswith("ropewalk: ") and message.count("\n") == 1


def test_hydras_own_options_show_and_run_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ROPEWALK_STORE", str(tmp_path / "store"))
    assert run(["grid", "--cfg", "job", "--package", "strategy", "strategy=yarn", "length=64"]) == 0
    assert "name: yarn" in capsys.readouterr().out
    assert run(["plan", "--info", "searchpath"]) == 0
    assert "conf" in capsys.readouterr().out
    assert run(["grid", "--hydra-help"]) == 0
    assert "hydra/launcher: basic" in capsys.readouterr().out
    assert not (tmp_path / "store").exists()


def test_a_folder_of_own_configs_is_added_by_config_dir(capsys, tmp_path):
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text("name: yarn\nbeta_fast: 8.0\n")
    assert run(["theory", "--json", "--config-dir", str(tmp_path), "model=random", "strategy=mine", "length=512"]) == 0
    [plan] = json.loads(capsys.readouterr().out)
    assert plan["options"] == {"beta_fast": 8.0}


COMPLETIONS = [
    ("ropewalk gr", {"grid "}),
    ("ropewalk grid strat", {"strategy="}),
    ("ropewalk grid strategy=none,dynamic_y", {"none,dynamic_yarn "}),
    ("ropewalk grid strategy=yarn strategy.beta", {"strategy.beta_fast=", "strategy.beta_slow="}),
    ("ropewalk doctor --js", {"--json "}),
    ("ropewalk doctor targ", {"target="}),
    ("ropewalk reproduce published=yarn_const", {"yarn_constants "}),
]


@pytest.mark.parametrize(("line", "expected"), COMPLETIONS)
def test_the_shell_completes_verbs_options_keys_and_values(line, expected, tmp_path):
    shell = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    shell |= {"_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:", "COMP_TYPE": "9"}
    ran = ropewalk(**shell, _ARGCOMPLETE_STDOUT_FILENAME=str(tmp_path / "out"))
    assert ran.stderr == "" and set((tmp_path / "out").read_text().split("\n")) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_set_up_by_a_script_for_the_shell(shell, capsys):
    assert run(["--shell-completion", shell]) == 0
    assert "ropewalk" in capsys.readouterr().out
