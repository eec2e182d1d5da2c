"""Channels of an SSH connection: byte streams to programs on the far side (RFC 4254).

Both ways have an end to what may pile up: what is written beyond the server's window waits here and
its producer is paused; what arrives unread is bounded by our window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import Buffer
from shiftergw.ssh.kex import broken_protocol
from shiftergw.ssh.transport import LONGEST_DATA

if TYPE_CHECKING:
    from shiftergw.ssh.transport import SshTransport

WINDOW = 2 << 20
"""Bytes that the server may send before we have read them."""

HIGH_WATER = 1 << 20
"""Bytes waiting to be sent at which a producer is paused; below half of it, it is resumed."""

_BATCH = 3  # packets handed to TCP together; Twisted sends 128 KiB at a time, four are more
_WORTHWHILE = 4096  # bytes of the window that a packet should not be smaller for
_STDERR_LIMIT = 280  # less than what is kept of foreign text


class Wire(Protocol):
    """What a channel needs of its connection, named by its own number."""

    transport: SshTransport

    def adjust_window(self, channel: SshChannel, count: int) -> None:
        """Let the server send so many bytes more."""
        ...

    def send_eof(self, channel: SshChannel) -> None:
        """Say that no data follows."""
        ...

    def send_close(self, channel: SshChannel) -> None:
        """Say that nothing follows."""
        ...


class SshChannel:
    """One program on the far side: `write` to it, `receive` what it says.

    Keeps the protocol `Channel`, as which it is given away once it is open.
    """

    def __init__(self, wire: Wire, number: int) -> None:
        """Make a channel that is not open yet; `number` is its name on our side."""
        self.number = number
        self.opened: Deferred[None] = Deferred()
        self.replied: Deferred[bool] | None = None
        self.closed: Deferred[int | None] = Deferred()
        self.stderr = ""
        self._errors = b""  # the end of it as it came
        self.remote = -1
        self.ended = False
        self.close_sent = False
        self._wire = wire
        self._status: int | None = None
        self._window = WINDOW
        self._unread: list[bytes] = []
        self._on_data: Callable[[bytes], None] | None = None
        self._on_eof: Callable[[], None] | None = None
        self._eof_received = False
        self.remote_window = 0
        self._longest = 0
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._eof = False
        self._eof_sent = False
        self._producer: Any = None
        self._streaming = False
        self._paused = False

    # Beginning and end

    def open(self, remote: int, window: int, longest: int) -> None:
        """Begin, by what the server says: its number, its window, its longest packet."""
        if not longest:
            raise broken_protocol("a channel for packets of no length")
        self.remote, self.remote_window = remote, window
        self._longest = min(longest, LONGEST_DATA)
        self.opened.callback(None)

    def exit_status(self, status: int) -> None:
        """Take the program's exit status."""
        self._status = status

    def end(self, error: DeliveryFailed | None) -> None:
        """End, once: with an error if the connection did."""
        if self.ended:
            return
        self.ended = True
        self._queue.clear()
        self._queued = 0
        for waiting in (self.opened, self.replied):
            if waiting is not None and not waiting.called:
                waiting.errback(error or DeliveryFailed("The system closed the channel."))
        if self._producer is not None:
            producer, self._producer = self._producer, None
            producer.stopProducing()
        self.eof_received()
        if not self.closed.called:  # nor cancelled
            if error is None:
                self.closed.callback(self._status)
            else:
                self.closed.errback(error)

    def lose(self) -> None:
        """Close it now; what is waiting to be sent is not, and what is on its way is dropped.

        A server keeps its side open until the program ends, which may be long.
        """
        if not self.close_sent and not self.ended:
            self._wire.send_close(self)
            self.end(None)

    # Sending

    def write(self, data: Buffer) -> None:
        """Send bytes; they must not be changed until they are sent. Nothing once closed."""
        self.writeSequence((data,))

    def writeSequence(self, data: Iterable[Buffer]) -> None:
        """Send buffers one after the other."""
        if self.ended or self.close_sent or self._eof:
            return
        for piece in data:
            view = memoryview(piece).cast("B")
            if view:
                self._queue.append(view)
                self._queued += len(view)
        if self._streaming and not self._paused and self._queued >= HIGH_WATER:
            self._paused = True
            self._producer.pauseProducing()
        self._wire.transport.add_writer(self)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Pause and resume `producer`; one that is not streaming is asked when there is room."""
        if self._producer is not None:
            raise RuntimeError("a channel has one producer")
        if self.ended:
            producer.stopProducing()
            return
        self._producer, self._streaming, self._paused = producer, streaming, False
        self._wire.transport.add_writer(self)

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        self._producer, self._streaming = None, False

    def end_input(self) -> None:
        """Tell the program that nothing more comes, once what is waiting is sent."""
        if not self._eof:
            self._eof = True
            self._wire.transport.add_writer(self)

    def write_some(self) -> bool:
        """Send a few packets of what is waiting, as far as the server's window allows."""
        if self.ended or self.close_sent:
            return False
        transport = self._wire.transport
        if self._queued < HIGH_WATER // 2 and (self._paused or not self._streaming):
            self._paused = False
            if self._producer is not None:
                self._producer.resumeProducing()
        sent = self._send_batch(transport)
        if self._eof and not self._queued and not self._eof_sent:
            self._eof_sent = True
            transport.flush()
            self._wire.send_eof(self)
        return sent or transport.exchanging

    def _send_batch(self, transport: SshTransport) -> bool:
        for count in range(_BATCH):
            length = min(self._queued, self._longest)
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
        self._queued -= end

    def window_grown(self, count: int) -> None:
        """Take the server's word that it can hold so many bytes more."""
        self.remote_window += count
        if self._queued:
            self._wire.transport.add_writer(self)

    # Receiving

    def receive(self, data: Callable[[bytes], None], eof: Callable[[], None] | None = None) -> None:
        """Give what the program says to `data`, and call `eof` at its end.

        Until this is called it waits, within our window.
        """
        self._on_data, self._on_eof = data, eof
        unread, self._unread = self._unread, []
        for piece in unread:
            data(piece)
        self._reopen_window()
        if self._eof_received and eof is not None:
            eof()

    def data(self, packet: bytes | memoryview, start: int, length: int) -> None:
        """Take data that lie in a packet."""
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
        """Take what the program says on its standard error."""
        self._take_from_window(len(data))
        self._errors = (self._errors + data)[-_STDERR_LIMIT:]
        lines = self._errors.decode("utf-8", "backslashreplace").split("\n")
        self.stderr = printable("; ".join(line.strip() for line in lines if line.strip()))
        self._reopen_window()

    def eof_received(self) -> None:
        """Take the end of what the program says."""
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
            self._wire.adjust_window(self, WINDOW - self._window)
            self._window = WINDOW
