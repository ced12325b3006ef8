"""What was found, for a terminal and for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from pipelines.cells import told
from pipelines.doctor.rules import LEVELS, RULES, STAGES, Finding, Verdict
from pipelines.report import number

STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}
WIDTH = 9


def rules(console: Console, verdict: Verdict | None = None) -> None:
    """Every rule, by stage: id, level, what it looks for and where that is told."""
    for stage, about in STAGES.items():
        console.print(Text(f"{stage}: {about}", style="bold"))
        for one in RULES.values():
            if one.stage == stage:
                line = Text(f"  {one.id:<4} ")
                line.append(f"{one.level:<8}", STYLES[one.level]).append(f" {one.looks_for}\n")
                line.append(f"                {one.source}", "dim")
                console.print(line)


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
    return told(value)


def _by_reason(unjudged: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for id, reason in unjudged.items():
        reasons.setdefault(reason, []).append(id)
    return reasons


def as_json(body: Mapping[str, Any], verdict: Verdict) -> str:
    """Everything for a machine to read; null is what is not known, and what is not finite."""
    whole = {
        **body,
        "findings": [found.plain() for found in verdict.findings],
        "silent": list(verdict.silent),
        "unjudged": dict(verdict.unjudged),
    }
    return json.dumps(plain(whole), indent=1)


def plain(value: Any) -> Any:
    """Plain data for JSON, which has no infinity."""
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
