"""Logits -> log-probabilities: the same by every way, and no more work than an answer takes."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.tasks import logits
from pipelines.tasks.logits import score

VOCABULARY, TOKENS, WIDTH = 5000, 60, 16


def case(dtype=torch.float32):
    """A head, states, and the likeliest tokens after them."""
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype)
    states = (3 * torch.randn(TOKENS, WIDTH)).to(dtype)
    return head, states, head(states).float().argmax(1).tolist()


def exact(head, states, target, scale=1.0, cap=None):
    """Log-probabilities in float64 of what the head gives."""
    given = head(states).double() * scale
    given = given if cap is None else torch.tanh(given / cap) * cap
    return given.log_softmax(1).gather(1, torch.tensor(target)[:, None])[:, 0].detach()


def test_the_kernel_computes_the_same():
    """By Triton's interpreter on the CPU, which must be chosen before Triton is loaded."""
    pytest.importorskip("triton")
    checks = Path(__file__).with_name("interpreted_softmax.py")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", str(checks)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=checks.parents[2])
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 5.0)])
def test_terms_are_those_of_float64_in_chunks_of_rows(scale, cap):
    head, states, target = case()
    terms, greedy = score(states, target, (head, scale, cap), rows=13)
    torch.testing.assert_close(
        torch.from_numpy(terms).double(), exact(head, states, target, scale, cap), rtol=1e-6, atol=2e-6
    )
    assert greedy


@pytest.mark.parametrize("rows", [13, TOKENS])
@pytest.mark.parametrize("wrong", [None, 0, 20, TOKENS - 1])
def test_greedy_decoding_says_the_same_if_every_token_is_the_likeliest(rows, wrong):
    head, states, target = case()
    if wrong is not None:
        target[wrong] = (target[wrong] + 1) % VOCABULARY
    assert score(states, target, (head, 1.0, None), rows)[1] is (wrong is None)


def test_the_likeliest_token_is_not_looked_for_once_one_was_another(monkeypatch):
    head, states, target = case()
    target[20] = (target[20] + 1) % VOCABULARY
    looked, likelihoods = [], logits.likelihoods

    def watched(given, wanted, asked):
        looked.append(asked)
        return likelihoods(given, wanted, asked)

    monkeypatch.setattr(logits, "likelihoods", watched)
    score(states, target, (head, 1.0, None), rows=10)
    assert looked == [True, True, True, False, False, False]


def of_torch(given, wanted):
    terms = given.float().log_softmax(1).gather(1, wanted[:, None])[:, 0]
    return terms, given.argmax(1) == wanted


def broken(given, wanted):
    raise RuntimeError("Failed to find\nC compiler")


def wrong(given, wanted):
    return given[:, 0].float(), wanted == 0


@pytest.mark.parametrize(
    ("likelihoods", "reason"),
    [(of_torch, ""), (broken, "Failed to find C compiler"), (wrong, "it computes something else")],
)
def test_a_kernel_that_fails_or_computes_something_else_is_not_taken(monkeypatch, likelihoods, reason):
    monkeypatch.setattr(logits, "softmax", lambda: SimpleNamespace(likelihoods=likelihoods))
    assert logits._tried(torch.randn(2, 50)) == reason


def test_no_kernel_is_looked_for_on_a_cpu(monkeypatch):
    monkeypatch.setattr(logits, "softmax", lambda: pytest.fail("Triton is loaded"))
    head, states, target = case()
    assert logits.rows_of(VOCABULARY, states.dtype, states.device) == logits.CPU_ELEMENTS // VOCABULARY
    score(states, target, (head, 1.0, None), TOKENS)
