"""Long conversations: who said a line, what was said before it, and a fact from an early turn asked at the end.

The lines are those of a play, in its order, where the text has speakers (`NAME: line`, or a short name on a line of its
own that ends with a full stop or colon, as in the extra `texts`); else sentences of the text. Speakers get names drawn
anew for every question, so that nothing is known without reading. All answers are chosen among four that the
conversation itself offers; two demonstrations are about other lines of it. `chat: auto` puts it into the model's chat
template, as one message of the user, where there is one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

from pipelines.records.cells import Refusal
from pipelines.tasks import text, wording
from pipelines.tasks.documents import Encoder
from pipelines.tasks.questions import Exhausted, Question, QuestionTask
from pipelines.tasks.questions import choose as measure

__all__ = ["KIND", "measure"]

CHOICES = 4
DEMOS = 2
LEAST = 12
"""Turns of a conversation, at least: four that can be chosen, two for demonstrations, and one before each."""

NAMES: tuple[str, ...] = (
    *("Anna", "Bruno", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas"),
    *("Katja", "Leon", "Marta", "Niklas", "Olga", "Pavel", "Rosa", "Simon", "Tessa", "Viktor"),
)
THINGS = ("locker", "room", "badge", "ticket", "account", "parcel")
SPEAKER = re.compile(
    r"^(?!ACT\b|SCENE\b)(?:(?P<name>[A-Z][\w'. ]{0,20}?)[.:]\n|(?P<same>[A-Z][\w'. ]{1,20}): (?=\S))", re.MULTILINE
)
"""Who speaks, in a play."""

Turn = tuple[str, str]


class Conversation(QuestionTask):
    name = "conversation"
    asks = ("speaker", "before", "fact")
    choices = CHOICES
    chance = 1 / choices
    options: Mapping[str, Any] = {"ask": "all", "questions": 6, "text": text.PYDOC, "chat": "auto"}

    def validate(self, options: Mapping[str, Any]) -> None:
        if options["chat"] not in ("auto", None, False):
            raise Refusal(f"chat={options['chat']} of the task {self.name}: give auto, or null for none")

    def pose(
        self, ask: str, seed: str, size: int, length: int, options: Mapping[str, Any], encode: Encoder
    ) -> Question:
        dice = random.Random(seed)
        turns = _turns(dice, LEAST + size, str(options["text"]))
        drawn = dice.random()
        if ask == "fact":
            prompt, choices, place = _fact(dice, turns, drawn)
        else:
            prompt, choices, place = (_speaker if ask == "speaker" else _before)(dice, turns, drawn)
        right = choices[0]
        dice.shuffle(choices)
        head = ""
        if options["chat"] == "auto":
            head, prompt = chat(encode, prompt)
        facts = (("depth", place / len(turns)), ("turns", len(turns)))
        return Question(prompt, tuple(choices), choices.index(right), facts=facts, head=head)


def chat(encode: Encoder, prompt: str) -> tuple[str, str]:
    """A prompt in the model's chat template, as (what comes before it, the rest); unchanged where it has none.

    Its last line, the beginning of the answer, becomes the beginning of the model's own turn.
    """
    write = getattr(encode.tokenizer, "apply_chat_template", None)
    if not encode.template or write is None:
        return "", prompt
    message, _, cue = prompt.rpartition("\n")
    whole = write([{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True)
    before, found, after = whole.partition(message.strip())
    return (before, f"{found}{after}{cue}") if found else ("", prompt)


def _turns(dice: random.Random, count: int, source: str) -> list[Turn]:
    """`count` turns of a conversation of 4 to 8 people, no two of the same person one after the other."""
    said = spoken(source)
    if count > len(said):
        raise Exhausted(f"text {source} has {len(said)} lines")
    people = dice.sample(NAMES, len(NAMES))
    start, few = dice.randrange(len(said)), dice.randint(4, 8)
    order = random.Random(dice.random())
    known: dict[str, str] = {}
    turns: list[Turn] = []
    for number in range(count):
        speaker, line = said[(start + number) % len(said)]
        if speaker:
            name = known.setdefault(speaker, people[len(known) % len(people)])
        else:
            free = [each for each in people[:few] if each != turns[-1][0]] if turns else people
            name = people[number] if number < few else order.choice(free)
        turns.append((name, line))
    return turns


def spoken(source: str) -> tuple[Turn, ...]:
    """(speaker, line) for every line of a play; ("", sentence) where the text has no speakers."""
    return _spoken(wording.whole(source)) or tuple(("", line) for line in wording.lines(source))


@lru_cache(maxsize=4)
def _spoken(play: str) -> tuple[Turn, ...]:
    marks = list(SPEAKER.finditer(play))
    if len(marks) < 200:
        return ()
    found: dict[str, Turn] = {}
    for mark, following in pairwise(marks):
        words = play[mark.end() : following.start()].partition("\n\n")[0].split()
        line = " ".join(words[:20])
        if len(words) >= 4:
            found.setdefault(line, ((mark["name"] or mark["same"]).strip(), line))
    return tuple(found.values())


def _written(turns: list[Turn]) -> str:
    return "This is a conversation.\n\n" + "\n".join(f"{name}: {line}" for name, line in turns) + "\n\n"


def _places(dice: random.Random, turns: list[Turn], drawn: float) -> tuple[int, list[int]]:
    """The turn that is asked for, at a share `drawn` of all but the first, and two more for demonstrations."""
    place = 1 + round(drawn * (len(turns) - 2))
    return place, dice.sample([number for number in range(1, len(turns)) if number != place], DEMOS)


def _speaker(dice: random.Random, turns: list[Turn], drawn: float) -> tuple[str, list[str], int]:
    # The person is drawn first, then the line: who speaks most is not right more often than the others.
    people = sorted({name for name, _ in turns[1:]})
    right, *wrong = dice.sample(people, min(CHOICES, len(people)))
    wrong += [name for name in NAMES if name not in dict(turns)][: CHOICES - 1 - len(wrong)]
    aim, _ = _places(dice, turns, drawn)
    place = min((n for n in range(1, len(turns)) if turns[n][0] == right), key=lambda number: abs(number - aim))
    demos = dice.sample([number for number in range(1, len(turns)) if number != place], DEMOS)

    def asked(number: int) -> str:
        return f'Who said "{turns[number][1]}"?\nAnswer:'

    shown = "".join(f"{asked(number)} {turns[number][0]}\n" for number in demos)
    return f"{_written(turns)}{shown}{asked(place)}", [right, *wrong], place


def _before(dice: random.Random, turns: list[Turn], drawn: float) -> tuple[str, list[str], int]:
    place, demos = _places(dice, turns, drawn)

    def asked(number: int) -> str:
        return f'What was said directly before "{turns[number][1]}"?\nAnswer:'

    # What a demonstration answers or quotes can be ruled out without reading.
    quoted = {each for number in (place, *demos) for each in (number - 1, number)}
    others = [number for number in range(len(turns)) if number not in quoted]
    wrong = [turns[number][1] for number in dice.sample(others, CHOICES - 1)]
    shown = "".join(f"{asked(number)} {turns[number - 1][1]}\n" for number in demos)
    return f"{_written(turns)}{shown}{asked(place)}", [turns[place - 1][1], *wrong], place


def _fact(dice: random.Random, turns: list[Turn], drawn: float) -> tuple[str, list[str], int]:
    """One person tells a number of each of six things, in the first quarter of the conversation; one is asked for.

    Three others are the wrong choices, and two the demonstrations' answers, which are no choices.
    """
    things = dice.sample(THINGS, len(THINGS))
    numbers = [str(number) for number in dice.sample(range(1000, 10_000), len(things))]
    right, *others = dice.sample(range(len(things)), len(things))
    name, first = turns[0][0], max(len(things), len(turns) // 4)
    places = sorted(dice.sample(range(first), len(things)))
    whole = list(turns)
    for thing, number, place in reversed(list(zip(things, numbers, places, strict=True))):
        whole.insert(place, (name, f"The number of my {thing} is {number}, please remember it."))

    def asked(number: int) -> str:
        return f"What is the number of {name}'s {things[number]}?\nAnswer:"

    shown = "".join(f"{asked(number)} {numbers[number]}\n" for number in others[:DEMOS])
    wrong = [numbers[number] for number in others[DEMOS:][: CHOICES - 1]]
    return f"{_written(whole)}{shown}{asked(right)}", [numbers[right], *wrong], places[right]


KIND = Conversation()
