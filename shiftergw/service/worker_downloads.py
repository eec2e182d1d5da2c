"""Give uploads to workers on other machines, which show that they have the site's key."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shiftergw.errors import BadRequest, NotAuthenticated, NotFound
from shiftergw.plumbing.seal import WORKER_SCHEME, Seal
from shiftergw.ports import UploadSpool

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

PIECE_LIMIT = 4 << 20
"""Bytes of the longest piece that a worker may request; it is in memory for a moment."""


class WorkerDownloads:
    """Gives pieces of uploads to workers, and removes uploads that they have found damaged."""

    def __init__(self, spool: UploadSpool, seal: Callable[[], Seal], clock: IReactorTime) -> None:
        """Read from `spool`; check requests with the key of `seal`."""
        self._spool = spool
        self._seal = seal
        self._clock = clock

    def check(self, credential: str, method: str, target: str) -> None:
        """Return if a worker of this site has signed a request; raise `NotAuthenticated`.

        `target` is the path with its query, exactly as it was sent.
        """
        now = self._clock.seconds()
        if not self._seal().check_request(credential, method, target, now):
            raise NotAuthenticated(
                "The request is not signed with the site's key, or the clocks differ.",
                remedy=f"Only workers of the site use this path ({WORKER_SCHEME}).",
            )

    async def read(self, upload_id: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a complete upload from `offset`."""
        upload = await self._spool.get(upload_id)
        if upload is None or not upload.is_complete:
            raise NotFound("There is no such complete upload.")
        if not 1 <= size <= PIECE_LIMIT or offset + size > upload.declaration.size:
            raise BadRequest("The piece is not within the upload, or too long.")
        return await self._spool.read(upload_id, offset, size)

    async def remove(self, upload_id: str) -> None:
        """Remove an upload that does not have its digest."""
        await self._spool.remove(upload_id)
