"""Builds and runs tasks of lm-eval: quietly, without its caches, and without its index of all tasks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, mean_stderr
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from pipelines.records.cells import Refusal
from pipelines.tasks import files, named
from pipelines.tasks.documents import Document, Encoder, stderr
from pipelines.tasks.exact import Spans, Tokens
from pipelines.tasks.scorer import LongLM, quiet

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class TaskRun:
    """The results of a task that lm-eval ran.

    metrics: by name, with NAME_stderr where there is one.
    documents: index and metrics of each.
    answers: the model's answer to each document: to its request, or a list of those to all where it has several.
    requests: the texts of every request of each document.
    """

    metrics: dict[str, float]
    documents: list[dict[str, Any]]
    answers: list[Any]
    requests: list[list[list[str]]]


class Rows(Sequence[Mapping[str, Any]]):
    """Documents as lm-eval reads a data set. It copies what it is given with a task's settings; these it shares."""

    features: Mapping[str, Any] = {}

    def __init__(self, documents: Sequence[Document], encode: Encoder, options: Mapping[str, Any]) -> None:
        self._rows = [{"document": document, "encode": encode, "options": dict(options)} for document in documents]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __deepcopy__(self, memo: Any) -> Rows:
        return self


class Prepared(ConfigurableTask):  # type: ignore[misc]  # lm-eval is untyped
    """A task whose documents are there already. Their exact ids reach the model, as strings that carry them."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def fewshot_context(self, *args: Any, **kwargs: Any) -> str:
        return ""  # contexts are joined as plain strings, which would lose the ids

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, **kwargs: Any) -> Instance | list[Instance]:
        document, encode = doc["document"], doc["encode"]
        arguments: tuple[Any, ...]
        if document.choices:
            context = Tokens(encode.text(document.ids), document.ids)
            pairs = [(context, Tokens(encode.text(choice), choice)) for choice in document.choices]
            return [self._instance(doc, pair, kwargs["metadata"], number) for number, pair in enumerate(pairs)]
        if document.spans:
            label = f"{len(document.spans)} windows of a document of {len(document.ids)} tokens"
            arguments = (Spans(label, document.ids, document.spans, document.prefix),)
            return self._instance(doc, arguments, kwargs["metadata"])
        parts = [document.ids]
        if self.OUTPUT_TYPE == "loglikelihood":
            parts = [document.ids[: -document.scored], document.ids[-document.scored :]]
        arguments = tuple(Tokens(encode.text(ids), ids) for ids in parts)
        if self.OUTPUT_TYPE == "generate_until":
            settings = deepcopy(self.config.generation_kwargs)
            arguments += (settings | {"max_gen_toks": document.room} if document.room else settings,)
        return self._instance(doc, arguments, kwargs["metadata"])

    def _instance(self, doc: Mapping[str, Any], arguments: tuple[Any, ...], metadata: Any, number: int = 0) -> Instance:
        return Instance(request_type=self.OUTPUT_TYPE, doc=doc, arguments=arguments, idx=number, metadata=metadata)


def dataset(rows: Rows | None = None, **_: Any) -> dict[str, Rows]:
    """What the YAML files of this folder call custom_dataset.

    Raises:
        Refusal: the task was not started through `pipelines.tasks.score`.
    """
    if rows is None:
        raise Refusal("this task gets its documents from pipelines.tasks.score; run it with `ropewalk grid task=...`")
    return {"test": rows}


def prepared(name: str, rows: Rows) -> Any:
    """A task of this folder over documents that are there already."""
    with quiet():
        manager = TaskManager(include_path=str(HERE), include_defaults=False, metadata={"rows": rows})
        return manager.load([name])["tasks"][name]


@lru_cache(maxsize=2)
def by_name(
    name: str,
    path: Path,
    *,
    length: int,
    encode: Encoder,
    folder: str,
    seed: int,
    num_fewshot: int | None,
    own: str | None = None,
) -> Any:
    """A task that lm-eval brings, or one of the user's, its data made or loaded for one length and tokenizer.

    own: of one of the user's the digest of its files.

    Raises:
        Refusal: it needs packages or data that are not there, or cannot be made at this length.
    """
    settings = {"max_seq_lengths": named.length_setting(path, length), "tokenizer": folder, "pretrained": folder}
    try:
        with quiet(), _seeded(f"{name}/{length}/{seed}"):
            spec = str(path) if own is None else load_yaml(path) | files.read(path).settings
            task = TaskManager(include_defaults=False, metadata=settings).load([spec])["tasks"][name]
    except ImportError as error:
        raise Refusal(named.needs(name, str(error).splitlines()[0])) from error
    except ValueError as error:
        raise Refusal(f"task {name} cannot be made at length={length}: {str(error).splitlines()[0]}") from error
    except OSError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refusal(
            f"the data of task {name} cannot be loaded: {reason}; check the network, or load it once"
        ) from error
    if num_fewshot is not None or task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=seed)
    return task


@contextlib.contextmanager
def _seeded(seed: str) -> Iterator[None]:
    """RULER draws from the global generators, and some of its files from one that they make when they are loaded."""
    for module in [name for name in sys.modules if name.startswith("lm_eval.tasks.")]:
        if hasattr(sys.modules[module], "__mtime__"):  # loaded by a YAML, which loads it again
            del sys.modules[module]
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big"))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def run(lm: LongLM, task: Any, *, length: int, limit: int | None) -> TaskRun:
    """Score the first `limit` documents of a task.

    Raises:
        TooLong: a request does not fit into lm.max_length.
    """
    # Its bootstrap would fork a process that holds a GPU.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    name = task.task_name
    with contextlib.nullcontext() if lm.progress else quiet():
        results = lm_eval.evaluate(
            lm=lm,
            task_dict={"tasks": {name: task}},
            limit=limit,
            bootstrap_iters=100,
            cache_requests=False,
            confirm_run_unsafe_code=True,  # registry.check_safe has asked
        )
    documents = _documents(results["samples"][name], length)
    answers: dict[int, list[Any]] = {}
    requests: dict[int, list[list[str]]] = {}
    for instance in task.instances:
        answers.setdefault(instance.doc_id, []).append(instance.resps[0])
        requests.setdefault(instance.doc_id, []).append([str(part) for part in instance.args if isinstance(part, str)])
    metrics = _metrics(results["results"][name], documents, length)
    said = [answers[row["index"]] for row in documents]
    single = [each[0] if len(each) == 1 else each for each in said]
    return TaskRun(metrics, documents, single, list(requests.values()))


def _documents(samples: Sequence[Mapping[str, Any]], length: int) -> list[dict[str, Any]]:
    """Index and metrics of each document; one sample a filter comes in."""
    rows: dict[int, dict[str, Any]] = {}
    for sample in samples:
        row = rows.setdefault(sample["doc_id"], {"index": sample["doc_id"]})
        for metric in sample["metrics"]:
            name, value = named.metric_name(metric, sample["filter"], length), sample[metric]
            if name is not None and isinstance(value, (bool, int, float, np.number, np.bool_)):
                row[name] = float(value)
    return [rows[index] for index in sorted(rows)]


def _metrics(reported: Mapping[str, Any], documents: Sequence[Mapping[str, Any]], length: int) -> dict[str, float]:
    """lm-eval's results as numbers by name; what it writes N/A is absent."""
    metrics: dict[str, float] = {}
    for key, value in reported.items():
        metric, comma, filtered = key.partition(",")
        if not comma or isinstance(value, (bool, str)):
            continue
        name = named.metric_name(metric.removesuffix("_stderr"), filtered, length)
        if name is not None:
            error = metric.endswith("_stderr")
            metrics[name + "_stderr" * error] = float(value)
    if "score" in metrics:  # lm-eval knows RULER's metric for some lengths only, and gives no error to these
        values = [row["score"] for row in documents if "score" in row]
        spread = stderr(values)
        metrics |= {"score_stderr": spread} if spread is not None else {}
    # A standard error of what is not finite says nothing.
    return {name: value for name, value in metrics.items() if math.isfinite(value) or not name.endswith("_stderr")}


def means(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """The mean of each metric over the documents that have it, with NAME_stderr, as lm-eval computes both."""
    metrics: dict[str, float] = {}
    for name in names:
        values = [record[name] for record in records if name in record]
        metrics[name] = float(mean(values))
        if len(values) > 1 and math.isfinite(error := mean_stderr(values)):
            metrics[f"{name}_stderr"] = float(error)
    return metrics


def digest(requests: Sequence[Sequence[Sequence[str]]]) -> str:
    """16 hex digits of the texts of all requests."""
    return hashlib.sha256(json.dumps(requests).encode()).hexdigest()[:16]
