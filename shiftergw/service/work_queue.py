"""Read the work of a system, for those who watch the queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from shiftergw.model.records import ImageRecord
from shiftergw.ports import ImageStore
from shiftergw.service.waiting import WaitingWork

PAGE = 500
"""Records that are read at once: they are short, but each page sorts all records that follow."""


class WorkQueue:
    """Reads what is in flight and what has failed; `redaction.may_see` tells who may see it."""

    def __init__(self, store: ImageStore, waiting: WaitingWork) -> None:
        """Read from `store`; `waiting` describes work that waits."""
        self._store = store
        self._waiting = waiting

    async def pages(self, system: str) -> AsyncIterator[Sequence[ImageRecord]]:
        """Yield pages of all work and failures of a system, oldest first."""
        page = await self._store.queue(system, limit=PAGE)
        while page:
            yield [await self._waiting.describe(record) for record in page]
            page = await self._store.queue(system, page[-1].key, PAGE)

    async def end_of(self, record: ImageRecord) -> ImageRecord | None:
        """Return the READY image that a pull has ended with, or None if it has ended otherwise."""
        image = await self._store.get(record.key)
        if image is None:  # the image has a record with other tags, too
            tags = [] if record.pulltag is None else [record.pulltag]
            image = await self._store.find(record.system, record.itype, tags)
        return image if image is not None and image.is_ready else None
