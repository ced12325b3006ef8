"""Whether a mechanical fix does what it promises: the corrected config is built, and its frequencies compared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from pipelines.doctor import corrections, rules
from pipelines.doctor.files import Files, native
from pipelines.doctor.numeric import EXACT
from pipelines.doctor.rules import RuleFinding
from pipelines.models import built
from pipelines.models.built import Rotary
from pipelines.records.cells import Refusal
from rope.geometry import Plan
from rope.strategies import bounded


def offered(files: Files, findings: Iterable[RuleFinding]) -> tuple[RuleFinding, ...]:
    """The findings; a correction that does not do what it promises is withheld, with the reason."""
    result = []
    for finding in findings:
        reason = broken(files, [finding]) if finding.correction is not None else None
        result.append(replace(finding, correction=None, withheld=reason) if reason else finding)
    return tuple(result)


def broken(files: Files, findings: Iterable[RuleFinding]) -> str | None:
    """Why these corrections together do not do what they promise; None where they do."""
    findings = [finding for finding in findings if finding.correction is not None]
    try:
        config = corrections.corrected(files.config, findings)
        fixed = replace(files, config=config, tokenizer=corrections.tokenizer(files, config))
        expected = {layers: native(geometry) for layers, geometry in fixed.geometries.items()}
    except ValueError as error:
        return f"the corrected config cannot be read: {error}"
    try:
        held = built.built(config).rotary
        before = built.built(files.config).rotary if all(f.correction.keeps for f in findings if f.correction) else held
    except Refusal as reason:
        return str(reason)
    return _unkept(fixed, findings) or _left(fixed, findings) or _differing(held, expected) or _moved(held, before)


def _unkept(fixed: Files, findings: Iterable[RuleFinding]) -> str | None:
    """A promised value that the corrected config does not have."""
    for finding in findings:
        correction = finding.correction
        assert correction is not None
        for layers, block in fixed.parameters.items():
            if layers == correction.layers or (not correction.layers and not bounded(layers)):
                for key, value in correction.promised.items():
                    if block.get(key) != value:
                        return f"{key} of the corrected config is {block.get(key)}, and not {value}"
    return None


def _left(fixed: Files, findings: Iterable[RuleFinding]) -> str | None:
    """A rule that still finds what it would correct."""
    ids = [finding.id for finding in findings]
    left = [finding.id for finding in rules.judge("static", fixed, ids).findings if finding.correction] if ids else []
    return f"{left[0]} finds the same in the corrected config" if left else None


def _differing(held: Iterable[Rotary], expected: dict[str, Plan]) -> str | None:
    """A difference between what transformers builds and what the corrected config says."""
    for module in held:
        plan = expected.get(module.layer_type)
        if plan is None:
            return f"transformers builds rotations for {module.layer_type}, which the corrected config does not name"
        reason = _difference(module, plan.inv_freq, plan.attention_factor)
        if reason:
            return f"transformers builds another rotation from the corrected config: {reason}"
    missing = set(expected) - {module.layer_type for module in held}
    return f"transformers builds no rotation for {', '.join(sorted(missing))}" if missing else None


def _moved(held: Iterable[Rotary], before: Iterable[Rotary]) -> str | None:
    """A difference between two models that should rotate alike."""
    was = {module.layer_type: module for module in before}
    for module in held:
        old = was.get(module.layer_type)
        reason = "it has other layer types" if old is None else _difference(module, old.inv_freq, old.attention_factor)
        if reason:
            return f"it should change no frequency, and transformers builds others: {reason}"
    return None


def _difference(module: Rotary, inv_freq: tuple[float, ...], attention_factor: float) -> str | None:
    here, there = np.array(module.inv_freq), np.array(inv_freq)
    if len(here) != len(there):
        return f"{len(here)} pairs for {len(there)}"
    wrong = ~np.isclose(here, there, rtol=EXACT, atol=0)
    if wrong.any():
        first = int(np.argmax(wrong))
        return f"{int(wrong.sum())} of {len(here)} frequencies, the first {here[first]:.6g} for {there[first]:.6g}"
    if not math.isclose(module.attention_factor, attention_factor, rel_tol=EXACT):
        return f"attention factor {module.attention_factor:.6g} for {attention_factor:.6g}"
    return None
