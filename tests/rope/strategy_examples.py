"""Settings of every strategy, for the tests of this folder: from its defaults, and from what @strategy(...) gives."""

from __future__ import annotations

import inspect
from pathlib import Path

from support import PROJECT

from rope.strategies import STRATEGIES, frequency_strategies, options_of, required_options
from rope.strategies.registry import EXAMPLES, filled

FREQUENCY_STRATEGIES = frequency_strategies()

FOR_SHORT_CONTEXTS = {"original_length", "short_factor", "short_mscale"}
"""Options that set the plan up to the trained length, which is then not the native one."""


def file_of(name):
    return Path(inspect.getsourcefile(STRATEGIES[name])).relative_to(PROJECT)


def advice(name, option):
    return (
        f"{file_of(name)}: give an example of {option} to {name}: @strategy(..., examples=({{{option!r}: VALUE}},)), "
        "with which the plan of a model trained on 4,096 tokens changes at 16,384"
    )


def examples(name, pairs=32):
    """Settings that show what each option does, over what the strategy requires; lists for this many pairs."""
    written = [filled(name, example, pairs) for example in EXAMPLES[name]]
    required = required_options(name, pairs)
    for option, default in options_of(name).items():
        if option in required or any(option in example for example in written):
            continue
        if option == "factor":
            written.append({option: 8.0})
        elif isinstance(default, bool):
            written.append({option: not default})
        else:
            assert isinstance(default, (int, float)), advice(name, option)
            written.append({option: default / 2})
    return [required | example for example in written]


def settings_for_engines(name, pairs):
    """The published defaults, and all examples without plans for single layers, which no engine supports."""
    settings = [required_options(name, pairs), *examples(name, pairs)]
    return [options for options in settings if not {"layers", "knots"} & set(options)]
