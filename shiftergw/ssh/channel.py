"""Channels of an SSH connection: byte streams to remote programs (RFC 4254).

Buffers are bounded both ways: data beyond the server's window waits here while its producer is
paused, and our window limits the data that arrives before it is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import Buffer
from shiftergw.ssh.kex import broken_protocol
from shiftergw.ssh.transport import LONGEST_DATA

if TYPE_CHECKING:
    from shiftergw.ssh.channels import Channels
    from shiftergw.ssh.transport import SshTransport

WINDOW = 2 << 20
"""Bytes that the server may send before they are read."""

HIGH_WATER = 1 << 20
"""Waiting bytes at which a producer is paused; it is resumed below half of that."""

_BATCH = 3  # packets passed to TCP together; Twisted sends 128 KiB at a time, and four are more
_WORTHWHILE = 4096  # bytes of window that justify a packet smaller than the longest
_STDERR_LIMIT = 280  # less than the limit of `printable`


class SshChannel:
    """A remote program: `write` to it, `receive` its output.

    Implements the protocol `Channel`; callers get it when it is open.
    """

    def __init__(self, channels: Channels, number: int) -> None:
        """Create a channel that is not open yet; `number` is our number for it."""
        self.number = number
        self.opening: Deferred[None] = Deferred()
        self.reply: Deferred[bool] | None = None
        self.closed: Deferred[int | None] = Deferred()
        self.stderr = ""
        self._errors = b""  # the raw end of standard error
        self.remote = -1
        self.is_ended = False
        self.close_sent = False
        self._channels = channels
        self._status: int | None = None
        self._window = WINDOW
        self._unread: list[bytes] = []
        self._on_data: Callable[[bytes], None] | None = None
        self._on_eof: Callable[[], None] | None = None
        self._eof_received = False
        self.remote_window = 0
        self._longest = 0
        self._queue: deque[memoryview] = deque()
        self._queued_bytes = 0
        self._eof = False
        self._eof_sent = False
        self._producer: Any = None
        self._streaming = False
        self._is_paused = False

    # Open and close

    def open(self, remote: int, window: int, longest: int) -> None:
        """Handle the confirmation: the server's number, window, and longest packet."""
        if not longest:
            raise broken_protocol("a channel for packets of no length")
        self.remote, self.remote_window = remote, window
        self._longest = min(longest, LONGEST_DATA)
        self.opening.callback(None)

    def exit_status(self, status: int) -> None:
        """Store the program's exit status."""
        self._status = status

    def end(self, error: DeliveryFailed | None) -> None:
        """End the channel, once; `error` is the reason if the connection ended."""
        if self.is_ended:
            return
        self.is_ended = True
        self._queue.clear()
        self._queued_bytes = 0
        for waiting in (self.opening, self.reply):
            if waiting is not None and not waiting.called:
                waiting.errback(error or DeliveryFailed("The system closed the channel."))
        if self._producer is not None:
            producer, self._producer = self._producer, None
            producer.stopProducing()
        self.eof_received()
        if not self.closed.called:  # by cancellation
            if error is None:
                self.closed.callback(self._status)
            else:
                self.closed.errback(error)

    def lose(self) -> None:
        """Close the channel at once; drop waiting and arriving data.

        The server may keep its side open for long, until the program ends.
        """
        if not self.close_sent and not self.is_ended:
            self._channels.send_close(self)
            self.end(None)

    # Sending

    def write(self, data: Buffer) -> None:
        """Send bytes, which must not change until they are sent. Does nothing once closed."""
        self.writeSequence((data,))

    def writeSequence(self, data: Iterable[Buffer]) -> None:
        """Send buffers in order."""
        if self.is_ended or self.close_sent or self._eof:
            return
        for piece in data:
            view = memoryview(piece).cast("B")
            if view:
                self._queue.append(view)
                self._queued_bytes += len(view)
        if self._streaming and not self._is_paused and self._queued_bytes >= HIGH_WATER:
            self._is_paused = True
            self._producer.pauseProducing()
        self._channels.transport.add_writer(self)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Pause and resume `producer`; a pull producer is asked when there is room."""
        if self._producer is not None:
            raise RuntimeError("a channel has one producer")
        if self.is_ended:
            producer.stopProducing()
            return
        self._producer, self._streaming, self._is_paused = producer, streaming, False
        self._channels.transport.add_writer(self)

    def unregisterProducer(self) -> None:
        """Stop pausing and resuming the producer."""
        self._producer, self._streaming = None, False

    def end_input(self) -> None:
        """Close the program's standard input once the waiting data is sent."""
        if not self._eof:
            self._eof = True
            self._channels.transport.add_writer(self)

    def write_some(self) -> bool:
        """Send a few packets of waiting data within the server's window.

        Returns whether there was data to send.
        """
        if self.is_ended or self.close_sent:
            return False
        transport = self._channels.transport
        if self._queued_bytes < HIGH_WATER // 2 and (self._is_paused or not self._streaming):
            self._is_paused = False
            if self._producer is not None:
                self._producer.resumeProducing()
        has_sent = self._send_batch(transport)
        if self._eof and not self._queued_bytes and not self._eof_sent:
            self._eof_sent = True
            transport.flush()
            self._channels.send_eof(self)
        return has_sent or transport.exchanging

    def _send_batch(self, transport: SshTransport) -> bool:
        for count in range(_BATCH):
            length = min(self._queued_bytes, self._longest)
            if length > self.remote_window:
                length = self.remote_window if self.remote_window >= _WORTHWHILE else 0
            if not length or transport.exchanging:
                return count > 0
            self._fill(transport.data_buffer(length))
            self.remote_window -= length
            transport.send_data(self.remote, length)
        return True

    def _fill(self, buffer: memoryview) -> None:
        start, end = 0, len(buffer)
        queue = self._queue
        while start < end:
            piece = queue[0]
            length = min(len(piece), end - start)
            buffer[start : start + length] = piece[:length]
            start += length
            if length == len(piece):
                queue.popleft()
            else:
                queue[0] = piece[length:]
        self._queued_bytes -= end

    def window_grown(self, count: int) -> None:
        """Grow the server's window by `count` bytes."""
        self.remote_window += count
        if self._queued_bytes:
            self._channels.transport.add_writer(self)

    # Receiving

    def receive(self, data: Callable[[bytes], None], eof: Callable[[], None] | None = None) -> None:
        """Pass the program's output to `data`, and call `eof` at its end.

        Until this is called, output is buffered, within our window.
        """
        self._on_data, self._on_eof = data, eof
        unread, self._unread = self._unread, []
        for piece in unread:
            data(piece)
        self._reopen_window()
        if self._eof_received and eof is not None:
            eof()

    def data(self, packet: bytes | memoryview, start: int, length: int) -> None:
        """Handle data within a packet."""
        self._take_from_window(length)
        if self.close_sent:
            return
        piece = bytes(packet[start : start + length])
        if self._on_data is None:
            self._unread.append(piece)
            return
        self._reopen_window()
        self._on_data(piece)

    def extended_data(self, data: bytes) -> None:
        """Handle data of the program's standard error."""
        self._take_from_window(len(data))
        self._errors = (self._errors + data)[-_STDERR_LIMIT:]
        lines = self._errors.decode("utf-8", "backslashreplace").split("\n")
        self.stderr = printable("; ".join(line.strip() for line in lines if line.strip()))
        self._reopen_window()

    def eof_received(self) -> None:
        """Handle the end of the program's output."""
        if not self._eof_received:
            self._eof_received = True
            if self._on_eof is not None:
                self._on_eof()

    def _take_from_window(self, length: int) -> None:
        if length > self._window:
            raise broken_protocol("more data than the window allows")
        self._window -= length

    def _reopen_window(self) -> None:
        if self._window < WINDOW // 2 and not self._unread:
            self._channels.adjust_window(self, WINDOW - self._window)
            self._window = WINDOW
