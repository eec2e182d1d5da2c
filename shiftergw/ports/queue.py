"""The seam to the workers."""

from __future__ import annotations

from typing import Protocol


class JobQueue(Protocol):
    """Carries record keys to workers and keeps nothing: recovery is the store's `stale` alone."""

    def slots(self) -> int:
        """Return how many more jobs may be offered now."""
        ...

    async def offer(self, key: str) -> None:
        """Give a record to some worker; raise `Unavailable` if that is impossible now."""
        ...

    async def cancel(self, key: str) -> None:
        """Stop the job on this record if it runs here; nothing happens otherwise."""
        ...

    async def drain(self, limit: float) -> None:
        """Take no more; return when running jobs have ended, or stop them after `limit` s."""
        ...
