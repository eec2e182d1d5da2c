"""One policy for growing pauses between attempts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shiftergw.plumbing.timing import pause

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

_MAX_STEPS = 30  # beyond any limit in use; a float overflows after 1,024 doublings


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses in seconds: `first`, then each `factor` times the one before, at most `longest`."""

    first: float
    longest: float = math.inf
    factor: float = 2.0

    def seconds(self, failures: int, spread: float = 1.0) -> float:
        """Return the pause after a number of failures in a row; 0 without a failure.

        The pause is multiplied by `spread` before it is limited; a random number keeps clients that
        failed together from trying again together.
        """
        if failures < 1:
            return 0.0
        growth = self.factor ** min(failures - 1, _MAX_STEPS)
        return min(self.first * growth * spread, self.longest)

    async def pause(self, failures: int, clock: IReactorTime, spread: float = 1.0) -> None:
        """Wait for as long as `seconds` returns. Cancellable."""
        await pause(self.seconds(failures, spread), clock)
