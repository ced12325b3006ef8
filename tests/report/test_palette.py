"""Colours that stay apart, on white and on black, whatever colours somebody sees."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pipelines.report.palette import SIGNS, STYLES, TOGETHER, style, styles
from rope import strategies

# Machado, Oliveira and Fernandes 2009, table 1, severity 1.0: on linear RGB.
SEEN_BY = {
    "everybody else": np.eye(3),
    "protanopes": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopes": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopes": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
PAPER, NIGHT = 1.0, 0.0086  # relative luminance of the page's two backgrounds: #ffffff and #14181c


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Linear RGB -> Oklab, in which distance is difference as seen; about 0.02 is just noticeable."""
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    axes = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return axes @ np.cbrt(cones @ np.clip(rgb, 0, 1))


def closest(names, matrix) -> tuple[float, tuple[str, str]]:
    seen = {name: oklab(matrix @ linear(STYLES[name].colour)) for name in names}
    return min((float(np.linalg.norm(seen[a] - seen[b])), (a, b)) for a, b in combinations(names, 2))


@pytest.mark.parametrize("who", SEEN_BY)
def test_colours_of_strategies_drawn_together_stay_apart_to(who):
    distance, pair = closest(TOGETHER, SEEN_BY[who])
    assert distance > 0.09, pair


@pytest.mark.parametrize("who", SEEN_BY)
def test_no_two_strategies_have_colours_that_look_alike_to(who):
    distance, pair = closest(STYLES, SEEN_BY[who])
    assert distance > 0.045, pair


def test_common_palettes_would_not_pass():
    """matplotlib's ten colours, which figures had before."""
    tab10 = [
        "#1f77b4",
        "#ff7f0e",
        "#2ca02c",
        "#d62728",
        "#9467bd",
        "#8c564b",
        "#e377c2",
        "#7f7f7f",
        "#bcbd22",
        "#17becf",
    ]
    seen = [[oklab(matrix @ linear(colour)) for colour in tab10] for matrix in SEEN_BY.values()]
    assert min(np.linalg.norm(a - b) for row in seen for a, b in combinations(row, 2)) < 0.04


@pytest.mark.parametrize("name", STYLES)
def test_a_colour_shows_on_paper_and_in_the_dark(name):
    light = float(np.array([0.2126, 0.7152, 0.0722]) @ linear(STYLES[name].colour))
    assert (PAPER + 0.05) / (light + 0.05) > 2.1 and (light + 0.05) / (NIGHT + 0.05) > 2.2


def test_strategies_drawn_together_have_markers_of_their_own():
    assert len({STYLES[name].marker for name in TOGETHER}) == len(TOGETHER)
    assert len({(one.marker, one.dash) for one in STYLES.values()}) == len(STYLES)


def test_every_strategy_has_a_style():
    assert set(strategies.STRATEGIES) <= set(STYLES)
    assert all(one.marker in SIGNS for one in STYLES.values()) and len(set(SIGNS.values())) == len(SIGNS)


def test_options_change_no_style_of_a_strategy_that_stands_alone():
    assert style("yarn beta_fast=16") == style("yarn") == styles(["yarn beta_fast=16"])["yarn beta_fast=16"]
    assert style("something else") == style("something else")


def test_variants_of_a_strategy_keep_its_marker_and_differ():
    shown = styles(["none", *(f"yarn factor={n}" for n in range(20))])
    assert shown["none"] == style("none")
    yarns = [one for label, one in shown.items() if label.startswith("yarn")]
    assert {one.marker for one in yarns} == {style("yarn").marker} and len(set(yarns)) == 20
