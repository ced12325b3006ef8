"""A model and a tokenizer small enough for every test: random weights, one token a byte."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import absl.logging
import psutil
import pytest

pytest_plugins = ["browsing"]

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# Under `pytest -n` tests run side by side in workers, which share the cores; the processes that they start do too.
# Before any test imports torch.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // int(workers))))

# rouge-score imports absl, whose log handler keeps what sys.stderr is at that time: pytest's own file, which it closes
# as soon as Hydra sets up logging in a test that has another one, and no later test could write.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

# As the pool does, but before any test imports ray: under `uv run` it would build workers an environment of their own.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


@pytest.hookimpl(optionalhook=True)  # there is none under `pytest -p no:xdist`
def pytest_xdist_auto_num_workers() -> int:
    """What `pytest -n auto` takes: a worker a core, and at most one for every 4 GB of memory that is free."""
    return max(1, min(CORES, psutil.virtual_memory().available // (4 << 30)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each worker has a part of the tests in their order, so that fixtures of a file are made once; who is done first
    takes over from the others."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped, with the reason, where no GPU is visible."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no GPU is visible"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A folder that from_pretrained loads: a Llama of 2 layers and 256 trained tokens, and a tokenizer of bytes.

    Ids 0-255 are bytes, 256 is <s> (BOS, not added by itself), 257 is </s>; the vocabulary has 260 entries.
    """
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)

    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=257,
        initializer_range=0.2,  # wide, so that predictions are far from uniform
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tiny_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


@pytest.fixture
def tokenizer(tiny_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def one_thread():
    """Threads cost small matrices more than they give. A file of such tests asks for it by pytestmark."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
