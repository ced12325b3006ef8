"""What test_logits.py runs in a process of its own: the kernel by Triton's interpreter (TRITON_INTERPRET=1)."""

import pytest
import torch

from pipelines.tasks import logits
from pipelines.tasks.softmax import BLOCK, likelihoods


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [5, BLOCK, 2 * BLOCK + 900])
def test_the_kernel_computes_log_softmax_and_finds_the_first_likeliest(dtype, vocabulary):
    torch.manual_seed(0)
    given = (5 * torch.randn(40, vocabulary)).to(dtype)
    given[3] = 1.0  # all alike: the first one is the likeliest
    given[4, 2] = given[4, 4] = given[4].max() + 1
    wanted = given.argmax(1)
    wanted[3], wanted[4], wanted[5:20] = 0, 4, torch.randint(0, vocabulary, (15,))
    terms, likeliest = likelihoods(given, wanted)
    torch.testing.assert_close(
        terms.double(), given.double().log_softmax(1).gather(1, wanted[:, None])[:, 0], rtol=1e-6, atol=2e-6
    )
    assert torch.equal(likeliest, given.float().argmax(1) == wanted)
    assert likeliest[3] and not likeliest[4]


def test_the_kernel_reads_rows_of_a_wider_tensor_and_says_nan_where_it_is_given_one():
    wide = torch.randn(6, 100)
    wide[2, 3] = torch.nan
    terms, _ = likelihoods(wide[:, :37], torch.arange(6))
    expected = wide[:, :37].log_softmax(1)[torch.arange(6), torch.arange(6)]
    torch.testing.assert_close(terms, expected, equal_nan=True)
    assert likelihoods(wide[:0], torch.arange(0))[0].shape == (0,)


def test_scores_by_the_kernel_are_those_without_it(monkeypatch):
    torch.manual_seed(0)
    head, states = torch.nn.Linear(16, 5000, bias=False), 3 * torch.randn(20, 16)
    target = head(states).argmax(1).tolist()
    for ids in (target, [*target[:-1], 7]):
        terms, greedy = logits.score(states, ids, (head, 0.5, 9.0), 6)
        with monkeypatch.context() as patch:
            patch.setattr(logits, "no_kernel", lambda given: "")
            by_kernel, same = logits.score(states, ids, (head, 0.5, 9.0), 6)
        torch.testing.assert_close(torch.from_numpy(by_kernel), torch.from_numpy(terms), rtol=1e-6, atol=2e-6)
        assert same is greedy is (ids == target)
