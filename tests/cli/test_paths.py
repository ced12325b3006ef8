"""Paths and quoting: what a user types is the path that is meant, whatever characters are in it, for every verb."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support import TINY

from pipelines.choices import config
from pipelines.choices.compose import expand, expansion
from pipelines.choices.sweep import model_of
from pipelines.cli.main import run
from pipelines.records.cells import Refusal
from pipelines.records.paths import apart, listed, quoted
from pipelines.records.results import Store
from pipelines.train import recipe

NAMES = [
    *("a,b", "comma, space", "with space", "it's", 'a"b', "'q'", "k=v", "br[1]{2}(3)", "100%", "a:b", "#hash"),
    *("${oc.env:HOME}", "\\${x}", "\\\\${x}", "${", "back\\slash", "trailing\\", "C:\\models\\x", "модель-模型", "x@y"),
    *("~tilde", "null", "true", "1e5", "choice(a,b)", "two\nlines", "a;b&c|d", "x.yaml", "tiny"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder for every name, with the config and tokenizer of the embedded model and links to its weights."""
    root = tmp_path_factory.mktemp("models")
    for name in NAMES:
        (root / name).mkdir()
        for file in TINY.iterdir():
            (root / name / file.name).symlink_to(file)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_the_folder_that_was_typed(models, name):
    folder = str(models / name)
    [choice] = expand([f"model={folder}", "length=64"])
    assert (choice.model.path, choice.model.name) == (folder, name)
    [by_path] = expand(["model=local", f"model.path={folder}", "length=64"])
    assert by_path.model.path == folder
    assert recipe.read(["recipe=extend_tiny", f"model={folder}"]).model == folder


NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@settings(max_examples=3, deadline=None)  # composing takes a tenth of a second and more; the quoting alone is below
@example(["a", "b", "a,b"])
@example(["'a", "b'"])
@example(["x", "\\", "${a}"])
@given(st.lists(NAME, min_size=1, max_size=3, unique_by=str.casefold))
def test_every_folder_of_a_grid_is_found_whatever_its_name(names):
    with tempfile.TemporaryDirectory() as root:
        folders = [str(Path(root, name)) for name in names]
        for folder in folders:
            os.mkdir(folder)
        whole = expansion([f"model={','.join(folders)}", "length=64"])
        assert [choice.model.path for choice in whole.choices] == folders
        for job, folder in zip(whole.jobs, folders, strict=True):  # what a record says to type for one cell alone
            words = shlex.split(shlex.join(map(config.typed, job)))
            assert [choice.model.path for choice in expand(words)] == [folder]


@example("${a}'b,c\\")
@example("\\\\'\\${")
@given(st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from("\\'\"${},=[] "), max_size=20))
def test_a_quoted_text_means_itself_to_hydra(text):
    parsed = OverridesParser.create().parse_override(f"key={quoted(text)}")
    assert OmegaConf.create({"key": parsed.value()}).key == text
    again = OverridesParser.create().parse_override(f"key={parsed.get_value_element_as_str()}")
    assert OmegaConf.create({"key": again.value()}).key == text, "as a sweep writes it down"


@pytest.mark.parametrize("name", ["a,b", "it's", "${a}", "trailing\\", "${a}'b,c\\", "#x: y", "модель"])
def test_a_store_and_a_text_are_those_that_were_typed(name, tmp_path):
    path = tmp_path / name
    path.write_text("")
    [choice] = expand(["model=tiny", "length=64", f"store={path}", f"task.text={path}"])
    assert (choice.store, choice.task["text"]) == (str(path), str(path))
    read = recipe.read(["recipe=extend_tiny", f"text={path}", f"out={path}"])
    assert (read.out, read.text) == (str(path), [str(path)])


def test_a_home_is_a_home_and_a_slash_at_the_end_is_none(models, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(models))
    assert [c.model.path for c in expand(["model=~/a,b,~/k=v/", "length=64"])] == [f"{models}/a,b", f"{models}/k=v"]
    assert Store.at("~/store").root == models / "store"
    monkeypatch.chdir(models)
    assert expand(["model=a,b", "length=64"])[0].model.path == f"{models}/a,b"
    [choice] = expand(["model='it's',length", "length=64"])[:1]
    assert choice.model.path == f"{models}/it's", "quotes that the shell left over are taken off"


def test_lists_of_texts_and_hydras_own_grammar_stay(models):
    assert [c.task["text"] for c in expand(["model=tiny", "length=64", "task.text=pydoc,stdlib"])] == [
        "pydoc",
        "stdlib",
    ]
    assert [c.model.name for c in expand(["model=choice(tiny,random)", "length=64"])] == ["tiny", "random"]
    [choice] = expand(["model=tiny", "length=64", "store='a, b'", "task.text=${model.name}"])
    assert (choice.store, choice.task["text"]) == ("a, b", "tiny")
    assert expand(["model=tiny", "length=64", "store=null"])[0].store is None


def test_models_of_one_name_are_told_apart_in_tables(tmp_path):
    for place in ("one/run", "two/run", "two/other"):
        (tmp_path / place).mkdir(parents=True)
    folders = [str(tmp_path / place) for place in ("one/run", "two/run", "two/other")]
    names = [choice.model.name for choice in expand([f"model={','.join(folders)},tiny", "length=64"])]
    assert names == ["one/run", "two/run", "other", "tiny"]
    assert apart(["/x/a", "/x/a"]) == ["a", "a"], "one folder twice is one model"


def test_a_link_keeps_the_name_that_it_was_given(models, tmp_path):
    (tmp_path / "blob").write_text("")
    (tmp_path / "mine.gguf").symlink_to(tmp_path / "blob")
    [choice] = expand([f"model={tmp_path / 'mine.gguf'}", "length=64"])
    assert (choice.model.path, choice.model.name) == (f"{tmp_path}/mine.gguf", "mine")


@pytest.mark.parametrize(
    ("given", "path", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("owner/name@v1.0", "owner/name", "v1.0"),
        ("owner/name@" + "0" * 40, "owner/name", "0" * 40),
        ("gpt2@refs/pr/3", "gpt2", "refs/pr/3"),
        ("./a@b", "./a@b", None),
    ],
)
def test_a_hub_id_may_name_its_revision(given, path, revision):
    [choice] = expand([f"model={given}", "length=64"])
    model = model_of(choice.model)
    assert (model.name, model.path, model.revision) == (given, path, revision)


def test_two_revisions_of_one_model_are_refused():
    [choice] = expand(["model=local", "model.path=owner/name@v1", "model.revision=v2", "length=64"])
    with pytest.raises(Refusal, match="owner/name@v1 and revision=v2 : give one revision"):
        model_of(choice.model)
    with pytest.raises(Refusal, match="give one revision"):
        model_of(expand(["model=owner/name@", "length=64"])[0].model)


@pytest.mark.parametrize("path", ["C:\\models\\x", "it's, not here", "./x", "a/b/c", "/no/such", "${HOME}/x", "x.gguf"])
def test_a_path_that_leads_nowhere_is_refused_as_one(path, capsys, tmp_path):
    assert run(["theory", f"model={path}", "length=64", f"store={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert "there is no file or folder" in message and message.count("\n") == 1


@pytest.mark.parametrize("verb", ["plan", "theory", "doctor", "export"])
def test_every_verb_takes_a_path_that_needs_quotes(models, verb, tmp_path, capsys):
    words = {
        "plan": ["length=512", "limit=1"],
        "theory": ["length=512"],
        "doctor": ["--only", "static"],
        "export": ["strategy=yarn", "length=1024", "--to", "transformers"],
    }[verb]
    assert run([verb, f"model={models}/a,b", *words, f"store={tmp_path}/it's, ours"]) == 0, capsys.readouterr().err


def test_a_folder_of_own_configs_may_have_any_name(tmp_path):
    (tmp_path / "it's, mine" / "model").mkdir(parents=True)
    (tmp_path / "it's, mine" / "model" / "mine.yaml").write_text(f"name: mine\npath: {json.dumps(str(TINY))}\n")
    assert run(["plan", "--config-dir", str(tmp_path / "it's, mine"), "model=mine", "length=64", "limit=1"]) == 0


def test_an_experiment_may_name_a_folder(models, tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      model: PATH,tiny\n      length: 64\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text.replace("PATH", f"{models}/a,b"))
    choices = expand([f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"])
    assert [choice.model.name for choice in choices] == ["a,b", "tiny"]


def test_entries_between_commas_are_read_as_they_lie_here(models, monkeypatch):
    monkeypatch.chdir(models)
    assert listed("a,b,k=v") == ["a,b", "k=v"]
    assert listed("a,c,k=v") == ["a", "c", "k=v"]
    assert listed("'a,b',\"c\"") == ["a,b", "c"]
