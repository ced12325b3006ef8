"""What was found, for a terminal and for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.choices.outlook import Outlook
from pipelines.doctor.advice import Advice
from pipelines.doctor.cliff import context_gains
from pipelines.doctor.examine import Examination
from pipelines.doctor.profile import Profile, buckets, first_broken
from pipelines.doctor.rules import LEVELS, RULES, STAGES, Finding, Verdict
from pipelines.records.cells import option_text
from pipelines.records.numbers import number

STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}
WIDTH = 9
THREADS = """
NAME#NUMBER is a thread on GitHub: hf is huggingface/transformers, lm-eval EleutherAI/lm-evaluation-harness, vllm
vllm-project/vllm, and so on; the file of a program is named where its code says so."""
ROWS = 14
GIB = 2**30


def rules(console: Console) -> None:
    """Every rule, by stage: id, level, what it looks for and where that is told."""
    for stage, about in STAGES.items():
        console.print(Text(f"{stage}: {about}", style="bold"))
        for one in RULES.values():
            if one.stage == stage:
                line = Text(f"  {one.id:<4} ")
                line.append(f"{one.level:<8}", STYLES[one.level]).append(f" {one.looks_for}\n")
                line.append(f"                {one.source}", "dim")
                console.print(line)
    console.print(THREADS)


def findings(console: Console, verdict: Verdict) -> None:
    """Errors first; then how many rules were silent, and which could not be judged."""
    for level in LEVELS:
        for found in verdict.findings:
            if found.level == level:
                console.print()
                console.print(_finding(found))
    console.print()
    counts = {level: sum(found.level == level for found in verdict.findings) for level in LEVELS}
    counted = [f"{count} {level}{'s' if count != 1 and level != 'info' else ''}" for level, count in counts.items()]
    console.print(f"{', '.join(counted)}; {len(verdict.silent)} rules found nothing", style="bold")
    for reason, ids in _by_reason(verdict.unjudged).items():
        console.print(Text(f"not judged: {', '.join(ids)} ({reason})"))


def _finding(found: Finding) -> Text:
    line = Text(f"{found.level:<{WIDTH}}", STYLES[found.level])
    line.append(f"{found.id}  {found.symptom}\n", "bold")
    measured = "; ".join(f"{name}: {value_told(value)}" for name, value in found.measured.items())
    for name, words in (("measured", measured), ("cause", found.cause), ("fix", found.fix), ("source", found.source)):
        line.append(f"  {name:<{WIDTH}}", "dim").append(f"{words}\n", "dim" if name == "source" else "")
    if found.mend is not None:
        line.append(f"  {'':<{WIDTH}}").append("mechanical: --fix OUT writes it\n", "dim")
    line.rstrip()
    return line


def value_told(value: Any) -> str:
    """A measured value in a few characters."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value) if (math.isfinite(value) and abs(value) >= 0.001) or value == 0 else f"{value:.2g}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(value_told, value)) + ")"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {value_told(entry)}" for key, entry in value.items()) + "}"
    return option_text(value)


def _by_reason(unjudged: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for id, reason in unjudged.items():
        reasons.setdefault(reason, []).append(id)
    return reasons


def report(console: Console, found: Examination) -> None:
    """All of an examination: findings, long documents, theory, advice."""
    findings(console, found.verdict)
    if found.profile is not None:
        _profile(console, found.profile)
    if found.outlooks:
        _theory(console, found.outlooks)
    if found.advice is not None:
        _advice(console, found.advice)


def _profile(console: Console, profile: Profile) -> None:
    told = [one for one in buckets(profile) if one.excess is not None]
    if len(told) > ROWS:
        first = first_broken(profile)
        at = told.index(first) if first in told else ROWS // 2
        start = max(0, min(at - ROWS // 2 + 2, len(told) - ROWS))
        told = sorted({*told[start : start + ROWS], told[0], told[-1]}, key=lambda one: one.start)
    table = Table(
        title=f"NLL by position, {len(profile.nll)} documents of {profile.text}: nats a token, and by how much more "
        f"than the same tokens with context within {profile.edge:,}",
        title_justify="left", title_style="bold",
    )  # fmt: skip
    for number_, name in enumerate(("tokens", "NLL", "more by", "95 %")):
        table.add_column(name, justify="right" if number_ else "left")
    for one in told:
        assert one.excess is not None and one.low is not None and one.high is not None
        mark = " ▼" if one.broken else ""
        row = (f"{one.start:,} to {one.end:,}", f"{one.nll:.3f}", f"{one.excess:+.3f}{mark}")
        table.add_row(*row, f"{one.low:+.3f} to {one.high:+.3f}")
    console.print()
    console.print(table)
    gains = "; ".join(f"{one.nats:+.3f} from {one.context // 2:,} to {one.context:,}" for one in context_gains(profile))
    if gains:
        console.print(f"nats that twice the context gains, just before {profile.edge:,}: {gains}")
    if profile.note:
        console.print(f"left out: {profile.note}")


def _theory(console: Console, outlooks: Sequence[Outlook]) -> None:
    console.print("\nTheory", style="bold")
    for one in outlooks:
        base = f" (a plain base of {one.smallest_base:,.0f} keeps it positive)" if one.smallest_base else ""
        negative = f"is negative from {one.first_negative:,} on{base}" if one.first_negative else "stays positive"
        layers = "" if one.layers == "all" else f" ({one.layers})"
        console.print(
            Text(
                f"  {one.name}{layers} at {one.length:,}: critical pair {one.round_trained} of {one.pairs} (all before"
                f" it come round in training); {one.unseen:.1%} of the angles were never seen; the long-range sum "
                f"{negative}"
            )
        )


def _advice(console: Console, told: Advice) -> None:
    stretch = f"{told.factor:.4g} times what it holds" if told.factor > 1 else "within what it holds"
    table = Table(title=f"For {told.target:,} tokens, {stretch}", title_justify="left", title_style="bold")
    for name in ("strategy", "what it comes to", "weights", "engines that can say it (* not at other lengths)"):
        table.add_column(name)
    for one in told.candidates:
        words = [f"{one.formula}."]
        words += [f"Sweep factor={','.join(f'{value:g}' for value in one.sweep)}."] if one.sweep else []
        words += [f"{one.note[0].upper()}{one.note[1:]}."] if one.note else []
        table.add_row(one.strategy, Text(" ".join(words)), one.when, ", ".join(one.engines) or "none")
    console.print()
    console.print(table)
    if told.kv_bytes is not None and told.scoring_bytes is not None and told.weight_bytes is not None:
        fits = f"; up to {told.fits:,} tokens fit here" if told.fits else ""
        console.print(
            f"memory in {told.dtype}: weights {told.weight_bytes / GIB:.2f} GiB, a KV cache of {told.target:,} tokens "
            f"{told.kv_bytes / GIB:.2f} GiB; scoring that many at once {told.scoring_bytes / GIB:.2f} GiB{fits}"
        )
    console.print("\nWhat decides (`plan` in place of `grid` tells its time first):", style="bold")
    for command in told.commands:
        console.print(Text(f"  {command}"))


def whole(found: Examination) -> dict[str, Any]:
    """An examination as plain data; null is what is not known."""
    profile, order = found.profile, found.order
    return {
        "model": order.model.name,
        "target": found.target,
        "dtype": order.dtype,
        "device": order.device,
        "findings": [one.plain() for one in found.verdict.findings],
        "silent": list(found.verdict.silent),
        "unjudged": dict(found.verdict.unjudged),
        "long_documents": None
        if profile is None
        else {
            "text": profile.text,
            "documents": len(profile.nll),
            "trained": profile.trained,
            "edge": profile.edge,
            "buckets": [asdict(one) for one in buckets(profile)],
            "context_gains": [asdict(one) for one in context_gains(profile)],
            "left_out": profile.note,
            "seconds": profile.seconds,
        },
        "theory": [{key: value for key, value in asdict(one).items() if key != "table"} for one in found.outlooks],
        "advice": None if found.advice is None else asdict(found.advice),
    }


def as_json(found: Examination) -> str:
    """Everything for a machine to read; null is what is not known, and what is not finite."""
    return json.dumps(plain(whole(found)), indent=1)


def plain(value: Any) -> Any:
    """Plain data for JSON, which has no infinity."""
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
