"""The bytes of a file on their way to a system: handed out from the front, answered in any order.

Whoever sends them asks for pieces, and several may. However slow one of them is, nobody gets far
ahead of the first byte that is not answered: where a delivery broke, only that much behind the last
byte there may be holes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from twisted.internet.defer import Deferred, DeferredLock

REACH = 16 << 20
"""Bytes between the first that is not answered and the last that is sent, at most."""

_REPORTED = 1 << 20


class OutgoingFile:
    """A file's bytes; `piece` hands them out."""

    def __init__(
        self, blocks: AsyncIterator[bytes], offset: int, report: Callable[[int], None]
    ) -> None:
        """Give out these blocks, which must not change, from `offset` on.

        `report` is told how many bytes have been answered, as the answers come.
        """
        self._blocks = blocks
        self._rest = memoryview(b"")  # of the block that is being given out
        self._next = offset
        self._under_way: dict[int, int] = {}  # lengths by offset, in the order of the file
        self._answered = 0
        self._reported = 0
        self._report = report
        self._turn = DeferredLock()
        self._room: Deferred[None] | None = None
        self._ended = False
        self._error: BaseException | None = None

    async def piece(self, longest: int) -> tuple[int, memoryview] | None:
        """Return where the next piece belongs and the piece, or None at the end of the file.

        Raises what reading raises, and what `stop` was told.
        """
        piece = self._take(longest)
        if piece is None and not self._ended:
            async with self._turn:
                while not self._ended and (piece := self._take(longest)) is None:
                    await self._more()
        if self._error is not None:
            raise self._error
        return piece

    def _take(self, longest: int) -> tuple[int, memoryview] | None:
        offset, piece = self._next, self._rest[:longest]
        first = next(iter(self._under_way), offset)
        end = offset + len(piece)
        if not piece or end - first > REACH:
            return None
        self._rest = self._rest[longest:]
        self._next = end
        self._under_way[offset] = len(piece)
        return offset, piece

    async def _more(self) -> None:
        """Wait for the next block, or else for an answer."""
        if self._rest:
            self._room = Deferred()
            await self._room
            return
        block = await anext(self._blocks, b"")
        self._rest = memoryview(block)
        self._ended = self._ended or not block

    def answered(self, offset: int) -> None:
        """Take the word that the piece from this offset has arrived."""
        self._answered += self._under_way.pop(offset)
        if not self._under_way or self._answered - self._reported >= _REPORTED:
            self._reported = self._answered
            self._report(self._answered)
        self._wake()

    def stop(self, error: BaseException) -> None:
        """Hand out nothing more: whoever asks gets the first such error. Report nothing more."""
        self._error = self._error or error
        self._ended = True
        self._report = lambda _: None
        self._wake()

    def _wake(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.called:
            room.callback(None)


class InFlightWrites:
    """What one of those who send has under way: how many bytes, and how it goes."""

    def __init__(self, outgoing: OutgoingFile) -> None:
        """Begin with nothing."""
        self.under_way = 0
        self.error: Exception | None = None
        self.waiting: Deferred[None] | None = None
        self.until = 0
        self._outgoing = outgoing

    def settle(self, offset: int, length: int, refused: Exception | None) -> None:
        """Take the answer to a piece."""
        self.under_way -= length
        if refused is None:
            self._outgoing.answered(offset)
        else:
            self.fail(refused)

    def fail(self, error: Exception) -> None:
        """Fail, also while waiting for a piece; the others that send the file fail with it."""
        self.error = self.error or error
        self._outgoing.stop(error)

    def wake(self) -> None:
        """Go on where the sender waits for its own answers."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)
