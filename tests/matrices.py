"""The sets of parameters of tests that have several dimensions, and numbers of random examples.

The whole product of the dimensions is the longer form of such a test: `SHIFTERGW_LONG=1` asks for
it. By default each value of each dimension occurs, but not each combination. Of random examples the
longer form has ten times as many.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

LONG = os.environ.get("SHIFTERGW_LONG") == "1"


def combined(*dimensions: Sequence[Any], long: bool = LONG) -> list[tuple[Any, ...]]:
    """Return sets of parameters in which each value of each dimension occurs, or all of them.

    The shorter dimensions are repeated to the length of the longest. So two of them occur in all
    their combinations where their lengths have no common divisor, and the longest is long enough.
    """
    if long:
        return list(itertools.product(*dimensions))
    longest = max(map(len, dimensions))
    return [tuple(values[n % len(values)] for values in dimensions) for n in range(longest)]


def examples(count: int, *, long: bool = LONG) -> int:
    """Return how many random examples a test has that has `count` of them by default."""
    return 10 * count if long else count
