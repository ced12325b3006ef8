"""What transformers says about rope while it loads a model, and whether it matters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["harmless", "harmful", "depends"]

UTILS = "modeling_rope_utils.py"


@dataclass(frozen=True)
class Message:
    """A warning of transformers.

    words: a part of it that never changes. means: in a sentence, for who has just read it. fix: what to do. file: of
    transformers' sources, where the words stand.
    """

    words: str
    verdict: Verdict
    means: str
    fix: str
    file: str = UTILS


MESSAGES = (
    Message(
        "Unrecognized keys in `rope_",
        "depends",
        "these keys are read by nobody, and the value that was meant is not in force",
        "S06 tells a misspelling from a leftover",
    ),
    Message(
        "Missing required keys in `rope_parameters` for 'rope_type'=",
        "harmful",
        "the scaling lacks a number, and loading the config raises KeyError",
        "add the key (S17)",
    ),
    Message(
        "'s factor field must be a float or int >= 1, got",
        "harmful",
        "the factor is used all the same: below 1 every pair turns faster and the context shrinks",
        "wanted length / trained length (S04)",
    ),
    Message(
        "The explicitly set RoPE scaling factor (config.rope_parameters['factor'] =",
        "depends",
        "the factor in the file is used, but lengths beside it say another; other programs go by those",
        "make the three agree (S02)",
    ),
    Message(
        "Missing validation function in 'RotaryEmbeddingConfigMixin' for 'rope_type'=",
        "harmful",
        "no such type: building the model raises KeyError",
        "write a type that transformers has (S12)",
    ),
    Message(
        "`standardize_rope_params` was called but no RoPE parameters were found.",
        "depends",
        "the config names neither theta nor scaling; the class's default theta is taken",
        "write rope_theta (V04)",
    ),
    Message(
        "'s attention_factor field must be a float",
        "harmless",
        "a whole number is used as it is",
        "write it with a decimal point to be rid of the warning; a negative one is a mistake",
    ),
    Message(
        "'s beta_fast field must be greater than beta_slow, got",
        "harmful",
        "the ramp is upside down: fast pairs are slowed and slow ones are not",
        "beta_fast: 32, beta_slow: 1",
    ),
    Message(
        "'s beta_fast field must be a float or int, got",
        "harmful",
        "YaRN's ramp has no upper end, and building the model fails",
        "beta_fast: 32",
    ),
    Message(
        "'s beta_slow field must be a float or int, got",
        "harmful",
        "YaRN's ramp has no lower end, and building the model fails",
        "beta_slow: 1",
    ),
    Message(
        "'s short_factor field must",
        "harmful",
        "the list does not fit the rotated pairs, and the first forward fails",
        "copy the checkpoint's own lists (S14)",
    ),
    Message(
        "'s long_factor field must",
        "harmful",
        "the list does not fit the rotated pairs, and the first long forward fails",
        "copy the checkpoint's own lists (S14)",
    ),
    Message(
        "'s original_max_position_embeddings field must be an integer, got",
        "harmful",
        "the ramp is laid for a length that is none",
        "original_max_position_embeddings: the trained length",
    ),
    Message(
        "'s original_max_position_embeddings field must be less than max_position_embeddings, got",
        "depends",
        "the scaling is in force, but programs that go by max_position_embeddings never run beyond the original length",
        "max_position_embeddings: factor x original (S02)",
    ),
    Message(
        "'s partial_rotary_factor is None. This will default to 1.0",
        "depends",
        "without a share, proportional rotates all pairs as default or linear do",
        "partial_rotary_factor: the share that turns, or rope_type: default",
    ),
    Message(
        "`rope_config_validation` is deprecated and has been removed.",
        "harmless",
        "code of the checkpoint's own calls something that checks nothing any more",
        "nothing; N01 tells whether that code reads the scaling",
    ),
    Message(
        "This model config has set a `rope_parameters['original_max_position_embeddings']` field",
        "harmless",
        "the factor is computed from the two lengths, as Phi-3 means it",
        "nothing, unless max_position_embeddings is changed: then give factor as well",
    ),
    Message(
        "Missing required keys in `rope_parameters`: 'factor'",
        "harmful",
        "neither a factor nor an original length: nothing says by how much to scale",
        "give factor and original_max_position_embeddings",
    ),
    Message(
        "'s low_freq_factor field must be a float, or int got",
        "harmful",
        "llama3's ramp has no lower end",
        "low_freq_factor: 1.0",
    ),
    Message(
        "'s high_freq_factor field must be a float or int, got",
        "harmful",
        "llama3's ramp has no upper end",
        "high_freq_factor: 4.0",
    ),
    Message(
        "'s high_freq_factor field must be greater than low_freq_factor",
        "harmful",
        "the ramp of llama3 runs backwards, and the frequencies jump",
        "low_freq_factor: 1.0, high_freq_factor: 4.0 (S16)",
    ),
    Message(
        "Token indices sequence length is longer than the specified maximum sequence length for this model",
        "harmless",
        "the tokenizer only counts; nothing is cut unless truncation was asked for",
        "raise model_max_length to be rid of it (S11); what the model can do at that length, the cliff tells",
        "tokenization_utils_base.py",
    ),
)


def translated(heard: Iterable[str]) -> Iterator[tuple[str, Message]]:
    """What was heard and is known, each once, with what it means."""
    for line in dict.fromkeys(heard):
        message = next((one for one in MESSAGES if one.words in line), None)
        if message is not None:
            yield line, message
