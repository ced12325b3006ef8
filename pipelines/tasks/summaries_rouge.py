"""The summary sentence of a section, written by the model and compared with the section's own by ROUGE.

The prompts are those of pipelines/tasks/summaries.py. The score of the first line that is generated is ROUGE-L's F
measure with stemming, beside ROUGE-1 and ROUGE-2, by PyPI's rouge-score, as in Google's and HELMET's evaluations (Lin
2004, https://aclanthology.org/W04-1013). It rewards the words of the reference and not the truth of a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pipelines.tasks.documents import Document
from pipelines.tasks.kinds import Measure
from pipelines.tasks.questions import fluency
from pipelines.tasks.summaries import Summaries

__all__ = ["KIND", "measure"]

KINDS = ("rouge1", "rouge2", "rougeL")


def measure(row: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """F measures of the first line of an answer, and how much it repeats itself."""
    (answer,) = results
    said = next(iter(answer.strip().splitlines()), "")
    (reference,) = row["document"].fact("answers")
    found = _scorer().score(reference, said)
    return {**{kind: float(found[kind].fmeasure) for kind in KINDS}, **fluency(said)}


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]  # brings nltk, a second

    return RougeScorer(KINDS, use_stemmer=True)


class SummariesRouge(Summaries):
    name = "summaries_rouge"
    choices = 1
    chance = 0.0
    room = 64
    headlines = ("rougeL",)
    measure = Measure("rougeL", lower=False)

    def kind_of(self, options: Mapping[str, Any]) -> str:
        return "generate"

    def scores(self, each: Document, answer: Any) -> dict[str, float]:
        return measure({"document": each}, [answer])

    def yaml(self, options: Mapping[str, Any]) -> str:
        return self.name


KIND = SummariesRouge()
