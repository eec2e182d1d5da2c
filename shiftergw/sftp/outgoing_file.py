"""Distribute the pieces of a file to one or several sessions that write it.

Pieces are taken in order and acknowledged in any order. No session gets further than the reach of
the file ahead of the first unacknowledged byte, however slow another session is. After an
interruption, only that many of the last bytes of the remote file may have holes.

A piece is data, or a range that the server copies from another file that it has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from twisted.internet.defer import Deferred, DeferredLock

REACH = 16 << 20
"""The limit on the bytes from the first unacknowledged byte to the last sent byte."""

COPY_REACH = 64 << 20
"""The reach of a file of which the server copies ranges: a copy costs no time on the line.

It is limited because the server answers no other request of the session meanwhile.
"""

COPY_BYTES = 8 << 20
"""The limit on the bytes of one request to copy; the progress is reported after each of them."""

_REPORT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class CopiedRange:
    """A range of `length` bytes that the server copies from `source_offset` of another file."""

    source_offset: int
    length: int

    def __len__(self) -> int:
        """Return the length in bytes."""
        return self.length

    def split(self, length: int) -> tuple[CopiedRange, CopiedRange]:
        """Return the first `length` bytes, or all of them, and the rest."""
        length = min(length, self.length)
        first = CopiedRange(self.source_offset, length)
        return first, CopiedRange(self.source_offset + length, self.length - length)


class OutgoingFile:
    """The content of a file; sessions take pieces of it."""

    def __init__(
        self,
        blocks: AsyncIterator[bytes | CopiedRange],
        offset: int,
        report: Callable[[int], None],
        reach: int = REACH,
    ) -> None:
        """Distribute `blocks`, which must not change; the first block belongs at `offset`.

        `report` is called with the number of acknowledged bytes, about once per MiB. `reach` is
        how far a session gets ahead of the first unacknowledged byte, in bytes.
        """
        self._blocks = blocks
        self._reach = reach
        self._rest: memoryview | CopiedRange = memoryview(b"")  # of the current block
        self._next = offset
        self._in_flight: dict[int, int] = {}  # lengths by offset, in file order
        self._acknowledged_bytes = 0
        self._last_report = 0
        self._report = report
        self._turn = DeferredLock()
        self._room: Deferred[None] | None = None
        self._is_ended = False
        self._error: BaseException | None = None

    async def piece(self, longest: int) -> tuple[int, memoryview | CopiedRange] | None:
        """Return the offset of the next piece and the piece; None at the end of the file.

        `longest` limits data, in bytes; `COPY_BYTES` limits a range to copy. Raises the errors of
        reading and of `stop`.
        """
        piece = self._take(longest)
        if piece is None and not self._is_ended:
            async with self._turn:
                while not self._is_ended and (piece := self._take(longest)) is None:
                    await self._wait_for_piece()
        if self._error is not None:
            raise self._error
        return piece

    def _take(self, longest: int) -> tuple[int, memoryview | CopiedRange] | None:
        offset = self._next
        piece, rest = _split(self._rest, longest)
        first = next(iter(self._in_flight), offset)
        end = offset + len(piece)
        if not piece or end - first > self._reach:
            return None
        self._rest = rest
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
        self._rest = block if isinstance(block, CopiedRange) else memoryview(block)
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


def _split(
    block: memoryview | CopiedRange, longest: int
) -> tuple[memoryview | CopiedRange, memoryview | CopiedRange]:
    """Return the next piece of a block, and the rest of the block."""
    if isinstance(block, CopiedRange):
        return block.split(COPY_BYTES)
    return block[:longest], block[longest:]


class InFlightWrites:
    """The unacknowledged writes of one session to a file, and their first error.

    `byte_count` is what they occupy in buffers and windows; see `SftpSession.write`.
    """

    def __init__(self, outgoing: OutgoingFile) -> None:
        """Start without writes."""
        self.byte_count = 0
        self.error: Exception | None = None
        self._outgoing = outgoing
        self._wait: Deferred[None] | None = None
        self._wait_limit = 0

    def settle(self, offset: int, weight: int, error: Exception | None) -> None:
        """Handle the reply to a write that counted as `weight` bytes; `error` is the refusal."""
        self.byte_count -= weight
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
