"""What known families declare: theta, lengths and scaling of their published configs, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LITGPT = "Lightning-AI/litgpt litgpt/config.py @0006c97, which names each config.json"


@dataclass(frozen=True)
class Variant:
    """A published checkpoint, or several with equal rotary settings.

    names: regular expression over model names, lower case. theta: base. length: max_position_embeddings.
    scaling: rope type, "default" for none; its factor and original length. trained: tokens of plain training, where it
    is not `length`. source: where these values were read.
    """

    label: str
    names: str
    theta: float
    length: int
    scaling: str = "default"
    factor: float | None = None
    original: int | None = None
    trained: int | None = None
    source: str = LITGPT

    def names_it(self, text: Mapping[str, Any], name: str) -> bool:
        """Whether a config's name, or the one it was made from, is of this checkpoint."""
        return bool(re.search(self.names, f"{name} {text.get('_name_or_path', '')}".lower()))

    @property
    def plain_length(self) -> int:
        """Tokens that its plain frequencies were trained on."""
        return self.original or self.trained or self.length

    def declaration(self) -> str:
        """Its config's values, in words."""
        lengths = f"rope_theta {self.theta:g}, max_position_embeddings {self.length}"
        if self.scaling == "default":
            return f"{lengths}, no scaling"
        factor = "" if self.factor is None else f" factor {self.factor:g}"
        return f"{lengths}, rope_type {self.scaling}{factor} of {self.original}"


LLAMA_3 = Variant("Llama 3", r"llama-?3(?![\d.])", 5e5, 8192)
LLAMA_31 = Variant("Llama 3.1", r"llama-?3\.?[13]", 5e5, 131072, "llama3", 8.0, 8192)
LLAMA_32 = Variant("Llama 3.2 1B/3B", r"llama-?3\.?2", 5e5, 131072, "llama3", 32.0, 8192)
LLAMA_2 = Variant("Llama 2", r"llama-?2", 1e4, 4096)
CODE_LLAMA = Variant("Code Llama", r"code-?llama", 1e6, 16384)
QWEN_32K = Variant("Qwen2.5", r"qwen2", 1e6, 32768)
QWEN_128K = Variant("Qwen2.5", r"qwen2", 1e6, 131072, trained=32768)
QWEN_MATH = Variant("Qwen2.5-Math", r"qwen2.*math", 1e4, 4096)
QWEN_1M = Variant("Qwen2.5-1M", r"qwen2.*1m", 1e7, 1010000)
QWEN_3 = Variant("Qwen3", r"qwen3(?!.*2507)", 1e6, 40960)
QWEN_3_2507 = Variant("Qwen3 2507", r"qwen3.*2507", 5e6, 262144)
_MISTRAL_1 = "transformers' MistralConfig; 8192 by YaRN (2309.00071), table 6"
_MISTRAL_2 = "edadaltocg/mistral-src-finetune finetune/config.py; length by litgpt"
MISTRAL_1 = Variant("Mistral 7B v0.1", r"mistral.*v?0\.?1", 1e4, 32768, trained=8192, source=_MISTRAL_1)
MISTRAL_2 = Variant("Mistral 7B v0.2", r"mistral.*v?0\.?2", 1e6, 32768, source=_MISTRAL_2)
PHI_3_4K = Variant("Phi-3 mini 4k", r"phi-?3.*4k", 1e4, 4096)
_PHI_3 = f"{LITGPT}; original length by transformers' Phi3Config"
PHI_3_128K = Variant("Phi-3 mini 128k", r"phi-?3.*128k", 1e4, 131072, "longrope", None, 4096, source=_PHI_3)
GEMMA_2 = Variant("Gemma 2", r"gemma-?2", 1e4, 8192)
GEMMA_3 = Variant("Gemma 3", r"gemma-?3", 1e6, 131072, "linear", 8.0)
SMOLLM_2 = Variant("SmolLM2 135M", r"smollm-?2", 1e5, 8192)

Shape = tuple[str, int, int, int, int, int]
"""model_type, hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, vocab_size."""

KNOWN: dict[Shape, tuple[Variant, ...]] = {
    ("llama", 4096, 32, 32, 8, 128256): (LLAMA_3, LLAMA_31),
    ("llama", 8192, 80, 64, 8, 128256): (LLAMA_3, LLAMA_31),
    ("llama", 16384, 126, 128, 8, 128256): (LLAMA_31,),
    ("llama", 2048, 16, 32, 8, 128256): (LLAMA_32,),
    ("llama", 3072, 28, 24, 8, 128256): (LLAMA_32,),
    ("llama", 4096, 32, 32, 32, 32000): (LLAMA_2, CODE_LLAMA),
    ("llama", 5120, 40, 40, 40, 32000): (LLAMA_2, CODE_LLAMA),
    ("llama", 8192, 80, 64, 8, 32000): (LLAMA_2, CODE_LLAMA),
    ("llama", 576, 30, 9, 3, 49152): (SMOLLM_2,),
    ("qwen2", 896, 24, 14, 2, 151936): (QWEN_32K, QWEN_128K),
    ("qwen2", 1536, 28, 12, 2, 151936): (QWEN_32K, QWEN_128K, QWEN_MATH),
    ("qwen2", 2048, 36, 16, 2, 151936): (QWEN_32K,),
    ("qwen2", 3584, 28, 28, 4, 152064): (QWEN_32K, QWEN_128K, QWEN_MATH, QWEN_1M),
    ("qwen2", 5120, 48, 40, 8, 152064): (QWEN_32K, QWEN_128K, QWEN_1M),
    ("qwen2", 5120, 64, 40, 8, 152064): (QWEN_32K, QWEN_128K),
    ("qwen2", 8192, 80, 64, 8, 152064): (QWEN_32K, QWEN_128K, QWEN_MATH),
    ("qwen3", 1024, 28, 16, 8, 151936): (QWEN_3,),
    ("qwen3", 2048, 28, 16, 8, 151936): (QWEN_3,),
    ("qwen3", 2560, 36, 32, 8, 151936): (QWEN_3, QWEN_3_2507),
    ("qwen3", 4096, 36, 32, 8, 151936): (QWEN_3,),
    ("qwen3", 5120, 40, 40, 8, 151936): (QWEN_3,),
    ("qwen3", 5120, 64, 64, 8, 151936): (QWEN_3,),
    ("mistral", 4096, 32, 32, 8, 32000): (MISTRAL_1, MISTRAL_2),
    ("phi3", 3072, 32, 32, 32, 32064): (PHI_3_4K, PHI_3_128K),
    ("gemma2", 2304, 26, 8, 4, 256000): (GEMMA_2,),
    ("gemma2", 3584, 42, 16, 8, 256000): (GEMMA_2,),
    ("gemma2", 4608, 46, 32, 16, 256000): (GEMMA_2,),
    ("gemma3_text", 2560, 34, 8, 4, 262208): (GEMMA_3,),
    ("gemma3_text", 3840, 48, 16, 8, 262208): (GEMMA_3,),
    ("gemma3_text", 5376, 62, 32, 16, 262208): (GEMMA_3,),
}
"""The checkpoints of a shape. Llama 3 and 3.1 share theirs: name and length tell them apart."""

ADDED_TOKENS = 1024
"""A fine-tuned model may have this many tokens more than its family, or fewer."""


def variants(text: Mapping[str, Any]) -> tuple[Variant, ...]:
    """What a config may be of, by the shape of its decoder; () for unknown shapes."""
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    vocabulary = text.get("vocab_size")
    for (*shape, tokens), known in KNOWN.items():
        if shape == [text.get(name) for name in names] and abs((vocabulary or 0) - tokens) <= ADDED_TOKENS:
            return known
    return ()


def variant(text: Mapping[str, Any], name: str) -> Variant | None:
    """The checkpoint that a config should be of: the one whose name it bears, else the one of its length, else the
    only one of its shape; None where these do not decide."""
    known = variants(text)
    named = [variant for variant in known if variant.names_it(text, name)]
    for some in (named, known):
        same = [variant for variant in some if variant.length == text.get("max_position_embeddings")]
        if len(some) == 1 or same:
            return (same or some)[0]
    return None
