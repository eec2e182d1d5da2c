"""Send a file with the classic SCP protocol, to `scp -t` on a system.

The receiver writes a zero byte when it is ready. The sender writes `C0600 SIZE NAME` and a newline,
and the receiver replies. Then the sender writes the content of the file and a zero byte, and the
receiver replies again. A reply is a zero byte, or a byte 1 or 2 and a line with an error. A
receiver that cannot write the file reads it to its end all the same: a full disk is reported in the
last reply.

The protocol reports no progress, so the last `IN_FLIGHT` bytes count as not yet received.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterable, Callable

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from shiftergw.delivery import proof
from shiftergw.delivery.remote_program import RemoteProgram
from shiftergw.delivery.shell import program_timed_out
from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.timing import within
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused

IN_FLIGHT = 8 << 20
"""Bytes that were sent and may still be in the buffers and windows between both sides."""

_PIECE = 256 << 10
_REPORT_BYTES = 1 << 20
_LINE_LIMIT = 2048  # as in OpenSSH
_READY, _HEADER_TAKEN, _FILE_WRITTEN = 1, 2, 3  # the number of replies by then
_ERROR_REPLIES = (1, 2)


@implementer(IPushProducer)
class ScpSink(RemoteProgram):
    """A running `scp -t` that receives one file of `size` bytes.

    `report` gets the number of bytes that have arrived. Events of the channel call it, not `send`.
    """

    def __init__(self, size: int, report: Callable[[int], None], idle_seconds: float) -> None:
        """Expect the receiver to take bytes or to reply at least every `idle_seconds`."""
        super().__init__()
        self._size = size
        self._report = report
        self._idle_seconds = idle_seconds
        self._sent_bytes = 0
        self._reported_bytes = 0
        self._is_paused = False
        self._error_line: bytearray | None = None
        self._replies = 0
        self._replies_due = _READY

    async def send(self, blocks: AsyncIterable[bytes]) -> None:
        """Send the first `size` bytes of the blocks; return when the receiver has written them.

        Blocks must not change afterwards. Raises `SftpRefused`, and `OSError` for too few bytes.
        """
        await self._wait_for_replies(_READY, self._idle_seconds)
        self._replies_due = _HEADER_TAKEN
        self._channel.write(b"C0600 %d image\n" % self._size)
        await self._wait_for_replies(_HEADER_TAKEN, self._idle_seconds)
        self._channel.registerProducer(self, True)
        try:
            await self._send_all(blocks)
            self._replies_due = _FILE_WRITTEN
            self._channel.write(b"\0")
            # On a slow line much may be in flight; the protocol does not tell how much.
            seconds = self._idle_seconds + proof.time_limit(self._size)
            await self._wait_for_replies(_FILE_WRITTEN, seconds)
        finally:
            self._channel.unregisterProducer()
        self._channel.end_input()

    async def _send_all(self, blocks: AsyncIterable[bytes]) -> None:
        if not self._size:
            return
        async for block in blocks:
            view = memoryview(block)[: self._size - self._sent_bytes]
            for start in range(0, len(view), _PIECE):
                while self._is_paused:
                    await within(
                        self._idle_seconds, self._clock, self.wait_for_change(), program_timed_out
                    )
                self.check()
                piece = view[start : start + _PIECE]
                self._sent_bytes += len(piece)
                self._channel.write(piece)
            if self._sent_bytes == self._size:
                return
        raise OSError(errno.EIO, f"it ended at byte {self._sent_bytes} of {self._size}")

    async def _wait_for_replies(self, count: int, seconds: float) -> None:
        """Wait until the receiver has replied `count` times; other output does not count."""

        async def wait() -> None:
            while self._replies < count:
                await self.wait_for_change()

        await within(seconds, self._clock, wait(), program_timed_out)

    def check(self) -> None:
        """Raise the error of the program; an end before the last reply is an error."""
        super().check()
        if self._has_succeeded and self._replies < _FILE_WRITTEN:
            raise protocol_error("it ended before the file did")

    def take(self, data: bytes) -> None:
        """Process replies."""
        for n, byte in enumerate(data):
            if self._error_line is not None:
                self._take_line(data[n:])
                return
            if byte in _ERROR_REPLIES:
                self._error_line = bytearray()
            elif byte or self._replies == self._replies_due:
                raise protocol_error(f"an invalid reply: {printable(data[n:])}")
            else:
                self._replies += 1
        if self._replies == _FILE_WRITTEN:
            self._report_bytes(self._size)

    def _take_line(self, data: bytes) -> None:
        assert self._error_line is not None
        self._error_line += data
        line, newline, _ = self._error_line.partition(b"\n")
        if newline and self._error is None:
            self._error = SftpRefused(packets.FAILURE, printable(bytes(line)))
        elif len(line) > _LINE_LIMIT:
            raise protocol_error(f"a line without end: {printable(bytes(line))}")

    def _report_bytes(self, count: int) -> None:
        if count > self._reported_bytes:
            self._reported_bytes = count
            self._report(count)

    # The channel's producer

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        arrived_bytes = self._sent_bytes - IN_FLIGHT
        if arrived_bytes - self._reported_bytes >= _REPORT_BYTES:
            self._report_bytes(arrived_bytes)
        self._wake()

    def stopProducing(self) -> None:
        # The channel is about to end, and reports why.
        self._is_paused = True


def protocol_error(detail: str) -> DeliveryFailed:
    """Return the error for a receiver that violates the protocol."""
    return DeliveryFailed(
        "The system's scp program violates the SCP protocol.",
        remedy='Tell the site\'s support: "transfer": "scp" needs a working `scp` on the system.',
        detail=detail,
    )
