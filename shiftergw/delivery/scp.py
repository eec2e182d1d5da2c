"""The sending half of the classic SCP protocol, spoken with `scp -t` on a system.

The sink says a zero byte when it is ready. It is told `C0600 SIZE NAME` and a line's end, and
answers; then come the bytes of the file and a zero byte, and it answers again. An answer is a zero
byte, or 1 or 2 and a line that says what is wrong. The sink reads a file that it cannot write to
its end all the same: that a disk is full it says in its last answer.

It tells nothing of its progress, so what may be under way counts as not yet there.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterable, Callable

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from shiftergw.delivery import proof
from shiftergw.delivery.remote_program import Program
from shiftergw.delivery.shell import timed_out
from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.timing import within
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused

UNDER_WAY = 8 << 20
"""Bytes that are sent and may not be there yet: those in the buffers and windows between."""

_PIECE = 256 << 10
_REPORTED = 1 << 20
_LINE_LIMIT = 2048  # OpenSSH's own
_READY, _BEGUN, _WRITTEN = 1, 2, 3  # answers: how many there are then
_TROUBLE = (1, 2)


@implementer(IPushProducer)
class Sink(Program):
    """An `scp -t` that runs and is sent one file of `size` bytes.

    `report` is told how many bytes of it are there, never from within `send`.
    """

    def __init__(self, size: int, report: Callable[[int], None], idle_seconds: float) -> None:
        """Give the sink up when it takes nothing for `idle_seconds`."""
        super().__init__()
        self._size = size
        self._report = report
        self._idle_seconds = idle_seconds
        self._sent = 0
        self._reported = 0
        self._paused = False
        self._line: bytearray | None = None
        self._answers = 0
        self._due = _READY

    async def send(self, blocks: AsyncIterable[bytes]) -> None:
        """Send the file, as much of the blocks as it is long, and return when the sink has it.

        Blocks must not change afterwards. Raises `SftpRefused`, and `OSError` if they are too few.
        """
        await self._answered(_READY, self._idle_seconds)
        self._due = _BEGUN
        self._channel.write(b"C0600 %d image\n" % self._size)
        await self._answered(_BEGUN, self._idle_seconds)
        self._channel.registerProducer(self, True)
        try:
            await self._send_all(blocks)
            self._due = _WRITTEN
            self._channel.write(b"\0")
            # Nobody tells how much of it is under way, on lines that may be slow.
            seconds = self._idle_seconds + proof.patience(self._size)
            await self._answered(_WRITTEN, seconds)
        finally:
            self._channel.unregisterProducer()
        self._channel.end_input()

    async def _send_all(self, blocks: AsyncIterable[bytes]) -> None:
        if not self._size:
            return
        async for block in blocks:
            view = memoryview(block)[: self._size - self._sent]
            for start in range(0, len(view), _PIECE):
                while self._paused:
                    await within(self._idle_seconds, self._clock, self.changed(), timed_out)
                self.check()
                piece = view[start : start + _PIECE]
                self._sent += len(piece)
                self._channel.write(piece)
            if self._sent == self._size:
                return
        raise OSError(errno.EIO, f"it ended at byte {self._sent} of {self._size}")

    async def _answered(self, count: int, seconds: float) -> None:
        """Wait for an answer; hearing anything at all of the sink is none."""

        async def wait() -> None:
            while self._answers < count:
                await self.changed()

        await within(seconds, self._clock, wait(), timed_out)

    def check(self) -> None:
        """Raise what is wrong; an end before the last answer is."""
        super().check()
        if self._ended and self._answers < _WRITTEN:
            raise no_scp("it ended before the file did")

    def take(self, data: bytes) -> None:
        """Take answers."""
        for n, byte in enumerate(data):
            if self._line is not None:
                self._take_line(data[n:])
                return
            if byte in _TROUBLE:
                self._line = bytearray()
            elif byte or self._answers == self._due:
                raise no_scp(f"an answer that is none: {printable(data[n:])}")
            else:
                self._answers += 1
        if self._answers == _WRITTEN:
            self._tell(self._size)

    def _take_line(self, data: bytes) -> None:
        assert self._line is not None
        self._line += data
        line, end, _ = self._line.partition(b"\n")
        if end and self._error is None:
            self._error = SftpRefused(packets.FAILURE, printable(bytes(line)))
        elif len(line) > _LINE_LIMIT:
            raise no_scp(f"a line without end: {printable(bytes(line))}")

    def _tell(self, there: int) -> None:
        if there > self._reported:
            self._reported = there
            self._report(there)

    # The channel's producer

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        there = self._sent - UNDER_WAY
        if there - self._reported >= _REPORTED:
            self._tell(there)
        self._wake()

    def stopProducing(self) -> None:
        # The channel ends, and will say how.
        self._paused = True


def no_scp(detail: str) -> DeliveryFailed:
    """Return the error for a sink that is none."""
    return DeliveryFailed(
        "The system's scp program does not keep the protocol.",
        remedy='Tell the site\'s support: "transfer": "scp" needs a working `scp` on the system.',
        detail=detail,
    )
