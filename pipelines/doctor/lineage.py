"""Static rules that hold a config against what its family declares (families.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.doctor import mends
from pipelines.doctor.families import Variant
from pipelines.doctor.files import Files
from pipelines.doctor.rules import Finding, rule
from pipelines.doctor.values import NATIVE, scalings
from rope.config import DEFAULT_THETA


@rule(
    "S03", "static", "error", "a native scaling that is lost, or about to be replaced by another",
    "unsloth#7028: Llama 3.1 at position 65K, perplexity 166 with linear in place of llama3; axolotl#383",
)  # fmt: skip
def native_replaced(files: Files) -> Iterator[Finding]:
    published = files.variant
    types = {kind: one["rope_type"] for kind, one in scalings(files, *NATIVE, "linear", "dynamic", "default")}
    full = next((told for kind, told in types.items() if kind in ("all", "full_attention")), None)
    if published is not None and published.scaling in NATIVE and full not in (None, published.scaling):
        yield Finding(
            symptom="fine on short texts, garbage beyond the first thousands of tokens",
            measured={"declared": full, "published": published.words()},
            cause=f"{published.label} was trained with {published.scaling}; this config has {full} in its place",
            fix="restore the published block: "
            + (_block(published) or "its lists are in the checkpoint's own config.json"),
            source=f"unsloth#7028; {published.source}",
            mend=mends.scaling(_block_of(published)) if published.scaling == "llama3" else None,
        )
    elif full in NATIVE and files.strategy in ("linear", "dynamic_ntk", "ntk", "dynamic", "dynamic_linear", "base"):
        yield Finding(
            level="warning",
            symptom="collapse beyond the native window, where the native scaling alone would have degraded slowly",
            measured={"declared": full, "asked for": files.strategy},
            cause=f"ropewalk puts {files.strategy} on top of the native {full}; a program that takes one rope_scaling "
            "(transformers, vLLM, unsloth) replaces it instead",
            fix="measure strategy=none beyond the window first; deploy the config that ropewalk writes "
            "(patched_config.json), never a bare rope_scaling",
        )


def _block_of(published: Variant) -> dict[str, Any]:
    return {
        "rope_type": "llama3", "factor": published.factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": published.original, "rope_theta": published.theta,
    }  # fmt: skip


def _block(published: Variant) -> str:
    return str(_block_of(published)) if published.scaling == "llama3" else ""


@rule(
    "S10", "static", "error", "values that are not those of a known family: theta, factor, lengths",
    "llama-models#241 (Llama 3.2 needs factor 32), gpt-fast#179, pegainfer#220",
)  # fmt: skip
def unlike_its_family(files: Files) -> Iterator[Finding]:
    published = files.variant
    if published is None:
        return
    try:
        parameters = files.parameters
    except ValueError:
        return
    one = parameters.get("all") or parameters.get("full_attention") or {}
    theta = one.get("rope_theta")
    if theta and abs(theta - published.theta) > 1e-6 * published.theta:
        lost = theta == DEFAULT_THETA or theta < published.theta
        yield Finding(
            level="error" if lost else "warning",
            symptom="garbage beyond some hundred tokens" if lost else "right only if it was trained so",
            measured={"rope_theta": theta, "published": published.theta, "family": published.label},
            cause="the base was lost on the way and a default took its place" if lost
            else "a larger base is how some fine-tunes reach further (ABF, 2309.16039); the weights must know it",
            fix=f"rope_theta: {published.theta:g}" + ("" if lost else ", unless this is such a fine-tune"),
            source=published.source,
            mend=mends.theta(published.theta) if lost else None,
        )  # fmt: skip
    if one.get("rope_type") == published.scaling == "llama3":
        wrong = {
            key: (one.get(key), wanted)
            for key, wanted in _block_of(published).items()
            if key not in ("rope_type", "rope_theta") and one.get(key) != wanted
        }
        if wrong:
            yield Finding(
                symptom="good on short texts, bad beyond tens of thousands of tokens",
                measured={f"{key} (here, published)": pair for key, pair in wrong.items()},
                cause=f"{published.label} was trained with other values; tools that hard-code factor 8 write them",
                fix=f"rope_scaling: {_block(published)}",
                source=f"llama-models#241; {published.source}",
                mend=mends.scaling(_block_of(published)),
            )
