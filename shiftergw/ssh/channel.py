"""Channels of an SSH connection: byte streams to remote programs (RFC 4254).

Buffers are bounded both ways: data beyond the server's window waits here while its producer is
paused, and our window limits the data that arrives before it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import Buffer
from shiftergw.ssh.kex import broken_protocol
from shiftergw.ssh.outgoing_data import OutgoingData
from shiftergw.ssh.transport import LONGEST_DATA

if TYPE_CHECKING:
    from shiftergw.ssh.channels import Channels
    from shiftergw.ssh.transport import SshTransport

WINDOW = 2 << 20
"""Bytes that the server may send before they are read."""

_BATCH = 3  # packets passed to TCP together; Twisted sends 128 KiB at a time, and four are more
_WORTHWHILE = 4096  # bytes of window that justify a packet smaller than the longest
_STDERR_LIMIT = 280  # less than the limit of `printable`


class ChannelState(Enum):
    """The states of a channel, between our CHANNEL_OPEN and the last CHANNEL_CLOSE."""

    OPENING = auto()  # the server has not confirmed it yet
    OPEN = auto()
    ABANDONED = auto()  # given up before the confirmation, which the CLOSE must follow
    CLOSING = auto()  # our CLOSE is sent; the server may keep its side until the program ends
    END = auto()  # closed on both sides, or refused, or its connection has ended


S = ChannelState

STEPS: dict[ChannelState, frozenset[ChannelState]] = {
    S.OPENING: frozenset({S.OPEN, S.ABANDONED, S.END}),
    S.OPEN: frozenset({S.CLOSING, S.END}),
    S.ABANDONED: frozenset({S.CLOSING, S.END}),
    S.CLOSING: frozenset({S.END}),
    S.END: frozenset(),
}
"""From each state, the states a single step may lead to."""

IN_USE = frozenset({S.OPENING, S.OPEN})
"""The states in which the end of a channel has not been reported to its user."""


class InputState(Enum):
    """How far the program's standard input is from its end."""

    WRITABLE = auto()
    ENDING = auto()  # EOF follows the waiting data
    END = auto()  # EOF is sent


class SshChannel:
    """A remote program: `write` to it, `receive` its output. `STEPS` says how its state changes.

    Implements the protocol `Channel`; callers get it when it is open.
    """

    def __init__(self, channels: Channels, number: int) -> None:
        """Create a channel that is not open yet; `number` is our number for it."""
        self.number = number
        self.state = S.OPENING
        self.opening: Deferred[None] = Deferred()
        self.reply: Deferred[bool] | None = None
        self.closed: Deferred[int | None] = Deferred()
        self.stderr = ""
        self._errors = b""  # the raw end of standard error
        self.remote = -1
        """The server's number for it, once it is confirmed."""
        self._channels = channels
        self._status: int | None = None
        self._window = WINDOW
        self._unread: list[bytes] = []
        self._on_data: Callable[[bytes], None] | None = None
        self._on_eof: Callable[[], None] | None = None
        self._eof_received = False
        self.remote_window = 0
        self._longest = 0
        self._outgoing = OutgoingData()
        self._input = InputState.WRITABLE

    # Open and close

    def open(self, remote: int, window: int, longest: int) -> None:
        """Handle the confirmation: the server's number, window, and longest packet."""
        if self.state is S.ABANDONED:
            self.remote = remote
            self._step(S.CLOSING)
            self._channels.send_close(self)
            return
        if self.state is not S.OPENING:
            raise broken_protocol("a channel opened twice")
        if not longest:
            raise broken_protocol("a channel for packets of no length")
        self.remote, self.remote_window = remote, window
        self._longest = min(longest, LONGEST_DATA)
        self._step(S.OPEN)
        self.opening.callback(None)

    def exit_status(self, status: int) -> None:
        """Store the program's exit status."""
        self._status = status

    def close_received(self) -> None:
        """Handle the server's CLOSE, and answer it."""
        if self.state is S.OPEN:
            self._channels.send_close(self)
        self.end(None)

    def end(self, error: DeliveryFailed | None) -> None:
        """End the channel; `error` is the reason if it was refused, or the connection ended."""
        was_in_use = self.state in IN_USE
        self._step(S.END)
        if was_in_use:
            self._notify_of_end(error)

    def lose(self) -> None:
        """Close the channel at once; drop waiting and arriving data.

        The server may keep its side open for long, until the program ends.
        """
        if self.state is S.OPENING:
            self._step(S.ABANDONED)
        elif self.state is S.OPEN:
            self._step(S.CLOSING)
            self._channels.send_close(self)
        else:
            return
        self._notify_of_end(None)

    def _step(self, state: ChannelState) -> None:
        """Move to another state along the table."""
        assert state in STEPS[self.state], f"no step leads from {self.state} to {state}"
        self.state = state

    def _notify_of_end(self, error: DeliveryFailed | None) -> None:
        """Report the end to the user of the channel, and to the producer."""
        for waiting in (self.opening, self.reply):
            if waiting is not None and not waiting.called:
                waiting.errback(error or DeliveryFailed("The system closed the channel."))
        self._outgoing.drop()
        self.eof_received()
        if not self.closed.called:  # by cancellation
            if error is None:
                self.closed.callback(self._status)
            else:
                self.closed.errback(error)

    # Sending

    def write(self, data: Buffer) -> None:
        """Send bytes, which must not change until they are sent. Does nothing once closed."""
        self.writeSequence((data,))

    def writeSequence(self, data: Iterable[Buffer]) -> None:
        """Send buffers in order."""
        if self.state in IN_USE and self._input is InputState.WRITABLE:
            self._outgoing.append(data)
            self._channels.transport.add_writer(self)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Pause and resume `producer`; a pull producer is asked when there is room."""
        if self.state not in IN_USE:
            producer.stopProducing()
            return
        self._outgoing.register(producer, streaming)
        self._channels.transport.add_writer(self)

    def unregisterProducer(self) -> None:
        """Stop pausing and resuming the producer."""
        self._outgoing.unregister()

    def end_input(self) -> None:
        """Close the program's standard input once the waiting data is sent."""
        if self._input is InputState.WRITABLE:
            self._input = InputState.ENDING
            self._channels.transport.add_writer(self)

    def write_some(self) -> bool:
        """Send a few packets of waiting data within the server's window.

        Returns whether there was data to send.
        """
        if self.state not in IN_USE:
            return False
        transport = self._channels.transport
        self._outgoing.refill()
        has_sent = self._send_batch(transport)
        if self._input is InputState.ENDING and not self._outgoing.size:
            self._input = InputState.END
            transport.flush()
            self._channels.send_eof(self)
        return has_sent or transport.exchanging

    def _send_batch(self, transport: SshTransport) -> bool:
        for count in range(_BATCH):
            length = min(self._outgoing.size, self._longest)
            if length > self.remote_window:
                length = self.remote_window if self.remote_window >= _WORTHWHILE else 0
            if not length or transport.exchanging:
                return count > 0
            self._outgoing.fill(transport.data_buffer(length))
            self.remote_window -= length
            transport.send_data(self.remote, length)
        return True

    def window_grown(self, count: int) -> None:
        """Grow the server's window by `count` bytes."""
        self.remote_window += count
        if self._outgoing.size:
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
        if self.state not in IN_USE:
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
