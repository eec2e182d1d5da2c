"""The connection service of our SSH client (RFC 4254): opens channels and dispatches to them."""

from __future__ import annotations

import struct
from copy import copy
from typing import TYPE_CHECKING, ClassVar

from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.connection import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_CONFIRMATION,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_SUCCESS,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_GLOBAL_REQUEST,
    MSG_REQUEST_FAILURE,
    MSG_REQUEST_SUCCESS,
    OPEN_ADMINISTRATIVELY_PROHIBITED,
)
from twisted.conch.ssh.service import SSHService
from twisted.internet.defer import Deferred

from shiftergw.errors import printable
from shiftergw.plumbing.channel import HostFull, ProgramNotStarted
from shiftergw.ssh.channel import IN_USE, WINDOW, SshChannel
from shiftergw.ssh.kex import broken_protocol
from shiftergw.ssh.transport import LONGEST_DATA

if TYPE_CHECKING:
    from shiftergw.ssh.transport import SshTransport

_DATA = 10  # the offset of the data in a packet of channel data
_data_head = struct.Struct(">LL")
_word = struct.Struct(">L")


class Channels(SSHService):
    """Opens channels, and dispatches messages to them by their numbers."""

    name = b"ssh-connection"
    transport: SshTransport

    def __init__(self) -> None:
        """Start without channels; Conch sets the transport at the start of the service."""
        self._channels: dict[int, SshChannel] = {}
        self._next = 0
        self.window = 0
        """The largest window of a channel in bytes; OpenSSH opens it once a program runs."""

    def serviceStarted(self) -> None:
        self.transport.read_data_with(self)

    def serviceStopped(self) -> None:
        """Fail all channels: the connection has ended."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            # A copy for each channel: the traceback grows wherever an error is raised.
            channel.end(copy(self.transport.failure))

    async def open_session(self, request: bytes, argument: str) -> SshChannel:
        """Open a channel and start a program; `request` is `exec` or `subsystem`.

        Raises `HostFull` if the server opens no channel, `ProgramNotStarted` if it refuses the
        program, and `DeliveryFailed` if the connection ends. Cancellable.
        """
        if self.transport.failure is not None:
            raise copy(self.transport.failure)
        channel = SshChannel(self, self._next)
        self._next += 1
        self._channels[channel.number] = channel
        sizes = struct.pack(">LLL", channel.number, WINDOW, LONGEST_DATA)
        self.transport.sendPacket(MSG_CHANNEL_OPEN, NS(b"session") + sizes)
        try:
            await channel.opening
            channel.reply = Deferred()
            body = NS(request) + b"\1" + NS(argument.encode("utf-8", "surrogateescape"))
            self._send(MSG_CHANNEL_REQUEST, channel, body)
            is_accepted = await channel.reply
        except BaseException:
            _give_up(channel)
            raise
        if not is_accepted:
            _give_up(channel)
            raise ProgramNotStarted(
                "The system's SSH server does not start what the gateway needs.",
                remedy="Tell the site's support: the gateway's user must be allowed it.",
                detail=printable(f"{request.decode()} {argument}", 60),
            )
        return channel

    def keep_alive(self) -> None:
        """Send a request that the server must answer, with success or failure."""
        self.transport.sendPacket(MSG_GLOBAL_REQUEST, NS(b"keepalive@openssh.com") + b"\1")

    # For channels

    def adjust_window(self, channel: SshChannel, count: int) -> None:
        """Allow the server to send `count` more bytes."""
        if channel.state in IN_USE:
            self._send(MSG_CHANNEL_WINDOW_ADJUST, channel, _word.pack(count))

    def send_eof(self, channel: SshChannel) -> None:
        """Announce that no data follows."""
        self._send(MSG_CHANNEL_EOF, channel)

    def send_close(self, channel: SshChannel) -> None:
        """Close our side of a channel."""
        self._send(MSG_CHANNEL_CLOSE, channel)

    def _send(self, kind: int, channel: SshChannel, rest: bytes = b"") -> None:
        self.transport.sendPacket(kind, _word.pack(channel.remote) + rest)

    # Messages of the server

    def data(self, packet: bytes | memoryview) -> None:
        """Read a packet of channel data that begins with the length of its padding."""
        number, length = _data_head.unpack_from(packet, 2)
        if _DATA + length + packet[0] != len(packet):
            raise broken_protocol("channel data of another length than they say")
        self._channels[number].data(packet, _DATA, length)

    def packetReceived(self, messageNum: int, packet: bytes) -> None:  # noqa: N803
        if messageNum == MSG_GLOBAL_REQUEST:
            self._global_request(packet)
        elif messageNum == MSG_CHANNEL_OPEN:
            self._refuse_channel(packet)
        elif messageNum not in {MSG_REQUEST_SUCCESS, MSG_REQUEST_FAILURE}:
            handle = self._HANDLERS.get(messageNum)
            if handle is None:
                raise broken_protocol(f"message {messageNum}")
            handle(self, self._channels[_word.unpack_from(packet)[0]], packet[4:])

    def _on_window_adjust(self, channel: SshChannel, rest: bytes) -> None:
        channel.window_grown(_word.unpack(rest)[0])
        self.window = max(self.window, channel.remote_window)

    def _on_success(self, channel: SshChannel, _: bytes) -> None:
        self._reply(channel, is_accepted=True)

    def _on_failure(self, channel: SshChannel, _: bytes) -> None:
        self._reply(channel, is_accepted=False)

    def _reply(self, channel: SshChannel, *, is_accepted: bool) -> None:
        if channel.reply is None:
            raise broken_protocol("an answer to no request")
        reply, channel.reply = channel.reply, None
        if not reply.called:  # else the caller was cancelled
            reply.callback(is_accepted)

    def _on_extended_data(self, channel: SshChannel, rest: bytes) -> None:
        channel.extended_data(getNS(rest[4:])[0])

    def _on_eof(self, channel: SshChannel, _: bytes) -> None:
        channel.eof_received()

    def _on_close(self, channel: SshChannel, _: bytes) -> None:
        del self._channels[channel.number]
        channel.close_received()

    def _on_open(self, channel: SshChannel, rest: bytes) -> None:
        channel.open(*struct.unpack_from(">LLL", rest))
        self.window = max(self.window, channel.remote_window)

    def _on_open_failure(self, channel: SshChannel, rest: bytes) -> None:
        del self._channels[channel.number]
        channel.end(
            HostFull(
                "The system's SSH server opens no session.",
                remedy="Try again later; if it lasts, tell the site's support: MaxSessions of the"
                " system's sshd may be too low.",
                detail=f"reason {_word.unpack_from(rest)[0]}: {printable(getNS(rest[4:])[0])}",
            )
        )

    def _on_request(self, channel: SshChannel, rest: bytes) -> None:
        request, rest = getNS(rest)
        if request == b"exit-status":
            channel.exit_status(_word.unpack_from(rest, 1)[0])
        elif rest[:1] == b"\1":
            self._send(MSG_CHANNEL_FAILURE, channel)

    def _global_request(self, packet: bytes) -> None:
        """Refuse every global request, which also answers the server's keep-alives."""
        _, rest = getNS(packet)
        if rest[:1] == b"\1":
            self.transport.sendPacket(MSG_REQUEST_FAILURE, b"")

    def _refuse_channel(self, packet: bytes) -> None:
        _, rest = getNS(packet)
        self.transport.sendPacket(
            MSG_CHANNEL_OPEN_FAILURE,
            rest[:4] + _word.pack(OPEN_ADMINISTRATIVELY_PROHIBITED) + NS(b"") + NS(b""),
        )

    _HANDLERS: ClassVar = {
        MSG_CHANNEL_WINDOW_ADJUST: _on_window_adjust,
        MSG_CHANNEL_OPEN_CONFIRMATION: _on_open,
        MSG_CHANNEL_OPEN_FAILURE: _on_open_failure,
        MSG_CHANNEL_SUCCESS: _on_success,
        MSG_CHANNEL_FAILURE: _on_failure,
        MSG_CHANNEL_EXTENDED_DATA: _on_extended_data,
        MSG_CHANNEL_EOF: _on_eof,
        MSG_CHANNEL_REQUEST: _on_request,
        MSG_CHANNEL_CLOSE: _on_close,
    }


def _give_up(channel: SshChannel) -> None:
    """Close a channel that was not returned to the caller."""
    channel.closed.addBoth(lambda _: None)
    channel.lose()
