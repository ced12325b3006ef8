"""`ropewalk gate`: its command line."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.cli import arguments
from pipelines.cli.arguments import STORE, Options, Verbs
from pipelines.records.refusal import Refusal

DESCRIPTION = """
Holds results against a policy, for the continuous integration of a model: a line a rule, with the number that decides.
SWEEP is the beginning of a sweep's id, another store, or a result.json; without it, the newest sweep.
  ropewalk gate policy.yaml
  ropewalk gate policy.yaml 2026-11-26T0911 --json

A policy is a file of rules, METRIC[@LENGTH] >= NUMBER[%] [with 95 %]:
  rules:
    - context_gain@2048 >= 0              worth over cropping (strategy=crop must be in the grid)
    - short_cost <= 2%                    lost up to the trained length, against the plain model
    - effective_length >= 2048            by context gain; effective_length/ruler by RULER's rule
    - passkey@1024 >= 0.9 with 95 %       a task's main number; the bound of its interval must hold
    - perplexity/ppl_last_256@2048 <= 20  any other of its metrics
    - {rule: perplexity@2048 <= 12, strategy: yarn, dtype: bfloat16}
A rule holds for every strategy but none and crop, or those that it names; `model:`, `strategy:`, `task:`, `dtype:`
beside `rules:` are for all rules. A rule that matches no result fails. Exit codes: 0 all hold, 1 some do not, 2 no
policy.
"""


def add(verbs: Verbs) -> None:
    parser = arguments.add_verb(
        verbs,
        "gate",
        "hold results against a policy: exit code 0 where all its rules hold, else 1",
        DESCRIPTION,
        run,
        usage="POLICY.yaml [SWEEP] [--json] [store=FOLDER]",
        keys=[STORE],
    )
    parser.add_argument("--json", action="store_true", help="print every number in place of lines")


def run(options: Options) -> int:
    own, words = arguments.own_keys(options)
    if not 1 <= len(words) <= 2:
        given = " ".join(words) or "nothing"
        raise Refusal(f"{given}: give a policy and at most one sweep: ropewalk gate POLICY.yaml [SWEEP]")
    from pipelines.records.results import Store
    from pipelines.report import gate, stored

    rules = gate.read(Path(words[0]).expanduser())
    rows = stored.selected(words[1] if len(words) > 1 else stored.LATEST, Store.at(own.get("store")))
    outcomes = gate.held(rules, rows)
    if options.json:
        print(json.dumps(gate.as_data(outcomes), indent=1))
    else:
        print("\n".join(map(gate.line, outcomes)))
    return int(not all(outcome.passed for outcome in outcomes))
