"""Port to the throughput of a site, which all its workers and gateways add to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shiftergw.model.throughput import Throughput


class ThroughputStore(Protocol):
    """What was done in each period of the last days; their number is bounded."""

    async def add_throughput(self, work: Throughput) -> None:
        """Add work that ended at `work.since` to its period, and remove periods that are too old.

        It may be lost in a power cut, and counted twice after a broken connection.
        """
        ...

    async def list_throughput(self, since: float) -> Sequence[Throughput]:
        """Return the periods that began at or after a time, oldest first."""
        ...
