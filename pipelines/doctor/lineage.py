"""Static rules that compare a config with what its family declares (families.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.doctor import corrections
from pipelines.doctor.families import Variant
from pipelines.doctor.files import Files
from pipelines.doctor.rules import RuleMatch, measures
from pipelines.doctor.values import NATIVE
from rope.config import DEFAULT_THETA


def _block(published: Variant) -> dict[str, Any]:
    """The rope parameters of Llama 3.1 and its successors."""
    return {
        "rope_type": "llama3",
        "factor": published.factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": published.original,
        "rope_theta": published.theta,
    }


@measures("S03")
def native_replaced(files: Files) -> Iterator[RuleMatch]:
    published = files.variant
    scalings = files.scalings(*NATIVE, "linear", "dynamic", "default")
    types = {layers: block["rope_type"] for layers, block, _ in scalings}
    declared = next((kind for layers, kind in types.items() if layers in ("all", "full_attention")), None)
    if published is not None and published.scaling in NATIVE and declared not in (None, published.scaling):
        measured = {"declared": declared, "published": published.declaration()}
        values = {"family": published.label, "scaling": published.scaling, "published_in": published.source}
        if published.scaling == "llama3":
            block = _block(published)
            yield RuleMatch(measured, "block", values | {"block": block}, corrections.replace_scaling(block))
        else:
            yield RuleMatch(measured, "lists", values)
    elif declared in NATIVE and files.strategy in ("linear", "dynamic_ntk", "ntk", "dynamic", "dynamic_linear", "base"):
        measured = {"declared": declared, "strategy": files.strategy}
        yield RuleMatch(measured, "strategy")


@measures("S10")
def unlike_its_family(files: Files) -> Iterator[RuleMatch]:
    published = files.variant
    if published is None:
        return
    try:
        parameters = files.parameters
    except ValueError:
        return
    block = parameters.get("all") or parameters.get("full_attention") or {}
    theta, values = block.get("rope_theta"), {"family": published.label, "published_in": published.source}
    if theta and abs(theta - published.theta) > 1e-6 * published.theta:
        measured = {"rope_theta": theta, "published": published.theta, "family": published.label}
        if theta < published.theta and theta != DEFAULT_THETA and not files.named:
            pass  # another model of that shape and length, such as DeepSeek Coder
        elif theta < published.theta:
            yield RuleMatch(measured, "theta_lost", values, corrections.set_theta(published.theta))
        else:
            yield RuleMatch(measured, "theta_larger", values)
    if block.get("rope_type") == published.scaling == "llama3":
        right = _block(published)
        wrong = {key: (block.get(key), value) for key, value in right.items() if block.get(key) != value}
        wrong.pop("rope_theta", None)
        if wrong:
            measured = {f"{key} (here, published)": pair for key, pair in wrong.items()}
            yield RuleMatch(measured, "scaling", values | {"block": right}, corrections.replace_scaling(right))
