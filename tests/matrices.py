"""Choose the parameters of tests with several dimensions, and the number of random examples.

With `SHIFTERGW_LONG=1` such a test runs with all combinations of its parameters. By default each
value of each dimension occurs, but not each combination. The long form also has ten times as many
random examples.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

LONG = os.environ.get("SHIFTERGW_LONG") == "1"


def combinations(*dimensions: Sequence[Any], long: bool = LONG) -> list[tuple[Any, ...]]:
    """Return sets of parameters in which each value of each dimension occurs, or all sets.

    Shorter dimensions are repeated to the length of the longest. So all combinations of two of them
    occur if their lengths have no common divisor and the longest dimension is long enough.
    """
    if long:
        return list(itertools.product(*dimensions))
    longest = max(map(len, dimensions))
    return [tuple(values[n % len(values)] for values in dimensions) for n in range(longest)]


def examples(count: int, *, long: bool = LONG) -> int:
    """Return the number of random examples of a test whose default is `count`."""
    return 10 * count if long else count
