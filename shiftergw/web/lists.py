"""Build lists of images and of the queue: two at a time, in bounded memory and disk space.

A list contains the configurations of all users' images. The size of a row, of a list, and of all
lists together is limited, since records in old databases contain megabytes of environment. A
request that waits for its list keeps its connection, so the number of requests is limited too:
otherwise one user could occupy all connections of the gateway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import DeferredLock, DeferredSemaphore
from twisted.internet.task import deferLater

from shiftergw.errors import TooMany, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.web import render
from shiftergw.web.render import Answer
from shiftergw.web.spool import InThread, Spool, SpoolRoom

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

BUILDING = 2
"""Lists that are built at the same time; at most one of each user."""

MOST_REQUESTS = 100
"""Requests for lists that are in progress or wait; further ones are refused at once."""

MOST_REQUESTS_OF_USER = 25
"""The same for each user; many jobs of a user may send requests at the same time."""

SHORT = 1 << 16
"""Bytes up to which an answer is sent without a spool."""


@dataclass(frozen=True, slots=True)
class ListLimits:
    """Bytes of `ENV`, `ENTRY`, `WORKDIR` and `LABELS` in one row, and of a whole list."""

    row: int = 64 << 10
    size: int = 64 * 10**6


class Lists:
    """Builds lists page by page."""

    def __init__(
        self,
        in_thread: InThread,
        limits: ListLimits,
        clock: IReactorTime,
        room: SpoolRoom | None = None,
    ) -> None:
        """Write long lists to temporary files `in_thread`."""
        self._in_thread = in_thread
        self._clock = clock
        self._limits = limits
        self._room = room or SpoolRoom()
        self._building = DeferredSemaphore(BUILDING)
        self._users: dict[int, DeferredLock] = {}
        self._requests: Counter[int] = Counter()

    async def images(
        self, uid: int, pages: AsyncIterator[Iterable[ImageRecord]], *, labels: bool
    ) -> Answer:
        """Return the list of all records, see `build`.

        Rows that are too long, and all rows after `ListLimits.size` bytes, omit `ENV`, `ENTRY`,
        `WORKDIR` and `LABELS`.
        """
        return await self.build(
            uid, pages, lambda image, size: self._row(image, size, labels=labels)
        )

    async def build(
        self, uid: int, pages: AsyncIterator[Iterable[T]], row: Callable[[T, int], bytes]
    ) -> Answer:
        """Return a list for a user, complete, since clients need its length first.

        `row` returns one row as JSON, given the size of the list before it in bytes. Raises
        `TooMany` when the user has too many requests for lists, and `Unavailable` when all users
        have, or when other lists take up all the room.
        """
        async with self.turn(uid):
            spool = Spool(self._in_thread, room=self._room)
            try:
                before = b'{"list":['
                async for page in pages:
                    texts = [row(item, len(spool)) for item in page]
                    if texts:
                        await spool.write(before + b",".join(texts))
                        before = b","
                await spool.write(b"]}" if len(spool) else before + b"]}")
            except BaseException:
                spool.close()
                raise
        if len(spool) > SHORT:
            return Answer(HTTPStatus.OK, b"", spool=spool)
        body = spool.open().read()
        spool.close()
        return Answer(HTTPStatus.OK, body)

    def _row(self, image: ImageRecord, before: int, *, labels: bool) -> bytes:
        if before < self._limits.size and _weight(image, labels=labels) <= self._limits.row:
            text = render.to_json(render.image_row(image, labels=labels))
            if len(text) <= self._limits.row + SHORT:
                return text
        brief = replace(image, env=None, entry=None, workdir=None, labels=None)
        return render.to_json(render.image_row(brief, labels=labels))

    @asynccontextmanager
    async def turn(self, uid: int) -> AsyncIterator[None]:
        """Wait until fewer than `BUILDING` lists, and none of this user, are being built.

        Raises `TooMany` and `Unavailable` as `build` does.
        """
        if self._requests[uid] >= MOST_REQUESTS_OF_USER:
            raise TooMany(
                f"{MOST_REQUESTS_OF_USER} requests of yours for lists are in work already.",
                remedy="Wait for their answers, then try again.",
            )
        if self._requests.total() >= MOST_REQUESTS:
            raise Unavailable("Too many lists are requested at the moment.")
        self._requests[uid] += 1
        lock = self._users.setdefault(uid, DeferredLock())
        try:
            must_wait = lock.locked or not self._building.tokens
            async with lock, self._building:
                if must_wait:
                    # Lists that fail at once would otherwise be built one inside the other, as many
                    # as wait: more than the depth that Python allows.
                    await deferLater(self._clock, 0)
                yield
        finally:
            self._requests -= Counter([uid])  # drops those without requests
            if not self._requests[uid]:
                self._users.pop(uid, None)


def _weight(image: ImageRecord, *, labels: bool) -> int:
    """Return how many characters of a row come from the image's own configuration."""
    texts: list[Any] = [*(image.env or ()), *(image.entry or ()), image.workdir or ""]
    if labels:
        texts += [text for pair in (image.labels or {}).items() for text in pair]
    return sum(len(str(text)) for text in texts)
