"""`ropewalk tune`: its command line."""

from __future__ import annotations

from pipelines.cli import arguments
from pipelines.cli.arguments import Options, Verbs
from pipelines.cli.meanings import Key
from pipelines.records.refusal import Refusal

DESCRIPTION = """
Searches a strategy's options for a model and a length: trials are screened on a few documents of one half of the text,
the best continue on more, and the best of all is judged against the published defaults on the other half. Trials are
ordinary cells: nothing is computed twice, and a search that was stopped continues when the command is given again.
  ropewalk tune strategy=yarn length=4096                                the usual range of every option
  ropewalk tune strategy=yarn strategy.beta_fast=8..64 strategy.ramp=index,rotations length=4096
  ropewalk tune strategy=factors length=4096                             a divisor for every pair (LongRoPE)
  ropewalk tune model=smollm2 strategy=factors length=32768 tune.trials=48 cluster=gpu
Ranges are LOW..HIGH or A,B; one value fixes an option. limit=N: documents of each half (16, at least 12). Other
overrides are those of a grid.
"""


def add(verbs: Verbs) -> None:
    arguments.add_verb(
        verbs,
        "tune",
        "search a strategy's options for a model and a length, and judge the best",
        DESCRIPTION,
        run,
        usage="strategy=NAME length=N [strategy.OPTION=LOW..HIGH ...] [OPTIONS] [KEY=VALUE ...]",
        keys=[
            Key("tune.trials", "int", "24", "trials in all"),
            Key("tune.sampler", "str", "tpe", "or cmaes; or nsga2: quality at the length and cost at a short one"),
            Key("tune.objective", "str", "null", "ppl, context_gain, key_ppl or passkey; null: the task's measure"),
            Key("tune.seed", "int", "0", "of the search; one seed gives one search"),
            Key("tune.batch", "int", "null", "trials at once; null: as many as there are workers"),
            Key("tune.short", "int", "null", "tokens at which nsga2 measures the cost; null: the trained length"),
        ],
        details=arguments.override_details,
        composed=True,
    )


def run(options: Options) -> int:
    own, words = arguments.own_keys(options)
    if not options.words:
        print(arguments.help_text(options), end="")
        return 0
    ranges, rest = dict[str, str](), []
    for word in words:
        key, _, value = word.partition("=")
        group, _, option = key.partition(".")
        if group == "tune":
            arguments.refuse_word(options, word)
        if (key == "factor" or (group == "strategy" and option)) and _is_range(value):
            ranges[option or key] = value
        else:
            rest.append(word)
    overrides = [*arguments.overrides(options, rest), *_measuring(own.get("tune.objective"), rest)]
    from pipelines.choices.compose import expand
    from pipelines.tune import tune

    settings = {key.removeprefix("tune."): value for key, value in own.items()}
    return tune.main(expand(overrides), tune.TuneRequest(ranges, settings, overrides), options.command)


def _measuring(objective: str | None, words: list[str]) -> list[str]:
    """The overrides by which an objective is measured, but for those that were given.

    Raises:
        Refusal: another task was given than the objective is of.
    """
    from pipelines.tune.search import OBJECTIVES

    needed = OBJECTIVES.get(objective or "", ())  # an unknown one is refused with the other settings
    given = dict(word.partition("=")[::2] for word in words)
    for name, value in (override.split("=") for override in needed):
        if name == "task" and given.get(name, value) != value:
            raise Refusal(f"tune.objective={objective} is of task={value}; leave task={given[name]} out")
    return [override for override in needed if override.split("=")[0] not in given]


def _is_range(value: str) -> bool:
    return ".." in value or ("," in value and value[:1] not in "[{'\"(")
