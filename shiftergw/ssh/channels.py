"""The connection service of our SSH client: channels by their numbers (RFC 4254)."""

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
from shiftergw.ssh.channel import WINDOW, SshChannel
from shiftergw.ssh.kex import broken_protocol
from shiftergw.ssh.transport import LONGEST_DATA

if TYPE_CHECKING:
    from shiftergw.ssh.transport import SshTransport

_DATA = 10  # where data begin in a packet of channel data
_data_head = struct.Struct(">LL")
_word = struct.Struct(">L")


class Channels(SSHService):
    """Opens channels, and gives each what is meant for it."""

    name = b"ssh-connection"
    transport: SshTransport

    def __init__(self) -> None:
        """Begin without channels; the transport comes with the service's start."""
        self._channels: dict[int, SshChannel] = {}
        self._next = 0
        self.window = 0
        """Bytes that the server takes at once on a channel; OpenSSH tells once a program runs."""

    def serviceStarted(self) -> None:
        self.transport.read_data_with(self)

    def serviceStopped(self) -> None:
        """Fail all channels: the connection has ended."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            # Each its own: a traceback grows with every place that an error is raised in.
            channel.end(copy(self.transport.failure))

    async def open_session(self, request: bytes, argument: str) -> SshChannel:
        """Return a channel to a program: `request` is `exec` or `subsystem`.

        Raises `DeliveryFailed` if the server opens none or does not start it, or if the connection
        ends. Cancellable.
        """
        if self.transport.failure is not None:
            raise copy(self.transport.failure)
        channel = SshChannel(self, self._next)
        self._next += 1
        self._channels[channel.number] = channel
        sizes = struct.pack(">LLL", channel.number, WINDOW, LONGEST_DATA)
        self.transport.sendPacket(MSG_CHANNEL_OPEN, NS(b"session") + sizes)
        try:
            await channel.opened
            channel.replied = Deferred()
            asked = NS(request) + b"\1" + NS(argument.encode("utf-8", "surrogateescape"))
            self._send(MSG_CHANNEL_REQUEST, channel, asked)
            accepted = await channel.replied
        except BaseException:
            _give_up(channel)
            raise
        if not accepted:
            _give_up(channel)
            raise ProgramNotStarted(
                "The system's SSH server does not start what the gateway needs.",
                remedy="Tell the site's support: the gateway's user must be allowed it.",
                detail=printable(f"{request.decode()} {argument}", 60),
            )
        return channel

    def keep_alive(self) -> None:
        """Ask for an answer, whatever it is."""
        self.transport.sendPacket(MSG_GLOBAL_REQUEST, NS(b"keepalive@openssh.com") + b"\1")

    # What channels need

    def adjust_window(self, channel: SshChannel, count: int) -> None:
        """Let the server send so many bytes more."""
        if not channel.close_sent:
            self._send(MSG_CHANNEL_WINDOW_ADJUST, channel, _word.pack(count))

    def send_eof(self, channel: SshChannel) -> None:
        """Say that no data follows."""
        self._send(MSG_CHANNEL_EOF, channel)

    def send_close(self, channel: SshChannel) -> None:
        """Say that nothing follows; of a channel that is not open yet, once it is."""
        channel.close_sent = True
        if channel.remote >= 0:
            self._send(MSG_CHANNEL_CLOSE, channel)

    def _send(self, kind: int, channel: SshChannel, rest: bytes = b"") -> None:
        self.transport.sendPacket(kind, _word.pack(channel.remote) + rest)

    # What the server says

    def data(self, packet: bytes | memoryview) -> None:
        """Take a packet of channel data, with the length of its padding before it."""
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
            take = self._TAKE.get(messageNum)
            if take is None:
                raise broken_protocol(f"message {messageNum}")
            take(self, self._channels[_word.unpack_from(packet)[0]], packet[4:])

    def _window_grown(self, channel: SshChannel, rest: bytes) -> None:
        channel.window_grown(_word.unpack(rest)[0])
        self.window = max(self.window, channel.remote_window)

    def _accepted(self, channel: SshChannel, _: bytes) -> None:
        self._reply(channel, accepted=True)

    def _refused(self, channel: SshChannel, _: bytes) -> None:
        self._reply(channel, accepted=False)

    def _reply(self, channel: SshChannel, *, accepted: bool) -> None:
        if channel.replied is None:
            raise broken_protocol("an answer to no request")
        replied, channel.replied = channel.replied, None
        if not replied.called:  # or nobody waits for it any more
            replied.callback(accepted)

    def _extended_data(self, channel: SshChannel, rest: bytes) -> None:
        channel.extended_data(getNS(rest[4:])[0])

    def _eof(self, channel: SshChannel, _: bytes) -> None:
        channel.eof_received()

    def _closed(self, channel: SshChannel, _: bytes) -> None:
        if not channel.close_sent:
            self.send_close(channel)
        del self._channels[channel.number]
        channel.end(None)

    def _opened(self, channel: SshChannel, rest: bytes) -> None:
        if channel.remote >= 0:
            raise broken_protocol("a channel opened twice")
        remote, window, longest = struct.unpack_from(">LLL", rest)
        if channel.close_sent:  # given up meanwhile
            channel.remote = remote
            self.send_close(channel)
        else:
            channel.open(remote, window, longest)
            self.window = max(self.window, window)

    def _not_opened(self, channel: SshChannel, rest: bytes) -> None:
        del self._channels[channel.number]
        channel.end(
            HostFull(
                "The system's SSH server opens no session.",
                remedy="Try again later; if it lasts, tell the site's support: MaxSessions of the"
                " system's sshd may be too low.",
                detail=f"reason {_word.unpack_from(rest)[0]}: {printable(getNS(rest[4:])[0])}",
            )
        )

    def _channel_request(self, channel: SshChannel, rest: bytes) -> None:
        request, rest = getNS(rest)
        if request == b"exit-status":
            channel.exit_status(_word.unpack_from(rest, 1)[0])
        elif rest[:1] == b"\1":
            self._send(MSG_CHANNEL_FAILURE, channel)

    def _global_request(self, packet: bytes) -> None:
        """Refuse whatever it is, which answers the server's keep-alives."""
        _, rest = getNS(packet)
        if rest[:1] == b"\1":
            self.transport.sendPacket(MSG_REQUEST_FAILURE, b"")

    def _refuse_channel(self, packet: bytes) -> None:
        _, rest = getNS(packet)
        self.transport.sendPacket(
            MSG_CHANNEL_OPEN_FAILURE,
            rest[:4] + _word.pack(OPEN_ADMINISTRATIVELY_PROHIBITED) + NS(b"") + NS(b""),
        )

    _TAKE: ClassVar = {
        MSG_CHANNEL_WINDOW_ADJUST: _window_grown,
        MSG_CHANNEL_OPEN_CONFIRMATION: _opened,
        MSG_CHANNEL_OPEN_FAILURE: _not_opened,
        MSG_CHANNEL_SUCCESS: _accepted,
        MSG_CHANNEL_FAILURE: _refused,
        MSG_CHANNEL_EXTENDED_DATA: _extended_data,
        MSG_CHANNEL_EOF: _eof,
        MSG_CHANNEL_REQUEST: _channel_request,
        MSG_CHANNEL_CLOSE: _closed,
    }


def _give_up(channel: SshChannel) -> None:
    """Close a channel that nobody was given."""
    channel.closed.addBoth(lambda _: None)
    channel.lose()
