"""By how much two results differ, in words: % of perplexity or points of a score, above 0 where the first is better."""

from __future__ import annotations

from pipelines.report.gain import Gain


def amount(gain: Gain) -> str:
    """`+2.1 % [+1.0, +3.2] of perplexity`, `61 times [57, 67] the perplexity`, or points of a score."""
    return f"{number(gain)} {_of_what(gain)}"


def number(gain: Gain) -> str:
    """The same without its unit: `+2.1 % [+1.0, +3.2]`."""
    ends = interval(gain)
    return value(gain) + (f" [{ends}]" if ends else "")


def value(gain: Gain) -> str:
    """`+2.1 %`, or where a loss is as much as there is altogether, so that per cent read oddly, `61 times`."""
    return f"{_text(gain.gain, _in_times(gain))}{_unit(gain)}"


def interval(gain: Gain) -> str:
    """`+1.0, +3.2`; "" where there is none."""
    if gain.low is None or gain.high is None:
        return ""
    times = _in_times(gain)
    ends = (gain.high, gain.low) if times else (gain.low, gain.high)  # the smaller number first
    return ", ".join(_text(end, times) for end in ends)


def cost(gain: Gain) -> str:
    """A loss as what it costs: `12.3 % [11.9, 12.8]`; below 0 is better after all."""
    if _in_times(gain):
        return number(gain)
    ends = "" if gain.low is None or gain.high is None else f" [{_lost(gain.high)}, {_lost(gain.low)}]"
    return f"{_lost(gain.gain)}{_unit(gain)}{ends}"


def cost_in_words(gain: Gain) -> str:
    """`12.3 % [11.9, 12.8] of perplexity`."""
    return f"{cost(gain)} {_of_what(gain)}"


def _of_what(gain: Gain) -> str:
    exp = gain.measure.exp if gain.measure else ""
    return f"the {exp}" if _in_times(gain) else f"of {exp}" if exp else "points"


def _unit(gain: Gain) -> str:
    return " times" if _in_times(gain) else " %" if gain.measure and gain.measure.exp else ""


def _in_times(gain: Gain) -> bool:
    return bool(gain.measure and gain.measure.exp) and gain.gain <= -1


def _text(share: float, times: bool) -> str:
    """In hundredths, to a tenth; or how many times as much there is as with the other."""
    return f"{1 - share:.3g}" if times else f"{100 * share:+.1f}"


def _lost(share: float) -> str:
    return f"{-100 * share + 0.0:.1f}"
