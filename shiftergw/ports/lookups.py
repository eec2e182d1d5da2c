"""Port to the metrics of look-ups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class LookupStore(Protocol):
    """Rows of look-up metrics; losing some of them does no harm."""

    async def record_lookup(self, row: Mapping[str, Any]) -> None:
        """Store a row of lookup metrics, for at most a year; do not wait until it is written.

        The row has the members `system` and `time`. It is lost if the process crashes, or if the
        store is unavailable or slow.
        """
        ...

    async def lookups(self, system: str, limit: int) -> Sequence[dict[str, Any]]:
        """Return the last `limit` rows of lookup metrics of a system, oldest first."""
        ...
