"""Small GGUF files of models of transformers, as llama.cpp's converter would write them; and llama.cpp's own scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rope.config import geometry_of

ADDS_ONE = ("gemma", "gemma2", "gemma3", "nemotron")
"""Architectures whose norms transformers keep less 1."""

NEIGHBOURS = ("llama", "mistral3", "granite", "smollm3", "arcee", "olmo")
"""Architectures whose pairs are neighbours in a GGUF file, and half a head apart in transformers."""

BYTES = 257

SIZES = {
    "vocab_size": BYTES,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
"""Of a tiny model with random weights, in the keys of its config."""


def write(path: Path, model: Any, architecture: str, keys: dict[str, Any] | None = None, **more: Any) -> Path:
    """A model of transformers as a float32 GGUF file with a vocabulary of bytes.

    keys: by name without the architecture, over those made of the config; None leaves one out.
    more: tensors (name -> array) beside the model's; drop (names of tensors that are left out).
    """
    import gguf

    config = model.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    said: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        **_epsilon(config),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": head_dim,
        **{
            "rope.freq_base_swa" if layers == "sliding_attention" else "rope.freq_base": geometry.base
            for layers, geometry in geometry_of(config).items()
        },
    } | (keys or {})
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in said.items():
        if value is not None:
            _add(writer, f"{architecture}.{name}", value)
    _vocabulary(writer, config.vocab_size)
    for name, tensor in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if (
            mapped is None
            or (name == "lm_head.weight" and config.tie_word_embeddings)
            or mapped in more.get("drop", ())
        ):
            continue
        array = tensor.float().numpy()
        if architecture in ADDS_ONE and "norm" in stem and suffix == "weight":
            array = array + 1
        if architecture in NEIGHBOURS and stem.endswith(("q_proj", "k_proj")):
            count = heads if stem.endswith("q_proj") else config.num_key_value_heads
            array = array.reshape(count, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(mapped, np.ascontiguousarray(array))
    for name, array in (more.get("tensors") or {}).items():
        writer.add_tensor(name, np.asarray(array, np.float32))
    close(writer)
    return path


def with_list(source: Path, target: Path, name: str, numbers: Any) -> None:
    """A copy with one more tensor of floats, whatever the architecture reads."""
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            kinds = field.types
            writer.add_key_value(field.name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor(name, np.asarray(numbers, np.float32))
    close(writer)


def close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _epsilon(config: Any) -> dict[str, float]:
    if getattr(config, "rms_norm_eps", None) is not None:
        return {"attention.layer_norm_rms_epsilon": float(config.rms_norm_eps)}
    names = ("layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")
    found = next((value for name in names if (value := getattr(config, name, None)) is not None), 1e-5)
    return {"attention.layer_norm_epsilon": float(found)}


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def _vocabulary(writer: Any, size: int) -> None:
    """Bytes, as GPT-2 writes them, and as many unused tokens as the model has besides."""
    from tokenizers import pre_tokenizers

    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet())[:-1], "ab"]  # for one merge, as there must be some
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*alphabet, "<|endoftext|>", *(f"<unused{n}>" for n in range(size - BYTES))][:size])
    writer.add_token_types(([1] * 256 + [3] * (size - 256))[:size])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(min(256, size - 1))
    writer.add_pad_token_id(0)


def llama_cpp_scores(
    path: Path, ids: list[int], overrides: dict[str, Any] | None = None, **parameters: Any
) -> np.ndarray:
    """llama.cpp's log-probabilities, (tokens, vocabulary), with a float32 cache and the context that the ids take.

    parameters: of LlamaContextParams, such as rope_freq_base.
    """
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    llama_cpp.ggml_backend_load_all()
    settings = llama_cpp.LlamaModelParams()
    settings.n_gpu_layers, settings.use_mmap = 0, False
    context = llama_cpp.LlamaContextParams()
    given = {"n_ctx": len(ids), "n_batch": len(ids), "n_ubatch": len(ids), "n_threads": 1, "n_threads_batch": 1}
    for name, value in {**given, "flash_attn_type": 0, "type_k": 0, "type_v": 0, **parameters}.items():
        setattr(context, name, value)

    class Model(llama_cpp.LlamaModel):  # type: ignore[misc, name-defined]
        """With an attribute that get_logits_ith asks for and the class lacks."""

        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    model = Model(path_model=str(path), params=settings)
    running = llama_cpp.LlamaContext(model=model, params=context)
    batch = llama_cpp.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
    for place, token in enumerate(ids):
        batch.add(token, place, [0], True)
    running.decode(batch)
    logits = np.array([running.get_logits_ith(place) for place in range(len(ids))], dtype=np.float64)
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
