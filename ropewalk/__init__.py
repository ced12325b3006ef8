"""Which RoPE scaling keeps a language model useful beyond its trained length, and what to deploy.

Plans: a strategy (`STRATEGIES`) turns what a model was trained with (`geometry_of`) into the rotary frequencies for a
length of context (`plan`); `patched` and `apply` put them into a live model, `export` turns them into an engine's
settings.

    plan = ropewalk.plan("yarn", model, 16384)
    with ropewalk.patched(model, plan):
        model.generate(**inputs)
    ropewalk.export(plan, "vllm").arguments

Measurements: `score` measures a live model, `grid` what `ropewalk grid` on the command line does, `load_results` reads
what was measured before. All return `Results`, a sequence of (`Cell`, `Result`) with tables, data frames and tests.

    results = ropewalk.score(model, tokenizer, ["none", "yarn"], [8192, 16384], limit=8)
    print(results)
    results.compare()

What cannot be done is refused before it begins, with a ValueError (`Refusal` where something is measured) that says
what to give instead. docs/python.md walks through all of it. Importing this loads neither torch nor transformers.
"""

from pipelines.records.cells import Cell, Refusal, Result
from pipelines.records.provenance import version
from rope.geometry import Geometry
from ropewalk.experiment import grid, load_results, score
from ropewalk.plans import ENGINES, STRATEGIES, StrategyPlan, apply, export, geometry_of, patched, plan
from ropewalk.results import Results, compare

__version__ = version()

__all__ = [
    "ENGINES",
    "STRATEGIES",
    "Cell",
    "Geometry",
    "Refusal",
    "Result",
    "Results",
    "StrategyPlan",
    "apply",
    "compare",
    "export",
    "geometry_of",
    "grid",
    "load_results",
    "patched",
    "plan",
    "score",
]
