"""What is said of a model's layers: which rotate, how far they see, and on which a strategy acts."""

from __future__ import annotations

import pytest

from pipelines.choices.layers import sentences
from rope.config import attention_layers, geometry_of

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4, "max_position_embeddings": 4096}


def said(**config):
    full = SIZES | config
    return " ".join(sentences("it", attention_layers(full), full["num_hidden_layers"], geometry_of(full)))


def test_a_model_that_rotates_and_sees_everywhere_needs_no_word():
    assert said(model_type="llama") == ""


@pytest.mark.parametrize(
    "config, expected",
    [
        (
            {"model_type": "smollm3"},
            "it: rotates in 3 of 4 layers; 1 attends without rotation (3). it: strategies act on the 3 layers with "
            "rotation.",
        ),
        (
            {"model_type": "cohere2", "num_hidden_layers": 8, "sliding_window": 1024},
            "it: rotates in 6 of 8 layers; 2 attend without rotation (3, 7); 6 see at most 1,024 tokens. "
            "it: no rotating layer sees beyond the trained length, so scaling cannot help. "
            "it: strategies act on the 6 layers with rotation.",
        ),
        (
            {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window": 512},
            "it: rotates in 6 of 6 layers; 5 see at most 512 tokens. "
            "it: strategies act on the 1 layer of the type full_attention.",
        ),
        (
            {"model_type": "qwen3_next"},
            "it: rotates in 1 of 4 layers; 3 have no attention. it: strategies act on the 1 layer with rotation.",
        ),
    ],
)
def test_layers_that_differ_are_told_apart(config, expected):
    assert said(**config) == expected
