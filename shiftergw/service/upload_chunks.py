"""Receive one chunk of an upload; the parts of all callers are written in turn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from twisted.internet.defer import DeferredLock

from shiftergw.errors import GatewayError, NotFound, UploadConflict
from shiftergw.model.uploads import UserUpload
from shiftergw.ports import UploadSpool, UploadWriter

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


class Chunk:
    """A chunk of an upload that is arriving: the next bytes of the upload.

    However it ends, bytes that have been written count: the upload continues behind them.
    """

    def __init__(
        self,
        writer: UploadWriter,
        spool: UploadSpool,
        clock: IReactorTime,
        on_end: Callable[[Chunk], None],
    ) -> None:
        """Write to `writer`, an upload of `spool`; call `on_end` once the file is closed."""
        self._writer = writer
        self._spool = spool
        self._clock = clock
        self._on_end = on_end
        self._lock = DeferredLock()
        self._is_closed = False

    async def write(self, data: bytes) -> None:
        """Append bytes.

        Raises `UploadConflict` if another request has taken the upload over, and `NotFound` if the
        upload was removed.
        """
        async with self._lock:
            await self._check_open()
            await self._writer.write(data)

    async def finish(self) -> UserUpload:
        """Make the bytes durable and return the upload."""
        async with self._lock:
            await self._check_open()
            try:
                return await self._writer.commit(self._clock.seconds())
            finally:
                await self._close()

    async def abort(self) -> None:
        """Keep the bytes that have been written, and close the file."""
        async with self._lock:
            if not self._is_closed:
                try:
                    with suppress(GatewayError):
                        await self._writer.commit(self._clock.seconds())
                finally:
                    await self._close()

    async def _close(self) -> None:
        self._is_closed = True
        try:
            await self._writer.close()
        finally:
            self._on_end(self)

    async def _check_open(self) -> None:
        if self._is_closed:
            upload = await self._spool.get(self._writer.upload.id)
            if upload is None:
                raise NotFound(
                    "The upload was removed while this chunk of it arrived.",
                    remedy="Declare it again if it is still needed.",
                )
            raise UploadConflict("Another request has taken this upload over.", upload.offset)
