"""LongLM: lm-eval's Hugging Face model for long contexts.

A change here that can change a score raises SCORER_VERSION (pipelines/tasks/documents.py).
It never holds logits of [length, vocabulary], sums in float64 what it computed in float32, keeps the log-probability of
every token, and refuses where lm-eval truncates. Scores are those of the stock model to float32 accuracy. Where a plan
crops, every text that goes through the model is cut to its last tokens here, whatever the task.

Shapes: B rows a batch, L tokens, n scored tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lm_eval import utils
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm  # type: ignore[import-untyped]

from pipelines.records.cells import Refusal
from pipelines.tasks.answered import Answered, Scored
from pipelines.tasks.exact import LogLikelihood, Spans, Tokens, joined
from pipelines.tasks.forward import Forward
from pipelines.tasks.logits import reach, rows_of, score
from pipelines.tasks.shared import Group, Row, SharedContext, split
from rope.cropping import Cropped

REACHED = "_ropewalk_reached"
"""Attribute of a model: how to get its logits."""

WINDOW_TOKENS = 2**20
"""Tokens of the windows that are cut out at a time, some 16 MB; all those of a long book would take gigabytes."""

Request = tuple[Any, list[int], list[int]]
"""As lm-eval hands them on: (anything, context ids, continuation ids)."""


class TooLong(Refusal):
    """A text does not fit; nothing is cut off to make it fit.

    needed, allowed: tokens.
    """

    def __init__(self, what: str, needed: int, allowed: int) -> None:
        super().__init__(
            f"{what} needs {needed:,} tokens of context and {allowed:,} are allowed; nothing is truncated: "
            f"choose length={needed} or more, or a shorter text"
        )
        self.needed, self.allowed = needed, allowed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither lm-eval's progress bars nor its advice. What is raised still is."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # The harness has bars that no option of its own turns off.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _tied_as_it_is(model: Any) -> Iterator[None]:
    """lm-eval ties the weights of what it is given anew, also of a model whose head was untied and trained since."""
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights


class LongLM(HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """A loaded model and its tokenizer as lm-eval's model.

    Args:
        model: a transformers causal language model, on its device.
        tokenizer: its tokenizer. Gets a padding token where it has none.
        max_length: the most tokens that one forward may take; may be set anew at any time.
        folder: where tasks that make their own data can load the tokenizer from; its name or path unless given.
        bos: put a BOS before every text (True), never (False), or as the tokenizer does by itself (None).
        prefix_token_id: what an empty context stands for; None: BOS, else end of text.
        batch_tokens: tokens of one forward, padding included; a longer text goes alone.
        head_rows: rows of logits held at once; None: as many as pipelines/tasks/logits.py says.
        progress: show a bar over the forwards.
        devices: that share a long text, the model's own first; () for that alone.

    Attributes:
        crop: how texts are cut to their last tokens; None: they are not.
        forwards: what it has computed, of which some may be there already.
        scored_tokens, forward_tokens: tokens scored, and sent through the model (padding not counted), since the last
            `reset_counts`.
        head: how logits are reached: "chunked", or where the model's head is more than this file knows,
            "logits_to_keep" (only the scored rows) or "full" (all rows); `head_reason` then says why.
        forward_pass: how texts go through the decoder, where the head is "chunked".

    Raises:
        Refusal: bos=True and the tokenizer has no BOS; max_length below 1.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_length: int,
        folder: str | None = None,
        bos: bool | None = None,
        prefix_token_id: int | None = None,
        batch_tokens: int = 16384,
        head_rows: int | None = None,
        progress: bool = False,
        devices: Sequence[torch.device] = (),
    ) -> None:
        if bos and tokenizer.bos_token_id is None:
            raise Refusal("bos=true: this tokenizer has no BOS token; give bos=false, or null for its own habit")
        with quiet(), _tied_as_it_is(model):
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=1,
                max_length=max_length,
                add_bos_token=bos,
                prefix_token_id=prefix_token_id,
                logits_cache=False,
            )
        self.max_length = max_length
        self.folder = folder if folder is not None else str(tokenizer.name_or_path)
        self.bos, self.batch_tokens, self.progress = bos, batch_tokens, progress
        text_config = model.config.get_text_config()
        self.vocabulary: int = text_config.vocab_size
        self.head_rows = head_rows or rows_of(self.vocabulary, model.dtype, self.device)
        self._scale = float(getattr(text_config, "logit_scale", None) or 1.0)
        self._scale /= float(getattr(text_config, "logits_scaling", None) or 1.0)
        self._cap = getattr(text_config, "final_logit_softcapping", None)
        known = model.__dict__.setdefault(REACHED, {})  # every cell has a LongLM of its own
        way = (self.vocabulary, self._scale, self._cap)
        if way not in known:
            known[way] = reach(model, *way)
        self.head, self.head_reason = known[way]
        self.forward_pass = Forward(model, self.vocabulary, devices)
        self.shared_context = SharedContext(model, self.vocabulary)
        self.crop: Cropped | None = None
        self.answered = Answered()
        self.reset_counts()

    @property
    def max_length(self) -> int:
        return int(self._max_length)

    @max_length.setter
    def max_length(self, tokens: int) -> None:
        if tokens < 1:
            raise Refusal(f"max_length={tokens}: give at least 1 token")
        self._max_length = tokens

    def reset_counts(self) -> None:
        self.scored_tokens = self.forward_tokens = 0

    # ------------------------------------------------------------------------------------------------ text to tokens

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
    ) -> list[int]:
        """Token ids of a text, with a BOS as `bos` says; of Tokens its own ids."""
        if isinstance(string, Tokens):
            ids = list(string.ids)
        elif self.bos is None or add_special_tokens is not None:
            ids = super().tok_encode(string, add_special_tokens=add_special_tokens)
        else:
            ids = self.tokenizer.encode(string, add_special_tokens=False)
            if self.bos and ids[:1] != [self.tokenizer.bos_token_id]:
                ids = [self.tokenizer.bos_token_id, *ids]
        if left_truncate_len and len(ids) > left_truncate_len:
            raise TooLong("a text", len(ids), left_truncate_len)
        return list(ids)

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L) token ids and attention mask, padded on the left."""
        assert padding_side == "left"
        rows = [self.tok_encode(string) for string in strings]
        width = max(map(len, rows))
        if left_truncate_len and width > left_truncate_len:
            raise TooLong("a prompt", width + self.max_length - left_truncate_len, self.max_length)
        if self.crop is not None:  # its answer must be seen with it
            answer = self.max_length - left_truncate_len if left_truncate_len else 0
            rows = [self._last(row, len(row), self.crop.window - answer) for row in rows]
            width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids, mask

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if isinstance(context, Tokens):
            return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)
        pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
        return pair

    # ---------------------------------------------------------------------------------------------- log-likelihoods

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Scored]:
        """(LogLikelihood, whether greedy decoding would say the same) of each (context, continuation).

        Raises:
            TooLong: context and continuation but its last token exceed max_length.
        """
        answers: list[Scored] = super().loglikelihood(requests, disable_tqdm=disable_tqdm or not self.progress)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """LogLikelihood of each text.

        Tokens: ids[1:] given ids[:-1], in one forward. Spans: what they say is scored, span by span. Any other text,
        as lm-eval defines it: all its tokens, in disjoint windows of max_length of which each begins with the last
        token of the one before (the first: with prefix_token_id).

        Raises:
            TooLong: Tokens but the last exceed max_length.
        """
        windows = (
            (number, window) for number, request in enumerate(requests) for window in self._windows(request.args[0])
        )
        parts: list[list[LogLikelihood]] = [[] for _ in requests]
        for group in _groups(windows):
            scored = self._loglikelihood_tokens([window for _, window in group], disable_tqdm)
            for (number, _), (likelihood, _) in zip(group, scored, strict=True):
                parts[number].append(likelihood)
        return [joined(part) for part in parts]

    def _windows(self, text: str) -> Iterator[Request]:
        if isinstance(text, Spans):
            for start, stop, scored in text.spans:
                row = [*text.prefix, *text.ids[start:stop]]
                yield None, row[:-scored], row[-scored:]
        elif isinstance(text, Tokens):
            if len(text.ids) < 2:
                raise Refusal(f"a document of {len(text.ids)} tokens: scoring takes at least 2, one of them as context")
            yield None, list(text.ids[:1]), list(text.ids[1:])
        else:
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in windows:
                yield None, *utils.make_disjoint_window(window)

    def _last(self, row: Sequence[int], stop: int, window: int) -> list[int]:
        """The last `window` tokens of row[:stop]; a BOS at its beginning stays there, as one of them."""
        if stop <= window:
            return list(row[:stop])
        kept = row[:1] if row[0] == self.tokenizer.bos_token_id else row[:0]
        return [*kept, *row[stop - window + len(kept) : stop]]

    def _cropped(self, request: Request, crop: Cropped) -> Iterator[Request]:
        """The windows in which a request is scored."""
        _, context, continuation = request
        whole = [*context, *continuation]
        for _, stop, scored in crop.windows(len(whole) - 1, len(continuation)):
            row = [*self._last(whole, stop, crop.window), whole[stop]]
            yield None, row[:-scored], row[-scored:]

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Scored]:
        for _, context, continuation in requests:
            if not context or not continuation:
                raise Refusal("a log-likelihood needs at least 1 token of context and 1 to score")
            if len(context) + len(continuation) - 1 > self.max_length:
                raise TooLong("a text to score", len(context) + len(continuation) - 1, self.max_length)
        if self.crop is None:
            return self._likelihoods(requests, disable_tqdm)
        windows = [list(self._cropped(request, self.crop)) for request in requests]
        scored = iter(self._likelihoods([window for of_one in windows for window in of_one], disable_tqdm))
        parts = [[next(scored) for _ in of_one] for of_one in windows]
        return [(joined([part for part, _ in of_one]), all(greedy for _, greedy in of_one)) for of_one in parts]

    def _likelihoods(self, requests: Sequence[Request], disable_tqdm: bool) -> list[Scored]:
        by_row: dict[tuple[int, ...], list[int]] = {}  # requests that differ in the last token only share a forward
        for number, (_, context, continuation) in enumerate(requests):
            by_row.setdefault((*context, *continuation[:-1]), []).append(number)
        answers: dict[int, Scored] = {}
        ends = {row: [requests[number][2] for number in numbers] for row, numbers in by_row.items()}
        with tqdm(total=len(ends), desc="texts", disable=disable_tqdm or not self.progress) as bar:
            for work in self._work({row: max(map(len, targets)) for row, targets in ends.items()}):
                rows = work.rows if isinstance(work, Group) else work
                numbers = [number for row in rows for number in by_row[row]]
                wholes = [[*requests[number][1], *requests[number][2]] for number in numbers]
                scored = self.answered.scores(wholes, partial(self._scored, work, ends))
                answers.update(zip(numbers, scored, strict=True))
                bar.update(len(rows))
        return [answers[number] for number in range(len(requests))]

    def _work(self, keep: Mapping[Row, int]) -> Iterator[Group | Sequence[Row]]:
        """Every row once, in a batch or in a group whose rows begin alike. keep: its last tokens that are scored."""
        groups, alone = split(keep) if self.head == "chunked" else ([], list(keep))
        if groups and not self.shared_context.takes(max(group.shared for group in groups)):
            groups, alone = [], list(keep)
        yield from groups
        # Where logits of whole rows are held, one row is enough; and `keep` counts from its very end.
        yield from batches(alone, self.batch_tokens if self.head == "chunked" else 1)

    def _scored(self, work: Group | Sequence[Row], ends: Mapping[Row, Sequence[list[int]]]) -> list[Scored]:
        """Scores of what ends each row, in the order of the rows."""
        if isinstance(work, Group):
            passes = self._after_shared(work)
        else:
            keep = max(len(target) for row in work for target in ends[row])
            passes = iter([(work, self._states(work, keep=keep))])
        scored = []
        for rows, states in passes:
            for state, row in zip(states, rows, strict=True):
                # `state` ends with padding, and begins where _states kept from.
                end = len(row) - (max(map(len, rows)) - state.shape[0])
                scored += [self._score(state[end - len(target) : end], target) for target in ends[row]]
        return scored

    def _after_shared(self, group: Group) -> Iterator[tuple[Sequence[Row], torch.Tensor]]:
        done = 0
        try:
            for rows, states in self.shared_context.states(group, self.batch_tokens):
                self.forward_tokens += sum(len(row) - group.shared for row in rows) + group.shared * (done == 0)
                done += len(rows)
                yield rows, states
        except torch.OutOfMemoryError:  # of keys and values beside all else: what a text takes alone may fit
            if done == len(group.rows):
                raise
            for row in group.rows[done:]:
                yield [row], self._states([row], keep=0)

    @torch.no_grad()
    def _states(self, rows: Sequence[tuple[int, ...]], keep: int) -> torch.Tensor:
        """(B, L, H) last hidden states; or (B, <= L, V) logits of at least the last `keep` tokens of each row."""
        width = max(map(len, rows))
        # Right padding needs no mask: attention is causal.
        ids = torch.from_numpy(np.array([row + (0,) * (width - len(row)) for row in rows])).to(self.device)
        self.forward_tokens += sum(map(len, rows))
        if self.head == "chunked":
            states = self.forward_pass.states(ids)
        elif self.head == "logits_to_keep":
            states = self.model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
        else:
            states = self.model(input_ids=ids, use_cache=False).logits
        return states

    @torch.no_grad()
    def _score(self, states: torch.Tensor, target: list[int]) -> Scored:
        """Score n target ids against n rows of hidden states or logits, a chunk of rows at a time."""
        head = (self.model.get_output_embeddings(), self._scale, self._cap) if self.head == "chunked" else None
        tokens, greedy = score(states, target, head, self.head_rows)
        self.scored_tokens += len(target)
        return LogLikelihood(float(tokens.sum(dtype=np.float64)), tokens), greedy

    # -------------------------------------------------------------------------------------------------- generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each prompt.

        Raises:
            TooLong: a prompt and the tokens it asks for exceed max_length.
        """
        for request in requests:
            prompt, options = request.args[:2]
            needed = len(self.tok_encode(prompt)) + normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
            if needed > self.max_length:
                raise TooLong("a prompt with its answer", needed, self.max_length)
        silent = disable_tqdm or not self.progress
        # one at a time, as lm-eval does at a batch size of 1 too
        return [self.answered.text(one.args, partial(self._generated, one, silent)) for one in requests]

    @torch.no_grad()
    def _generated(self, request: Any, silent: bool) -> str:
        [text] = super().generate_until([request], disable_tqdm=silent)
        return str(text)

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        tokens: torch.Tensor = super()._model_generate(context, *args, **kwargs)
        self.forward_tokens += tokens.numel()
        return tokens


def batches(rows: Iterable[tuple[int, ...]], batch_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Rows of token ids, longest first, in batches of at most `batch_tokens` with padding; a longer row goes alone.

    Which rows meet depends on the rows alone, not on their order.

    >>> list(batches([(1,), (5, 6, 7), (2, 3)], batch_tokens=4))
    [[(5, 6, 7)], [(2, 3), (1,)]]
    """
    batch: list[tuple[int, ...]] = []
    for row in sorted(rows, key=lambda row: (-len(row), row)):
        if batch and len(batch[0]) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _groups(windows: Iterable[tuple[int, Request]]) -> Iterator[list[tuple[int, Request]]]:
    """Numbered windows in groups of at most WINDOW_TOKENS, cut as they are needed; a longer window goes alone."""
    group: list[tuple[int, Request]] = []
    tokens = 0
    for number, window in windows:
        size = len(window[1]) + len(window[2])
        if group and tokens + size > WINDOW_TOKENS:
            yield group
            group, tokens = [], 0
        group.append((number, window))
        tokens += size
    if group:
        yield group
