"""Built models with one fault each, and their clean twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from pipelines.doctor.files import Files
from pipelines.doctor.numeric import Built, collected_warnings

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 260,
    "max_position_embeddings": 256,
}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
ORIGINAL = {"factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3_BOUNDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500_000.0, **LLAMA3_BOUNDS, **ORIGINAL, "factor": 8.0}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, **ORIGINAL}
LISTS = {"short_factor": [1.0] * 8, "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10_000.0, **ORIGINAL, **LISTS}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}


def llama(parameters: dict[str, Any], **shape: Any) -> Any:
    """A random Llama, its predictions far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, **shape}, rope_parameters=dict(parameters), initializer_range=0.06)
    return LlamaForCausalLM(config).eval()


def built(
    declared: dict[str, Any], change: Callable[[Any], Any] | None = None, held: Any = None, target: int | None = None
) -> Built:
    """A model whose files declare one thing, and which holds another or was changed since."""
    model = llama(declared if held is None else held)
    model = (change(model) or model) if change else model
    files = Files("planted", {"model_type": "llama", **SHAPE, "rope_parameters": declared}, target=target)
    return Built(files, model)


def built_gemma(change: Callable[[Any], Any] | None = None, **declared: Any) -> Built:
    """The same with layers of two types."""
    parameters = {"sliding_attention": dict(PLAIN), "full_attention": dict(LINEAR)}
    types = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32}
    config = Gemma3TextConfig(**SHAPE, **types, rope_parameters=parameters)
    model = Gemma3ForCausalLM(config).eval()
    if change:
        change(model)
    text = {"model_type": "gemma3_text", **SHAPE, **types, "rope_parameters": parameters, **declared}
    return Built(Files("planted", text), model)


def rotary(model: Any) -> Any:
    return model.model.rotary_emb


def times(scale: float) -> Callable[[Any], None]:
    """The popular snippet: "dynamic NTK" by multiplying all frequencies."""

    def change(model: Any) -> None:
        rotary(model).inv_freq = rotary(model).inv_freq * scale

    return change


def divided(model: Any) -> None:
    """A scaling in the module alone."""
    rotary(model).inv_freq = rotary(model).inv_freq / 4


def one_pair(model: Any) -> None:
    rotary(model).inv_freq[5] *= 1.001


def one_type(model: Any) -> None:
    rotary(model).full_attention_inv_freq[3] *= 1.01


def long_list(model: Any) -> None:
    rotary(model).long_inv_freq = rotary(model).inv_freq / 2


def fewer_pairs(model: Any) -> None:
    rotary(model).inv_freq = rotary(model).inv_freq[:4]


def doubled_angles(model: Any) -> None:
    """A forward that leaves inv_freq aside."""
    forward = rotary(model).forward
    rotary(model).forward = lambda states, position_ids: forward(states, 2 * position_ids)


def rotary_in(dtype: torch.dtype) -> Callable[[Any], None]:
    return lambda model: rotary(model).to(dtype)


def emptied(model: Any) -> Any:
    """A model made on the meta device whose buffers nobody computed."""
    with torch.device("meta"):
        empty = LlamaForCausalLM(model.config)
    empty.to_empty(device="cpu")
    rotary(empty).inv_freq.zero_()
    return empty


def retuned(model: Any) -> None:
    model.config.rope_parameters = dict(LINEAR)


def flatter(model: Any) -> None:
    rotary(model).attention_scaling = 1.0


def with_table(rows: int) -> Callable[[Any], None]:
    return lambda model: rotary(model).register_buffer("cos_cached", torch.zeros(rows, 16))


def warned(**block: Any) -> Built:
    """What transformers warns of when it reads a config."""
    with collected_warnings() as lines:
        LlamaConfig(**SHAPE, rope_parameters={**YARN, **block})
    return Built(Files("planted", {}), None, tuple(lines))


declared_by_type = Files("planted", {**SHAPE, "rope_parameters": {"full_attention": PLAIN}})

NUMERIC: dict[str, Callable[[], list[tuple[Built, Built]]]] = {
    "W01": lambda: [(warned(attn_factor=0.9), warned()), (warned(factor=0.5), warned())],
    "W02": lambda: [(Built(Files("planted", {}), None, refused="layers are missing"), built(PLAIN))],
    "N01": lambda: [
        (built(LLAMA3, held={**PLAIN, "rope_theta": 500_000.0}), built(LLAMA3)),  # the scaling was dropped
        (built(LINEAR, held=PLAIN), built(LINEAR)),
        (built({**PLAIN, "rope_theta": 500_000.0}, held=PLAIN), built(PLAIN)),  # theta lost
        (built({**LLAMA3, "factor": 32.0}, held=LLAMA3), built({**LLAMA3, "factor": 32.0})),
        # the module alone, while the file and model.config agree
        *[(built(declared, divided), built(declared)) for declared in (PLAIN, LLAMA3, YARN, LINEAR, DYNAMIC, LONGROPE)],
        (built(PLAIN, one_pair), built(PLAIN)),
        (built_gemma(one_type), built_gemma()),
        (built(LONGROPE, long_list), built(LONGROPE)),
        (built(PLAIN, fewer_pairs), built(PLAIN)),
        (built(PLAIN, doubled_angles), built(PLAIN)),
        (
            built(PLAIN, lambda model: vars(rotary(model)).update(rope_type="dynamic", max_seq_len_cached=64)),
            built(PLAIN),
        ),
        (built(DYNAMIC, lambda model: vars(rotary(model)).update(rope_type="default")), built(DYNAMIC)),
        (built_gemma(rope_parameters=dict(LINEAR)), built_gemma()),  # declared flat, and built by layer type
        (Built(declared_by_type, llama(PLAIN)), built(PLAIN)),  # and the other way round
    ],
    "N02": lambda: [(built(PLAIN, retuned), built(PLAIN))],
    "N03": lambda: [
        (built(PLAIN, emptied), built(PLAIN)),
        (built(PLAIN, times(float("nan"))), built(YARN)),
        (built(YARN, times(0.0)), built(DYNAMIC)),
        (built(PLAIN, times(-1.0)), built(LLAMA3)),
    ],
    "N04": lambda: [(built(declared, flatter), built(declared)) for declared in (YARN, LONGROPE)],
    "N05": lambda: [
        (built(PLAIN, lambda model: model.to(torch.bfloat16)), built(PLAIN)),
        (built(LLAMA3, rotary_in(torch.bfloat16)), built(LLAMA3)),
        (built({**PLAIN, "rope_theta": 1e8}, rotary_in(torch.float16)), built({**PLAIN, "rope_theta": 1e8})),
    ],
    "N06": lambda: [(built(PLAIN, times(4.0)), built(PLAIN)), (built(LINEAR, times(16.0)), built(LINEAR, times(1.0)))],
    "N07": lambda: [(built(PLAIN, with_table(256), target=512), built(PLAIN, with_table(256)))],
}


def low_precision(model: Any) -> None:
    """Angles computed in bfloat16, as old code did."""
    module = rotary(model)

    def forward(states: Any, position_ids: Any) -> Any:
        angles = (position_ids[..., None].to(torch.bfloat16) * module.inv_freq.to(torch.bfloat16)).float()
        both = torch.cat((angles, angles), -1)
        return both.cos().to(states.dtype), both.sin().to(states.dtype)

    module.forward = forward


def maskless(model: Any) -> None:
    """A model that leaves the attention mask aside."""
    forward = model.forward
    model.forward = lambda *args, attention_mask=None, **more: forward(*args, **more)


def seeing(model: Any) -> None:
    """Attention that is not causal under SDPA."""
    for layer in model.model.layers:
        layer.self_attn.is_causal = False


BEHAVIOUR: dict[str, Callable[[], list[tuple[Built, Built]]]] = {
    "F01": lambda: [(built(LLAMA3, low_precision), built(LLAMA3))],
    "F02": lambda: [
        (built(DYNAMIC), built(YARN)),
        (built(LONGROPE), built(LINEAR)),
        (built(PLAIN, seeing), built(PLAIN)),
    ],
    "F03": lambda: [(built(DYNAMIC), built(YARN))],
    "D01": lambda: [(built(PLAIN, maskless), built(PLAIN))],
    "D02": lambda: [(built(PLAIN, seeing), built(PLAIN))],
    "D05": lambda: [(built(PLAIN, seeing), built(PLAIN))],
}
