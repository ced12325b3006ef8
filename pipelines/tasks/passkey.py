"""Passkey retrieval: a five-digit key at a depth of an irrelevant text that fills the length under test.

Wording and filler as Landmark Attention published them (Mohtashami and Jaggi 2023, https://arxiv.org/abs/2305.16300)
and YaRN's evaluation uses them. Ours: five digits always, depths on a grid, the same keys at every depth and length.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import cycle, islice
from typing import Any

import numpy as np

from pipelines.records.cells import Refusal
from pipelines.tasks import text
from pipelines.tasks.documents import Document, Encoder
from pipelines.tasks.kinds import Curve, HalvesBySeed, Measure, OwnTask

OPTIONS: Mapping[str, Any] = {
    "depths": (0.1, 0.35, 0.65, 0.9),
    "keys": 2,
    "answer": "loglikelihood",
    "protocol": "grid",
}
"""depths: shares of the filler that come before the key. keys: at every depth, or as many as `limit` says if those are
fewer. answer: loglikelihood or generate. protocol: grid, as above; or as published: pi, yarn or codellama, which set
depths, keys and answer themselves."""

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "pi": {"depths": tuple(n / 32 for n in range(32)), "keys": 10, "answer": "generate"},
    "yarn": {"depths": (None,), "keys": 20, "answer": "generate"},
    "codellama": {"depths": (0.0, 0.2, 0.4), "keys": 64, "answer": "generate"},
}
"""pi: 32 distances from the end, evenly spaced, ten trials at each (Chen et al. 2023, https://arxiv.org/abs/2306.15595,
section 3.4). yarn: a key from 1 to 50000 at a random character of the filler, 20 times (jquesnelle/yarn,
eval/passkey.py; its paper says 10 and its data/passkey-32k.csv shows 50: any number by limit=N).

codellama: key retrieval in Python, 64 examples at each of three positions: a function that returns an integer, asked
for by CODE_QUESTION (Rozière et al. 2023, https://arxiv.org/abs/2308.12950, table 17). Ours, where our transcription of
that protocol is silent: the code that surrounds it (_functions), CODE_NEEDLE's layout, that a position is a share of
those functions, five digits, and that the first number of the greedy answer must be the key.
"""

FOUND = {"pi": 0.2, "yarn": 0.8}
"""Share of keys from which on a context counts as one in which they are found."""

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
CODE_NEEDLE = "def my_function():\n    return {key}"
CODE_QUESTION = "assert my_function() == "
MOST_KEYS = 10_000
USUAL_LIMITS = 64
"""Limits up to which results of fewer keys are looked for."""
TRIED = 100
"""Keys whose prompts are encoded to know the least length: all have five digits, and cost almost the same."""
CODE_LINES = 12
"""Of the longest function that surrounds the key in code: short ones fill a length almost to the token."""
NEW_TOKENS = 10
"""Room for a generated answer; passkey_generate.yaml asks for as many."""


def _settled(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options with those that a published protocol sets."""
    if options["protocol"] not in ("grid", *PUBLISHED):
        raise Refusal(f"protocol={options['protocol']} of the task passkey: give {', '.join(['grid', *PUBLISHED])}")
    return {**options, **PUBLISHED.get(options["protocol"], {})}


def _validate(options: Mapping[str, Any]) -> None:
    depths, keys, answer = options["depths"], options["keys"], options["answer"]
    if options["protocol"] == "yarn":
        return
    if not depths or not all(0 <= depth <= 1 for depth in depths) or len(set(depths)) < len(depths):
        raise Refusal(f"depths={list(depths)} of the task passkey: give different shares from 0 to 1")
    if not 1 <= keys <= MOST_KEYS:
        raise Refusal(f"keys={keys} of the task passkey: give at least 1 and at most {MOST_KEYS:,}")
    if answer not in ("loglikelihood", "generate"):
        raise Refusal(f"answer={answer} of the task passkey: give loglikelihood or generate")


def _questions(options: Mapping[str, Any], limit: int | None, seed: int) -> list[tuple[int, int, float]]:
    # A limit takes keys, so that every depth is asked as often as any other.
    if options["protocol"] == "yarn":  # every trial is a draw of its own, so there may be as many as are asked
        draws = (random.Random(f"passkey/yarn/{seed}/{number}") for number in range(limit or options["keys"]))
        return [(number, dice.randint(1, 50_000), dice.random()) for number, dice in enumerate(draws)]
    count = options["keys"] if limit is None else min(options["keys"], limit)
    keys = [random.Random(f"passkey/{seed}/{number}").randint(10_000, 99_999) for number in range(count)]
    return [(number, key, depth) for number, key in enumerate(keys) for depth in options["depths"]]


def prompt(key: int, depth: float, words: int, protocol: str = "grid") -> str:
    """The published prompt with that many words of filler, a share `depth` before the key.

    words: of yarn, characters; of codellama, functions.
    """
    if protocol == "codellama":
        return _code(key, round(words * depth), words)
    before, filler = round(words * depth), _characters if protocol == "yarn" else _filler
    return "\n".join([TASK, filler(before), NEEDLE.format(key=key), filler(words - before), QUESTION])


def _characters(count: int) -> str:
    return (f"{FILLER} " * (count // (len(FILLER) + 1) + 1))[:count]


def _filler(words: int) -> str:
    return " ".join(islice(cycle(FILLER.split()), words))


def _code(key: int, before: int, count: int) -> str:
    # Every key lies in code of its own: the functions from the key's place in their list on.
    functions, start = _functions(), key % len(_functions())
    code = list(islice(cycle(functions), start, start + count))
    return "\n\n\n".join([*code[:before], CODE_NEEDLE.format(key=key), *code[before:], CODE_QUESTION])


@lru_cache(maxsize=1)
def _functions() -> tuple[str, ...]:
    """The short functions of the standard library's modules, each once: code that belongs to this version of Python."""
    (sources,) = text.documents(text.STDLIB)
    blocks = (block.rstrip() for block in re.findall(r"^def .*\n(?:(?:[ \t].*)?\n)*", sources, re.MULTILINE))
    return tuple(dict.fromkeys(block for block in blocks if block.count("\n") < CODE_LINES and _whole(block)))


def _whole(block: str) -> bool:
    # A string or a parenthesis that goes on at the margin ends the block too early.
    try:
        return bool(ast.parse(block))
    except SyntaxError:
        return False


def _tokens(
    encode: Encoder, options: Mapping[str, Any], key: int, depth: float, words: int
) -> tuple[tuple[int, ...], int]:
    """All ids of a document, and how many of the last are the answer."""
    question = prompt(key, depth, words, options["protocol"])
    context, beginning = encode(question), encode.beginning(None)
    if options["answer"] == "generate":
        return (*beginning, *context), 0
    whole = encode(f"{question} {key}")
    # A tokenizer may join the prompt's last letters with the answer's first: what differs is scored.
    differs = (number for number, (a, b) in enumerate(zip(context, whole, strict=False)) if a != b)
    return (*beginning, *whole), len(whole) - next(differs, min(len(context), len(whole)))


def _cost(encode: Encoder, options: Mapping[str, Any], key: int, depth: float, words: int) -> int:
    """Tokens of context that a document takes, its answer included."""
    ids, _ = _tokens(encode, options, key, depth, words)
    return len(ids) + (NEW_TOKENS if options["answer"] == "generate" else 0)


def most(cost: Callable[[int], int], budget: int, guess: int = 0) -> int:
    """The largest n with cost(n) <= budget, where cost(0) fits and each further one costs at least 1 or, rarely, 0.

    cost is dear (it encodes a whole prompt) and almost straight, so n is looked for along the line between the largest
    that fits and the smallest that does not; by halves where that takes long.

    >>> most(lambda n: 10 + 3 * n, budget=100)
    30
    """
    fits, over = (0, cost(0)), (0, 0)
    n, tries = guess or budget - fits[1], 0
    while not over[0] or over[0] - fits[0] > 1:
        n = max(n, fits[0] + 1)
        n = min(n, over[0] - 1) if over[0] else n
        spent, tries = cost(n), tries + 1
        if spent <= budget:
            fits = (n, spent)
        else:
            over = (n, spent)
        if not over[0]:
            n = fits[0] + 1 + budget - fits[1]
        elif tries > 8:
            n = (fits[0] + over[0]) // 2
        else:
            n = fits[0] + (budget - fits[1]) * (over[0] - fits[0]) // (over[1] - fits[1])
    return fits[0]


def measure(row: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """Whether one key was found, and its NLL (nats a token). What passkey.yaml calls process_results."""
    (answer,) = results
    if isinstance(answer, str):
        number = re.search(r"\d+", answer)
        return {"acc": float(number is not None and int(number[0]) == row["document"].fact("key"))}
    likelihood, greedy = answer
    return {"acc": float(greedy), "nll_key": -float(likelihood) / len(likelihood.tokens)}


def effective_length(curve: Sequence[tuple[float, float]], share: float) -> float:
    """The largest distance at which, and at every smaller one, at least this share of the keys is found; 0: at none.

    curve: (tokens, share found).

    >>> effective_length([(64, 1.0), (128, 0.3), (192, 0.1), (256, 0.9)], share=0.2)
    128
    """
    reached: float = 0
    for tokens, accuracy in sorted(curve):
        if accuracy < share:
            break
        reached = tokens
    return reached


def passkey_context(curve: Sequence[tuple[float, float]]) -> float:
    """YaRN's passkey context: the largest length at which four of five keys are found, tokens; 0: at none.

    curve: (tokens, share found).

    >>> passkey_context([(8192, 1.0), (16384, 0.7), (32768, 0.8), (65536, 0.1)])
    32768
    """
    return max((tokens for tokens, accuracy in curve if accuracy >= FOUND["yarn"]), default=0)


def passkey_accuracy(curve: Sequence[tuple[float, float]]) -> float:
    """YaRN's passkey accuracy: the mean share found over all lengths up to the passkey context; 0 where there is none.

    >>> passkey_accuracy([(8192, 1.0), (16384, 0.5), (32768, 0.9), (65536, 0.1)])
    0.8
    """
    reached = passkey_context(curve)
    below = [accuracy for tokens, accuracy in curve if tokens <= reached]
    return float(np.mean(below)) if below else 0.0


def consistency(verdicts: Sequence[Sequence[bool]]) -> float | None:
    """Share of keys answered alike at every depth, found or missed; None without a key asked at two depths.

    >>> consistency([[True, True], [False, False], [True, False], [False, True]])
    0.5
    """
    alike = [len(set(row)) == 1 for row in verdicts if len(row) > 1]
    return sum(alike) / len(alike) if alike else None


class Passkey(OwnTask):
    name = "passkey"
    version = 2
    chance = 0.0
    options = OPTIONS
    hashed = ("depths", "keys", "answer")
    headlines = ("acc",)
    measure = Measure("acc", lower=False, unit="key_number")
    consistency = True
    halves = HalvesBySeed("keys")
    over: Mapping[str, Callable[[Curve], float]] = {
        "passkey_context": passkey_context,
        "passkey_accuracy": passkey_accuracy,
    }

    def enlarged(self, count: int) -> tuple[dict[str, Any], int]:
        return {"keys": count}, count

    def units(self, options: Mapping[str, Any], limit: int | None) -> int:
        return len({number for number, _, _ in _questions(_settled(options), limit, seed=0)})

    def smaller(self, options: Mapping[str, Any], limit: int | None) -> Iterator[tuple[dict[str, Any], int | None]]:
        """Fewer keys, by either of the two that say how many."""
        for count in range(self.units(options, limit), 0, -1):
            yield {}, count
            yield from (({"keys": count}, most) for most in (None, *range(count, max(count, USUAL_LIMITS) + 1)))

    def check(self, options: Mapping[str, Any], encode: Encoder, length: int) -> None:
        """Refuse options out of range, and a length that the shortest prompt does not fit into."""
        options = _settled(options)
        _validate(options)
        least = max(_cost(encode, options, key, depth, 0) for _, key, depth in _questions(options, TRIED, seed=0))
        if length < least:
            raise Refusal(
                f"length={length}: the passkey prompt alone takes {least} tokens; choose length={least} or more"
            )

    def forwards(self, options: Mapping[str, Any], encode: Encoder | None, *, length: int, limit: int | None) -> int:
        """A forward for a key at every depth."""
        return len(_questions(_settled(options), limit, seed=0))

    def build(
        self, options: Mapping[str, Any], encode: Encoder, *, length: int, limit: int | None, seed: int
    ) -> list[Document]:
        """Prompts with as many words of filler as fit; key 0 at every depth first, then key 1, ...

        Raises:
            Refusal: the shortest prompt does not fit, or an option is out of its range.
        """
        options = _settled(options)
        _validate(options)
        documents, words = [], 0
        for number, key, depth in _questions(options, limit, seed):
            cost = partial(_cost, encode, options, key, depth)
            least = cost(0)
            if least > length:
                raise Refusal(f"length={length}: the passkey prompt alone takes {least} tokens; choose a longer one")
            words = most(cost, length, guess=words)
            ids, scored = _tokens(encode, options, key, depth, words)
            documents.append(Document(ids, scored, (("key_number", number), ("key", key), ("depth", depth))))
        return documents

    def yaml(self, options: Mapping[str, Any]) -> str:
        return "passkey_generate" if _settled(options)["answer"] == "generate" else "passkey"

    def finish(
        self,
        metrics: dict[str, float],
        documents: Sequence[Document],
        records: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
    ) -> tuple[dict[str, float], dict[str, list[tuple[float, float]]]]:
        """Adds the consistency of keys over depths, and accuracy by depth."""
        keys: dict[int, list[bool]] = {}
        depths: dict[float, list[bool]] = {}
        for document, record in zip(documents, records, strict=True):
            correct = bool(record["acc"])
            keys.setdefault(document.fact("key_number"), []).append(correct)
            depths.setdefault(document.fact("depth"), []).append(correct)
        share = consistency(list(keys.values()))
        if share is not None:
            metrics["consistency"] = share
        if options["protocol"] == "pi":
            length = max(len(document.ids) for document in documents)
            curve = [((1 - depth) * length, float(np.mean(row))) for depth, row in depths.items()]
            metrics["effective_length"] = effective_length(curve, FOUND["pi"])
        if options["protocol"] == "codellama":
            metrics.update({f"acc_at_{depth:g}": float(np.mean(row)) for depth, row in depths.items()})
        return metrics, {"acc_by_depth": [(float(depth), float(np.mean(row))) for depth, row in sorted(depths.items())]}


KIND = Passkey()
