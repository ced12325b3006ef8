"""An examination for a terminal, and as JSON."""

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
from pipelines.doctor.rules import LEVELS, STAGES, RuleFinding, RuleVerdict, select
from pipelines.records.cells import option_text
from pipelines.records.numbers import GIB, number

STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}
WIDTH = 9
THREADS = """
NAME#NUMBER is a thread on GitHub: hf is huggingface/transformers, lm-eval EleutherAI/lm-evaluation-harness, vllm
vllm-project/vllm, and so on; the file of a program is named where its code says so."""
ROWS = 14


def rules(console: Console) -> None:
    """Every rule, by stage: id, level, title and source."""
    for stage, about in STAGES.items():
        console.print(Text(f"{stage}: {about}", style="bold"))
        for rule in select(stage):
            line = Text(f"  {rule.id:<4} ")
            line.append(f"{rule.level:<8}", STYLES[rule.level]).append(f" {rule.title}\n")
            line.append(f"                {rule.source}", "dim")
            console.print(line)
    console.print(THREADS)


def _findings(console: Console, verdict: RuleVerdict) -> None:
    """Errors first; then how many rules found nothing, and which could not be judged."""
    counted = []
    for level in LEVELS:
        findings = [finding for finding in verdict.findings if finding.level == level]
        counted.append(f"{len(findings)} {level}{'s' if len(findings) != 1 and level != 'info' else ''}")
        for finding in findings:
            console.print()
            console.print(_finding(finding))
    console.print()
    console.print(f"{', '.join(counted)}; {len(verdict.silent)} rules found nothing", style="bold")
    reasons: dict[str, list[str]] = {}
    for id, reason in verdict.unjudged.items():
        reasons.setdefault(reason, []).append(id)
    for reason, ids in reasons.items():
        console.print(Text(f"not judged: {', '.join(ids)} ({reason})"))


def _finding(finding: RuleFinding) -> Text:
    line = Text(f"{finding.level:<{WIDTH}}", STYLES[finding.level])
    line.append(f"{finding.id}  {finding.symptom}\n", "bold")
    measured = "; ".join(f"{name}: {_value(value)}" for name, value in finding.measured.items())
    for name, text in (("measured", measured), ("cause", finding.cause), ("fix", finding.fix)):
        line.append(f"  {name:<{WIDTH}}", "dim").append(f"{text}\n")
    line.append(f"  {'source':<{WIDTH}}{finding.source}\n", "dim")
    if finding.correction is not None:
        line.append(f"  {'':<{WIDTH}}mechanical: --fix OUT writes it\n", "dim")
    elif finding.withheld:
        line.append(f"  {'':<{WIDTH}}not mechanical, as {finding.withheld}\n", "dim")
    line.rstrip()
    return line


def _value(value: Any) -> str:
    """A measured value in a few characters."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value) if (math.isfinite(value) and abs(value) >= 0.001) or value == 0 else f"{value:.2g}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_value, value)) + ")"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(entry)}" for key, entry in value.items()) + "}"
    return option_text(value)


def report(console: Console, result: Examination) -> None:
    """All of an examination: findings, long documents, theory, advice."""
    _findings(console, result.verdict)
    for sentence in result.files.about_layers:
        console.print(Text(sentence))
    if result.profile is not None:
        _profile(console, result.profile)
    if result.outlooks:
        _theory(console, result.outlooks)
    if result.advice is not None:
        _advice(console, result.advice)


def _profile(console: Console, profile: Profile) -> None:
    shown = [bucket for bucket in buckets(profile) if bucket.excess is not None]
    first = first_broken(profile)
    if len(shown) > ROWS:
        at = shown.index(first) if first in shown else ROWS // 2
        start = max(0, min(at - ROWS // 2 + 2, len(shown) - ROWS))
        shown = sorted({*shown[start : start + ROWS], shown[0], shown[-1]}, key=lambda bucket: bucket.start)
    title = (
        f"NLL by position, {len(profile.nll)} documents of {profile.text}: nats a token, and by how much more than the "
        f"same tokens with context within {profile.edge:,}"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("tokens")
    for name in ("NLL", "more by", "95 %"):
        table.add_column(name, justify="right")
    for bucket in shown:
        mark = " ▼" if first and bucket.broken and bucket.start >= first.start else ""
        row = (f"{bucket.start:,} to {bucket.end:,}", f"{bucket.nll:.3f}", f"{bucket.excess:+.3f}{mark}")
        table.add_row(*row, f"{bucket.low:+.3f} to {bucket.high:+.3f}")
    console.print()
    console.print(table)
    gains = "; ".join(
        f"{gain.nats:+.3f} from {gain.context // 2:,} to {gain.context:,}" for gain in context_gains(profile)
    )
    if gains:
        console.print(f"nats that twice the context gains, just before {profile.edge:,}: {gains}")
    if profile.note:
        console.print(f"left out: {profile.note}")


def _theory(console: Console, outlooks: Sequence[Outlook]) -> None:
    console.print("\nTheory", style="bold")
    for outlook in outlooks:
        base = f" (a plain base of {outlook.smallest_base:,.0f} keeps it positive)" if outlook.smallest_base else ""
        negative = f"is negative from {outlook.first_negative:,} on{base}"
        layers = "" if outlook.layers == "all" else f" ({outlook.layers})"
        console.print(
            Text(
                f"  {outlook.name}{layers} at {outlook.length:,}: critical pair {outlook.round_trained} of "
                f"{outlook.pairs} (all before it complete a turn in training); {outlook.unseen:.1%} of the angles "
                f"out-of-distribution; the long-range sum {negative if outlook.first_negative else 'stays positive'}"
            )
        )


def _advice(console: Console, advice: Advice) -> None:
    stretch = f"{advice.factor:.4g} times what it holds" if advice.factor > 1 else "within what it holds"
    table = Table(title=f"For {advice.target:,} tokens, {stretch}", title_justify="left", title_style="bold")
    for name in ("strategy", "computed values", "weights", "engines that support it (* not at other lengths)"):
        table.add_column(name)
    for candidate in advice.candidates:
        text = f"{candidate.formula}."
        if candidate.sweep:
            text += f" Sweep factor={','.join(f'{factor:g}' for factor in candidate.sweep)}."
        if candidate.note:
            text += f" {candidate.note[0].upper()}{candidate.note[1:]}."
        table.add_row(candidate.strategy, Text(text), candidate.when, ", ".join(candidate.engines) or "none")
    console.print()
    console.print(table)
    if advice.kv_bytes is not None and advice.scoring_bytes is not None and advice.weight_bytes is not None:
        fits = f"; up to {advice.fits:,} tokens fit here" if advice.fits else ""
        console.print(
            f"memory in {advice.dtype}: weights {advice.weight_bytes / GIB:.2f} GiB, a KV cache of {advice.target:,} "
            f"tokens {advice.kv_bytes / GIB:.2f} GiB; scoring that many at once {advice.scoring_bytes / GIB:.2f} GiB"
            f"{fits}"
        )
    console.print("\nWhat decides (`plan` in place of `grid` shows its time first):", style="bold")
    for command in advice.commands:
        console.print(Text(f"  {command}"))


def whole(result: Examination) -> dict[str, Any]:
    """An examination as plain data; null is what is not known."""
    request, profile = result.request, result.profile
    long_documents = profile and {
        "text": profile.text,
        "documents": len(profile.nll),
        "trained": profile.trained,
        "edge": profile.edge,
        "buckets": [asdict(bucket) for bucket in buckets(profile)],
        "context_gains": [asdict(gain) for gain in context_gains(profile)],
        "left_out": profile.note,
        "seconds": profile.seconds,
    }
    return {
        "model": request.model.name,
        "target": result.target,
        "dtype": request.dtype,
        "device": request.device,
        "attention_layers": [asdict(layer) for layer in result.files.layers],
        "findings": [finding.plain() for finding in result.verdict.findings],
        "silent": list(result.verdict.silent),
        "unjudged": dict(result.verdict.unjudged),
        "long_documents": long_documents,
        "theory": [{key: value for key, value in asdict(each).items() if key != "table"} for each in result.outlooks],
        "advice": result.advice and asdict(result.advice),
    }


def as_json(result: Examination) -> str:
    """Everything for a machine to read; null is what is not known, and what is not finite."""
    return json.dumps(plain(whole(result)), indent=1)


def plain(value: Any) -> Any:
    """Plain data for JSON, which has no infinity."""
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
