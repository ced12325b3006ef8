"""In a process of its own: one cell of a grid by transformers and lm-eval as they come, as a loop of jobs would run it.

python -m pipelines.bench.stock NUMBER OVERRIDE...   # {"nll": ...}, of the documents of our cell
"""

from __future__ import annotations

import json
import sys

from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.choices.compose import expand
from pipelines.choices.sweep import cell_of, patched_config
from pipelines.models import load
from pipelines.records.refusal import Refusal
from pipelines.tasks import registry
from pipelines.tasks.documents import Encoder
from pipelines.tasks.scorer import quiet


def main(number: int, overrides: list[str]) -> None:
    cell = cell_of(expand(overrides)[number])
    folder, tokenizer = load.materialise(cell.model), load.tokenizer(cell.model)
    try:
        config = AutoConfig.for_model(**patched_config(cell))
    except ValueError as reason:
        raise Refusal(str(reason)) from reason
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=cell.dtype).to(cell.device)
    documents = registry.documents(
        cell.task, Encoder.of(tokenizer), length=cell.length, limit=cell.limit, seed=cell.seed
    )
    with quiet():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=cell.length)
    rows = [(("", ""), list(each.ids[: -each.scored]), list(each.ids[-each.scored :])) for each in documents]
    scored = lm._loglikelihood_tokens(rows, disable_tqdm=True)
    print(json.dumps({"nll": -sum(value for value, _ in scored) / sum(each.scored for each in documents)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
