"""In processes of their own: cells of a grid by transformers, lm-eval and MLflow as they come, as who has nothing else
would compute them. Every job reads the model's own file, encodes the whole text, scores, and logs.

python -m pipelines.bench.stock CELLS NUMBER FOLDER    # one job, a line of JSON
python -m pipelines.bench.stock -m hydra/launcher=ray +cells=CELLS +number=0,1,2 +folder=FOLDER    # by Hydra's launcher

CELLS: a file of pickled cells. Every job adds a line to FOLDER/jobs.jsonl when it ends.
"""

from __future__ import annotations

import json
import logging
import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from pipelines.bench.parts import DONE
from pipelines.choices.sweep import patched_config
from pipelines.records.cells import Cell

SCALING = ("rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings")
"""Keys of a config that a strategy changes."""


def compute(cell: Cell, folder: Path) -> None:
    """One job, in a process that has imported nothing."""
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from pipelines.models.find import locate
    from pipelines.tasks import registry
    from pipelines.tasks.documents import Encoder
    from pipelines.tasks.scorer import quiet

    class Whole(Encoder):
        def first(self, text: str, count: int) -> list[int]:
            return self(text)

    source = locate(cell.model)
    where = str(source.gguf.parent if source.gguf else source.folder or source.hub)
    given: dict[str, Any] = {"gguf_file": source.gguf.name} if source.gguf else {}
    config = AutoConfig.from_pretrained(where, **given)
    for key, value in patched_config(cell).items():
        if key in SCALING:
            setattr(config, key, value)
    model = AutoModelForCausalLM.from_pretrained(where, config=config, dtype=cell.dtype, **given).to(cell.device)
    tokenizer = AutoTokenizer.from_pretrained(where, **given)
    encode = Whole.of(tokenizer)
    documents = registry.documents(cell.task, encode, length=cell.length, limit=cell.limit, seed=cell.seed)
    with quiet():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=cell.length)
    rows = [(("", ""), list(each.ids[: -each.scored]), list(each.ids[-each.scored :])) for each in documents]
    scored = lm._loglikelihood_tokens(rows, disable_tqdm=True)
    nll = -sum(value for value, _ in scored) / sum(each.scored for each in documents)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    with mlflow.start_run(run_name=cell.label):
        mlflow.log_params({"strategy": cell.strategy_label, "length": cell.length})
        mlflow.log_metrics({"nll": nll})


def job(cells: Path, number: int, folder: Path) -> dict[str, Any]:
    """Compute a cell, and note what became of it."""
    cell: Cell = pickle.loads(cells.read_bytes())[number]
    told: dict[str, Any] = {"number": number}
    try:
        compute(cell, folder)
    except Exception as error:  # such as of a strategy that transformers does not have
        told["failed"] = (str(error).strip() or type(error).__name__).splitlines()[0]
    told["at"] = time.time()
    with (folder / DONE).open("a") as file:
        file.write(json.dumps(told) + "\n")
    return told


@hydra.main(version_base="1.3", config_path=None)
def launched(config: DictConfig) -> None:
    job(Path(config.cells), int(config.number), Path(config.folder))


def main(words: Sequence[str]) -> None:
    if "-m" in words:
        launched()
    else:
        print(json.dumps(job(Path(words[0]), int(words[1]), Path(words[2]))))


if __name__ == "__main__":
    main(sys.argv[1:])
