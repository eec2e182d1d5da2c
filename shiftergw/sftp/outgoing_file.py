"""Distribute the pieces of a file to one or several sessions that write it.

Pieces are taken in order and acknowledged in any order. No session gets further than `REACH` bytes
ahead of the first unacknowledged byte, however slow another session is. After an interruption, only
the last `REACH` bytes of the remote file may have holes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from twisted.internet.defer import Deferred, DeferredLock

REACH = 16 << 20
"""The limit on the bytes from the first unacknowledged byte to the last sent byte."""

_REPORT_BYTES = 1 << 20


class OutgoingFile:
    """The content of a file; sessions take pieces of it."""

    def __init__(
        self, blocks: AsyncIterator[bytes], offset: int, report: Callable[[int], None]
    ) -> None:
        """Distribute `blocks`, which must not change; the first block belongs at `offset`.

        `report` is called with the number of acknowledged bytes, about once per MiB.
        """
        self._blocks = blocks
        self._rest = memoryview(b"")  # of the current block
        self._next = offset
        self._in_flight: dict[int, int] = {}  # lengths by offset, in file order
        self._acknowledged_bytes = 0
        self._last_report = 0
        self._report = report
        self._turn = DeferredLock()
        self._room: Deferred[None] | None = None
        self._is_ended = False
        self._error: BaseException | None = None

    async def piece(self, longest: int) -> tuple[int, memoryview] | None:
        """Return the offset of the next piece and the piece; None at the end of the file.

        `longest` limits the piece in bytes. Raises the errors of reading and of `stop`.
        """
        piece = self._take(longest)
        if piece is None and not self._is_ended:
            async with self._turn:
                while not self._is_ended and (piece := self._take(longest)) is None:
                    await self._wait_for_piece()
        if self._error is not None:
            raise self._error
        return piece

    def _take(self, longest: int) -> tuple[int, memoryview] | None:
        offset, piece = self._next, self._rest[:longest]
        first = next(iter(self._in_flight), offset)
        end = offset + len(piece)
        if not piece or end - first > REACH:
            return None
        self._rest = self._rest[longest:]
        self._next = end
        self._in_flight[offset] = len(piece)
        return offset, piece

    async def _wait_for_piece(self) -> None:
        """Read the next block, or wait for an acknowledgment if pieces are left."""
        if self._rest:
            self._room = Deferred()
            await self._room
            return
        block = await anext(self._blocks, b"")
        self._rest = memoryview(block)
        self._is_ended = self._is_ended or not block

    def acknowledge(self, offset: int) -> None:
        """Note that the server has acknowledged the piece at this offset."""
        self._acknowledged_bytes += self._in_flight.pop(offset)
        if not self._in_flight or self._acknowledged_bytes - self._last_report >= _REPORT_BYTES:
            self._last_report = self._acknowledged_bytes
            self._report(self._acknowledged_bytes)
        self._wake()

    def stop(self, error: BaseException) -> None:
        """End the distribution and the reports; `piece` raises the first error from now on."""
        self._error = self._error or error
        self._is_ended = True
        self._report = lambda _: None
        self._wake()

    def _wake(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.called:
            room.callback(None)


class InFlightWrites:
    """The unacknowledged writes of one session to a file, and their first error."""

    def __init__(self, outgoing: OutgoingFile) -> None:
        """Start without writes."""
        self.byte_count = 0
        self.error: Exception | None = None
        self._outgoing = outgoing
        self._wait: Deferred[None] | None = None
        self._wait_limit = 0

    def settle(self, offset: int, length: int, error: Exception | None) -> None:
        """Handle the reply to a write; `error` is the refusal, if any."""
        self.byte_count -= length
        if error is None:
            self._outgoing.acknowledge(offset)
        else:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Fail this session's writes and those of all other sessions that write the file."""
        self.error = self.error or error
        self._outgoing.stop(error)

    async def wait(self, byte_count: int) -> None:
        """Wait until at most `byte_count` bytes are unacknowledged, or a write has failed."""
        self._wait_limit = byte_count
        self._wait = Deferred()
        await self._wait

    def wake(self, *, is_paused: bool) -> None:
        """End the wait if it is over; a paused channel is waited for before the next write."""
        is_ready = self.byte_count <= self._wait_limit and not (is_paused and self._wait_limit)
        if is_ready or self.error is not None:
            waiting, self._wait = self._wait, None
            if waiting is not None and not waiting.called:
                waiting.callback(None)
