"""What the parsers of all verbs share: options, KEY=VALUE words, help, and sentences for what cannot be read."""

from __future__ import annotations

import argparse
import difflib
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from pipelines.cli import meanings
from pipelines.cli.meanings import Key
from pipelines.records.paths import quoted
from pipelines.records.refusal import Refusal, suggestion

Options = argparse.Namespace
"""What a verb's `run` gets: its options; words: what is no option; command: the whole line as typed."""

Verbs = Any
"""argparse's subparsers, which it types as private."""

STORE = Key("store", "folder", "null", "of results; null: ROPEWALK_STORE, or mlruns/ in the current folder")


class Parser(argparse.ArgumentParser):
    """A parser that refuses in a sentence."""

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def add_verb(
    verbs: Verbs,
    name: str,
    summary: str,
    description: str,
    run: Callable[[Options], int],
    *,
    usage: str,
    keys: Sequence[Key] = (),
    details: Callable[[], Iterator[str]] | None = None,
    composed: bool = False,
) -> Parser:
    """A verb's parser.

    keys: KEY=VALUE of the verb itself. details: more lines of its help.
    composed: its other KEY=VALUE words are overrides for Hydra.
    """
    parser: Parser = verbs.add_parser(
        name,
        help=summary,
        description=description.strip(),
        usage=f"ropewalk {name} {usage}",
        add_help=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    if composed:
        parser.add_argument(
            "--config-dir", "-cd", metavar="DIR", help="a folder like conf/ with more models, strategies, tasks"
        )
    words.completer = _Completer(keys, composed)  # type: ignore[attr-defined]
    parser.set_defaults(run=run, parser=parser, keys=keys, details=details, composed=composed)
    return parser


def help_text(options: Options) -> str:
    """A verb's help; beside values of groups, such as strategy=yarn, what they are and their options."""
    if options.composed and (lines := list(_value_details(options.words))):
        return "\n".join(lines) + "\n"
    text = str(options.parser.format_help())
    if options.keys:
        text += "\n".join(["", "keys, with type and default:", *meanings.table(options.keys), ""])
    if options.details is not None:
        text += "\n".join(["", *options.details(), ""])
    return text


def override_details() -> Iterator[str]:
    """Help on overrides: every key, every group."""
    yield "overrides, with type and default (commas make combinations: length=8192,16384):"
    yield from meanings.table(meanings.top_keys())
    yield "groups and their values:"
    for group in meanings.GROUPS:
        yield from meanings.listing(group, meanings.values(group))
    yield from meanings.listing("task=suite/", meanings.values("suite"))
    yield "A model is also a folder, a GGUF file or a hub id (OWNER/NAME or OWNER/NAME@REVISION); a folder whose name"
    yield "has commas is one model. A task is also any of lm-eval's by its name."
    yield "The options of a value: --help strategy=yarn. With several strategies an option reaches those that have it:"
    yield "strategy=none,yarn strategy.beta_fast=16,32 is none once and yarn twice; yarn.beta_fast=16 is yarn's alone."
    yield "Hydra's +KEY=VALUE, ~KEY and hydra.searchpath=[file://DIR] work too."


def _value_details(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        group, _, names = word.partition("=")
        for name in names.split(","):
            if name in meanings.values(group):
                text = f"{group}={name}: {meanings.description(group, name)}"
                yield from textwrap.wrap(text, meanings.width(), subsequent_indent="  ")
                yield from list(meanings.table(meanings.options(group, name))) or ["  no options"]


def own_keys(options: Options) -> tuple[dict[str, str], list[str]]:
    """The verb's own KEY=VALUE among the words, and the other words.

    Raises:
        Refusal: a key is given twice, or looks like one of them misspelt.
    """
    names = {key.name for key in options.keys}
    others = {*meanings.GROUPS, *(key.name for key in meanings.top_keys())}
    own: dict[str, str] = {}
    rest = []
    for word in options.words:
        key, sign, value = word.partition("=")
        if not sign or key not in names:
            if sign and key not in others and difflib.get_close_matches(key, names, n=1, cutoff=0.75):
                refuse_word(options, word)
            rest.append(word)
        elif key in own:
            raise Refusal(f"{key} is given twice: {key}={own[key]} and {word}")
        else:
            own[key] = value
    return own, rest


def only_keys(options: Options) -> dict[str, str]:
    """The verb's own KEY=VALUE, where it takes no other words.

    Raises:
        Refusal: another word is given.
    """
    own, rest = own_keys(options)
    if rest:
        refuse_word(options, rest[0])
    return own


def refuse_word(options: Options, word: str) -> NoReturn:
    """Refuse a word with the keys that the verb takes."""
    names = [key.name for key in options.keys]
    close = difflib.get_close_matches(word.partition("=")[0], names, n=1)
    hint = f"did you mean {close[0]}=...? " if close else ""
    taken = ", ".join([*(f"{name}=..." for name in names), *(["overrides"] if options.composed else [])])
    raise Refusal(f"{word}: {hint}{options.parser.prog} takes {taken} ({options.parser.prog} --help)")


def refuse_option(options: Options, word: str) -> NoReturn:
    """Refuse an unknown option with those that the verb has."""
    if word.startswith("--shell-completion"):
        raise Refusal("--shell-completion comes without a verb: ropewalk --shell-completion bash")
    names = [n for action in options.parser._actions for n in action.option_strings if n.startswith("--")]
    hint = suggestion(word.partition("=")[0], names, cutoff=0.7)
    raise Refusal(f"{options.parser.prog} has no option {word}; {hint}it has {', '.join(names)}")


def overrides(options: Options, words: Sequence[str] | None = None) -> list[str]:
    """The words as overrides for Hydra, those that --config-dir comes to among them.

    Raises:
        Refusal: a word is no KEY=VALUE.
    """
    words = options.words if words is None else words
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise Refusal(f"{word}: give KEY=VALUE, such as model=tiny ({options.parser.prog} --help)")
    given = options.config_dir and quoted(f"file://{os.path.abspath(os.path.expanduser(options.config_dir))}")
    folder = [f"hydra.searchpath=[{given}]"] if given else []
    return [*folder, *words]


def whole(key: str, value: str, least: int, unit: str) -> int:
    """A whole number of a verb's own key.

    Raises:
        Refusal: it is none, or too small.
    """
    if not (value.isascii() and value.isdigit()) or len(value) > 15 or int(value) < least:
        raise Refusal(f"{key}={value[:60]}: give a whole number of {unit}, at least {least}")
    return int(value)


class _Completer:
    """Completes KEY=VALUE words for the shell, by argcomplete."""

    def __init__(self, keys: Sequence[Key], composed: bool) -> None:
        self.keys, self.composed = keys, composed

    def __call__(self, prefix: str, **_: Any) -> list[str]:
        line = os.environ.get("COMP_LINE", "").split()
        key, sign, value = prefix.partition("=")
        if sign:
            before = value.rpartition(",")
            values = meanings.values(key) if self.composed and key in meanings.GROUPS else self._published(key)
            return [f"{key}={before[0]}{before[1]}{name}" for name in values]
        names = [key.name for key in self.keys]
        if self.composed:
            names += [*meanings.GROUPS, *(key.name for key in meanings.top_keys())]
            given: Mapping[str, str] = {group: value for group, _, value in (word.partition("=") for word in line)}
            for group in ("strategy", "task", "model", "cluster"):
                for name in given.get(group, "").split(","):
                    names += [key.name for key in meanings.options(group, name)]
        return [f"{name}=" for name in dict.fromkeys(names)]

    def _published(self, key: str) -> list[str]:
        folder = {"published": "published", "recipe": "train"}.get(key)
        return meanings.values(folder) if folder and key in {known.name for known in self.keys} else []
