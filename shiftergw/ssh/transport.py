"""The binary packet protocol of our SSH client (RFC 4253, section 6), with few copies.

A packet is built in a buffer that is reused, sealed in one call, and passed to TCP together with
other packets. Writers are asked for more data when TCP has sent the earlier data, so that nothing
accumulates.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.conch.ssh.transport import MSG_DISCONNECT
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import SystemUnavailable
from shiftergw.ssh.ciphers import LONGEST, Ciphers, Clear, InvalidPacket, Opener, Sealer
from shiftergw.ssh.greeting import Greeting
from shiftergw.ssh.kex import PARSE_ERRORS, KeyExchange, broken_protocol
from shiftergw.ssh.known_hosts import HostKeys

if TYPE_CHECKING:
    from shiftergw.ssh.channel import SshChannel
    from shiftergw.ssh.channels import Channels
    from shiftergw.ssh.login import SshLogin

MSG_CHANNEL_DATA = 94
LONGEST_DATA = 32 << 10
"""Bytes of channel data in one of our packets; servers accept this or more."""

REKEY_BYTES = 32 << 30
"""Sent bytes after which new keys are negotiated; OpenSSH's limit for AES is twice this."""

_HEAD = 9  # bytes before the payload: sequence number, length, length of the padding
_DATA = _HEAD + 9  # before channel data: also message, channel, length
_SHORTEST_PADDING = 4
_WRAP = 0xFFFFFFFF
_data_head = struct.Struct(">BLL")

_TOO_MANY_TRIES = 2, 14  # reasons of a disconnect after failed logins (RFC 4253 section 11.1)


def no_greeting() -> SystemUnavailable:
    """Return the error for a connection that ended before the first line of SSH."""
    return SystemUnavailable(
        "The system closed the connection before it said a word of SSH.",
        remedy="Try again later; if it lasts, tell the site's support: the port may be wrong, or "
        "the SSH server may refuse the gateway.",
    )


@implementer(IPullProducer)
class SshTransport(KeyExchange):
    """An SSH connection: sends and receives packets for the login, then for the channels."""

    rekey_bytes = REKEY_BYTES
    _sealer: Sealer = Clear()
    _opener: Opener = Clear()
    _reader: Channels | None = None
    failure: DeliveryFailed | None = None
    """The reason why the connection ended or is about to end."""

    _writing = False
    _bytes_sent = 0  # with the current keys

    def __init__(
        self,
        host: str,
        port: int,
        known_hosts: HostKeys,
        login: SshLogin,
        ciphers: Sequence[str] = (),
    ) -> None:
        """Prepare to connect to a host, check its key by `known_hosts`, and run `login`."""
        super().__init__(host, port, known_hosts, ciphers)
        self._login = login
        self._end_waiters: list[Deferred[None]] | None = []
        self._buffer = memoryview(bytearray(_DATA + LONGEST_DATA + 64))
        # New padding for each packet would cost more than the rest, and it is encrypted anyway.
        self._padding = secrets.token_bytes(32)
        self._batch: list[bytes] = []
        self._writers: list[SshChannel] = []
        self._greeting = Greeting(self.supportedVersions)
        self.packets_received = 0  # for checks whether the server is alive

    # The connection

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, streaming=False)
        super().connectionMade()

    def connectionLost(self, reason: Failure | None = None) -> None:
        error = self.failure
        if error is None and not self.gotVersion:
            error = no_greeting()
        if error is None:
            error = SystemUnavailable(
                "The connection to the system broke.",
                detail="" if reason is None else printable(reason.getErrorMessage()),
            )
        self.failure = error
        self._writers.clear()
        super().connectionLost(reason)
        self._login.fail(error)
        waiting, self._end_waiters = self._end_waiters or [], None
        for waiter in waiting:
            waiter.callback(None)

    def connectionSecure(self) -> None:
        self.requestService(self._login)

    def ssh_SERVICE_ACCEPT(self, packet: bytes) -> None:
        if self.service is not None:  # Conch would restart the login
            raise broken_protocol("a service that was not asked for")
        super().ssh_SERVICE_ACCEPT(packet)

    def wait_for_end(self) -> Deferred[None]:
        """Return a Deferred that fires when the connection has ended. Cancellable."""
        waiter: Deferred[None] = Deferred(self._remove_waiter)
        if self._end_waiters is None:
            waiter.callback(None)
        else:
            self._end_waiters.append(waiter)
        return waiter

    def _remove_waiter(self, waiter: Deferred[None]) -> None:
        if self._end_waiters and waiter in self._end_waiters:
            self._end_waiters.remove(waiter)

    def abort(self) -> None:
        """End the connection at once."""
        self.transport.abortConnection()

    def fail(self, error: DeliveryFailed) -> None:
        """End the connection at once; `error` is the reason unless there already is one."""
        if self.failure is None:
            self.failure = error
        if self.transport is not None:
            self.abort()

    def close(self, error: DeliveryFailed) -> None:
        """Send the waiting data and a disconnect, then close; later calls raise `error`."""
        if self.failure is None:
            self.failure = error
        self._writers.clear()
        self.sendPacket(MSG_DISCONNECT, struct.pack(">L", 11) + struct.pack(">LL", 0, 0))
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def sendDisconnect(self, reason: int, desc: bytes) -> None:  # noqa: ARG002
        """End the connection with an error; Conch calls this on faults of the server."""
        self.fail(broken_protocol(printable(desc)))

    def receiveError(self, reasonCode: int, description: bytes) -> None:  # noqa: N803
        remedy = None
        if reasonCode in _TOO_MANY_TRIES:
            remedy = "Tell the site's support: the system may not know the gateway's key."
        self.fail(
            DeliveryFailed(
                "The system ended the SSH connection.",
                remedy=remedy,
                detail=f"reason {reasonCode}: {printable(description)}",
            )
        )

    # Receiving

    def dataReceived(self, data: bytes) -> None:
        try:
            self._receive(self.buf + data if self.buf else data)
        except DeliveryFailed as error:
            self.fail(error)
        except InvalidPacket as error:
            self.fail(broken_protocol(str(error)))
        except PARSE_ERRORS as error:
            self.fail(broken_protocol(f"{type(error).__name__} in a message: {error}"))

    def _receive(self, data: bytes) -> None:
        if not self.gotVersion:
            greeting = self._greeting.feed(data)
            if greeting is None:
                return
            self.otherVersionString, data = greeting
            self.gotVersion = True
        start = 0
        view = memoryview(data)
        while self.failure is None:
            opened_packet = self._opener.open(view[start:], self.incomingPacketSequence)
            if opened_packet is None:
                break
            packet, size = opened_packet
            start += size
            self.incomingPacketSequence = (self.incomingPacketSequence + 1) & _WRAP
            self.packets_received += 1
            self._take(packet)
        self.buf = data[start:]

    def _take(self, packet: bytes | memoryview) -> None:
        kind = packet[1]
        if kind == MSG_CHANNEL_DATA and self._reader is not None:
            self._reader.data(packet)
            return
        padding = packet[0]
        if not _SHORTEST_PADDING <= padding <= len(packet) - 2:
            raise InvalidPacket(f"{padding} bytes of padding")
        self.check_order(kind)
        self.dispatchMessage(kind, bytes(packet[2 : len(packet) - padding]))

    # Sending

    def sendPacket(self, messageType: int, payload: bytes) -> None:  # noqa: N803
        if self.exchanging and not self._allowedKeyExchangeMessageType(messageType):
            self._blockedByKeyExchange.append((messageType, payload))
            return
        length = 1 + len(payload)
        buffer = self._buffer
        if _HEAD + length + 64 > len(buffer):
            if length > LONGEST:
                raise ValueError("too long for one packet")
            buffer = memoryview(bytearray(_HEAD + length + 64))
        buffer[_HEAD] = messageType
        buffer[_HEAD + 1 : _HEAD + length] = payload
        self._seal(buffer, length)
        self.flush()

    def data_buffer(self, length: int) -> memoryview:
        """Return the buffer of `length` (at most `LONGEST_DATA`) bytes that `send_data` sends."""
        return self._buffer[_DATA : _DATA + length]

    def send_data(self, channel: int, length: int) -> None:
        """Send `length` bytes of `data_buffer` to a channel; not allowed during a key exchange.

        `flush` passes them to TCP. The caller keeps account of the window.
        """
        _data_head.pack_into(self._buffer, _HEAD, MSG_CHANNEL_DATA, channel, length)
        self._seal(self._buffer, _DATA - _HEAD + length)

    def flush(self) -> None:
        """Pass the sealed packets to TCP."""
        if self._batch:
            batch, self._batch = self._batch, []
            self.transport.writeSequence(batch)

    def _seal(self, buffer: memoryview, length: int) -> None:
        """Complete and seal the packet whose payload of `length` bytes is in the buffer."""
        sealer = self._sealer
        padding = sealer.block - (5 - sealer.clear_bytes + length) % sealer.block
        if padding < _SHORTEST_PADDING:
            padding += sealer.block
        end = _HEAD + length + padding
        struct.pack_into(
            ">LLB", buffer, 0, self.outgoingPacketSequence, 1 + length + padding, padding
        )
        buffer[_HEAD + length : end] = self._padding[:padding]
        self._batch += sealer.seal(buffer[:end])
        self.outgoingPacketSequence = (self.outgoingPacketSequence + 1) & _WRAP
        self._bytes_sent += end
        if self._bytes_sent > self.rekey_bytes and not self.exchanging:
            self._bytes_sent = 0
            self.sendKexInit()

    def _newKeys(self) -> None:
        keys: Ciphers = self.nextEncryptions
        self._sealer, self._opener = keys.outgoing, keys.incoming
        self._bytes_sent = 0
        super()._newKeys()
        self.resumeProducing()

    # Writers

    def read_data_with(self, reader: Channels) -> None:
        """Pass channel data to this service from now on."""
        self._reader = reader

    def add_writer(self, writer: SshChannel) -> None:
        """Ask `writer` for data whenever TCP has room, until the writer has no data."""
        if writer not in self._writers:
            self._writers.append(writer)
            if not self._writing:
                self.resumeProducing()

    def resumeProducing(self) -> None:
        """Ask the writers in turn, and remove those that had no data."""
        if self.exchanging:
            self._writing = False
            return
        self._writing = True
        for writer in self._writers.copy():
            if not writer.write_some() and writer in self._writers:
                self._writers.remove(writer)
        self._writing = bool(self._writers)
        self.flush()

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` follows."""
