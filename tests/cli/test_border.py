"""Hostile input, each kind once: a sentence and exit code 2, quickly, with no secret in it and nothing run."""

from __future__ import annotations

import json
import os
import socket
import sys
import time

import huggingface_hub.constants
import pytest
from support import TINY, ropewalk

from pipelines.cli import bug_report, plan
from pipelines.cli.main import run
from pipelines.records import inputs
from pipelines.records.privacy import give_out, without_places, without_secrets
from pipelines.records.refusal import Refusal
from pipelines.tasks import named, registry

SECRET = "hf_planted_secret_value"
"""Of the environment."""


@pytest.fixture
def entered(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROPEWALK_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # which it reads when it is imported
    monkeypatch.setenv("HF_TOKEN", SECRET)

    def enter(*words):
        code = run([str(word) for word in words])
        caught = capsys.readouterr()
        assert SECRET not in caught.out + caught.err
        return code, caught.out + caught.err

    return enter


REFUSED = {
    "strategy=null": "give a name",
    "strategy=[1]": "give a name",
    "strategy={}": "give a name",
    "experiment=null": "give a name",
    "cluster=null": "give a name",
    "+strategy.geometry=1": "no such option",
    "factor=1e308": "give a number from 0",
    "factor=nan": "give a number from 0",
    "store=/dev/null": "is a file",
    "model.path=package://../x": "not installed",
    "task.text=hub:": "hub:OWNER/NAME",
    "task.text=/proc/kmsg": "is empty, or is none on a disk",
    "task.text=/dev/zero": "neither a regular file nor a folder",
    "task.last=nan": "give a whole number",
    "cluster.workers=-1": "give a number from 1",
    "limit=1e20": "limit",
    "limit=99999999999999999999": "give a number from",
    "length=range(1,1e9)": "at most 20,000 numbers",
    "length=shuffle(range(1,99999999))": "at most 20,000 numbers",
    "length=glob(x*)": "no combination",
    "task.name=null": "give the name of a task",
    "hydra=null": "give a name",
    "hydra.sweeper.params={a: 1}": "",
    "dtype=${oc.env:HF_TOKEN}": "the environment is read by files",
    "+x=${oc.${dtype}:HF_TOKEN}": "the environment is read by files",
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_hostile_word_is_refused_in_a_sentence(entered, word):
    length = [] if word.startswith("length") else ["length=2048"]
    code, said = entered("plan", *length, word)
    assert code == 2 and REFUSED[word] in said, said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["task.depths=abc"], "depths='abc' of the task passkey: give a list of numbers"),
        (["task.keys=99999999"], "at most 10,000"),
        (["task.keys=1.5"], "give a whole number"),
    ],
)
def test_options_of_a_task_have_the_type_of_their_default(entered, words, sentence):
    code, said = entered("plan", "task=passkey", "length=2048", *words)
    assert code == 2 and sentence in said, said


CONFIGS = {
    "scaling as a list": ({"rope_scaling": [1]}, "give a mapping"),
    "scaling as a text": ({"rope_scaling": "yarn"}, "give a mapping"),
    "an original length as a text": (
        {"rope_parameters": None, "rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": "4096"}},
        "give a whole number",
    ),
    "a type that is a list": ({"rope_parameters": {"rope_type": [1]}}, "give a name in quotes"),
    "heads as a text": ({"num_attention_heads": "4"}, "give a whole number"),
    "no heads": ({"num_attention_heads": 0}, "at least one head"),
    "an odd head": ({"hidden_size": 255, "head_dim": None}, "even number"),
    "layer types as a text": ({"layer_types": "full_attention"}, "give a list of names"),
    "a model type that is a list": ({"model_type": ["llama"]}, "give a name in quotes"),
    "a head of 3.6 TiB": ({"head_dim": 10**12}, "from 0 to 65,536"),
    "no vocabulary": ({"vocab_size": 0}, "from 1 to"),
    "a thousand million layers": ({"num_hidden_layers": 10**9}, "from 1 to 10,000"),
    "a base of 0": ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "finite number above 1"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_is_refused_in_a_sentence(entered, tmp_path, name):
    changes, sentence = CONFIGS[name]
    config = {**json.loads((TINY / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, said = entered("plan", f"model={tmp_path}", "strategy=yarn", "length=2048")
    assert code == 2 and sentence in said, said


@pytest.mark.parametrize("body", ["[1]", "null", "", "{", "\0", '{"a":' * 99999, '{"a":' * 90 + "1" + "}" * 90])
def test_a_config_that_is_no_object_or_too_deep_is_refused(entered, tmp_path, body):
    (tmp_path / "config.json").write_text(body)
    code, said = entered("theory", f"model={tmp_path}", "length=2048")
    assert code == 2 and "config.json" in said


def _bomb() -> str:
    lines = ["name: yarn", "a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)]
    return "\n".join(lines)


STRATEGIES = {
    "aliases that grow": (_bomb(), "entries with its aliases written out"),
    "within itself": ("name: yarn\na: &a [*a, *a]\n", "within themselves"),
    "deep": ("name: yarn\na: " + "[" * 3000 + "]" * 3000, "too deep"),
    "an object": ("name: yarn\na: !!python/object:os.system {}\n", "python/object"),
    "a secret": ("name: ${oc.env:HF_TOKEN}\n", "${oc.env:HF_TOKEN}"),
    "a secret as a number": ("name: yarn\nbeta_fast: ${oc.env:HF_TOKEN}\n", "${oc.env:HF_TOKEN}"),
}


@pytest.mark.parametrize("where", ["file", "folder"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_hostile_strategy_file_is_refused_quickly_and_shows_no_secret(entered, tmp_path, name, where):
    body, sentence = STRATEGIES[name]
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text(body)
    given = [f"strategy={tmp_path}/strategy/mine.yaml"]
    if where == "folder":
        given = ["--config-dir", tmp_path, "strategy=mine"]
    start = time.process_time()
    code, said = entered("theory", "length=2048", *given)
    assert code == 2 and sentence in said, said
    assert time.process_time() - start < 3


def test_the_environment_is_read_by_a_file_that_the_user_names(entered, tmp_path, monkeypatch):
    monkeypatch.setenv("WIDTH", "16.5")
    (tmp_path / "mine.yaml").write_text("name: yarn\nbeta_fast: ${oc.decode:${oc.env:WIDTH}}\n")
    code, said = entered("theory", "--json", "length=2048", f"strategy={tmp_path / 'mine.yaml'}")
    assert code == 0 and json.loads(said)[0]["options"] == {"beta_fast": 16.5}


def test_a_pipe_and_a_file_without_end_are_no_texts(entered, tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with (tmp_path / "sparse.txt").open("wb") as file:
        file.truncate(3 << 30)
    for name, sentence in (("pipe.txt", "regular file"), ("sparse.txt", "at most 2,048 are read")):
        code, said = entered("plan", "length=2048", f"task.text={tmp_path / name}")
        assert code == 2 and sentence in said, said
    with pytest.raises(Refusal, match="no regular file"):
        inputs.json_object(tmp_path / "pipe.txt")


def test_a_task_that_runs_what_models_write_is_refused_before_it_is_imported(entered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code_eval").mkdir()
    (tmp_path / "code_eval" / "code_eval.py").write_text("open('ran', 'w')")
    unsafe = [name for name, path in named._index()[0].items() if named.runs_what_models_write(path)]
    assert "humaneval" in unsafe and "humaneval_instruct" in unsafe and "wikitext" not in unsafe
    code, said = entered("plan", "task=humaneval", "length=2048", "limit=1")
    assert code == 2 and "allow_unsafe_tasks=true" in said
    assert not (tmp_path / "ran").exists() and not any(
        name.startswith("lm_eval.tasks.humaneval") for name in sys.modules
    )
    assert entered("plan", "task=humaneval", "length=2048", "limit=1", "allow_unsafe_tasks=true")[0] == 0
    with pytest.raises(Refusal):
        registry.check_safe("humaneval")


def test_an_unexpected_error_is_a_report_without_a_traceback_or_a_home(entered, monkeypatch):
    home = os.path.expanduser("~")

    def broken(options):
        raise TypeError(f"of {home}/models/x on {socket.gethostname()}\nsecond line")

    monkeypatch.setattr(plan, "run", broken)
    give_out("HF_TOKEN", SECRET)
    code, said = entered("plan", f"task.text={home}/x", f"+x={SECRET}")
    assert code == 1 and "Traceback" not in said
    assert "TypeError: of ~/models/x on HOST" in said and "ropewalk plan" in said and "Python 3" in said
    assert "pipelines/cli/main.py:" in said and home not in said and socket.gethostname() not in said
    assert "second line" not in said and "HF_HUB_OFFLINE" not in said


def test_a_port_in_use_ends_with_code_2(entered, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mlflow.db").write_bytes(b"")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = ropewalk("ui", str(taken.getsockname()[1]), ROPEWALK_STORE=str(tmp_path / "store"))
    assert ran.returncode == 2 and "Traceback" not in ran.stderr


@pytest.mark.parametrize("option", ["--resolve", "--package=strategy"])
@pytest.mark.parametrize("verb", ["grid", "plan"])
def test_how_a_config_is_shown_is_refused_where_none_is_to_be_shown(entered, verb, option):
    code, said = entered(verb, option)
    assert code == 2 and "give --cfg job too" in said


@pytest.mark.parametrize("port", ["²", "9" * 5000, "0", "65536"])
def test_what_is_no_port_is_refused(entered, port):
    assert entered("ui", port)[0] == 2


def test_a_figure_and_an_export_that_cannot_be_written_are_refused(entered):
    assert entered("theory", "length=2048", "out=/dev/null/x")[0] == 2
    assert entered("export", "model=tiny", "strategy=yarn", "length=2048", "--to", "vllm", "out=/dev/null/x")[0] == 2


def test_passwords_in_addresses_are_never_shown():
    assert without_secrets("at postgresql://me:pw@db/x") == "at postgresql://me:***@db/x"
    assert "pw" not in str(Refusal("http://me:pw@host:5000 is not reachable"))
    assert without_places(os.path.expanduser("~/x")) == "~/x"


def test_what_no_terminal_writes_is_shown_by_its_number():
    assert "\\udc80" in bug_report.of(ValueError("a\udc80"), ["plan"])
