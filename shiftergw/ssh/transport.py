"""The packets of our SSH client: few copies, few steps for each, nothing piles up.

A packet is built in one buffer that is used again and again, sealed in one call, and handed to TCP
together with others. Who has much to send is asked for it when TCP has sent what it had.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from twisted.conch.ssh.transport import MSG_DISCONNECT
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import Away
from shiftergw.ssh.ciphers import LONGEST, Ciphers, Clear, Forged, Opener, Sealer
from shiftergw.ssh.greeting import Greeting
from shiftergw.ssh.kex import MALFORMED, KeyExchange, broken_protocol
from shiftergw.ssh.known_hosts import HostKeys

if TYPE_CHECKING:
    from shiftergw.ssh.login import SshLogin

MSG_CHANNEL_DATA = 94
LONGEST_DATA = 32 << 10
"""Bytes of channel data that we put into one packet; servers offer this or more."""

REKEY_BYTES = 32 << 30
"""Sent bytes after which we ask for new keys; OpenSSH's own limit for AES is twice this."""

_HEAD = 9  # bytes before the payload: sequence number, length, length of the padding
_DATA = _HEAD + 9  # before channel data: also message, channel, length
_SHORTEST_PADDING = 4
_WRAP = 0xFFFFFFFF
_data_head = struct.Struct(">BLL")

_TOO_MANY_TRIES = 2, 14  # reasons of a disconnect (RFC 4253 section 11.1) that follow a login


class Writer(Protocol):
    """Somebody with much to send."""

    def write_some(self) -> bool:
        """Send a batch by `send_data`, and say whether there was anything to send."""
        ...


class DataReader(Protocol):
    """The service that takes channel data without the detour through its dispatcher."""

    def data(self, packet: bytes | memoryview) -> None:
        """Take a packet that begins with the length of its padding."""
        ...


def nothing_greeted() -> Away:
    """Return the error of a connection that ended before the first line of SSH."""
    return Away(
        "The system closed the connection before it said a word of SSH.",
        remedy="Try again later; if it lasts, tell the site's support: the port may be wrong, or "
        "the SSH server may refuse the gateway.",
    )


@implementer(IPullProducer)
class SshTransport(KeyExchange):
    """One SSH connection: sends and receives packets for the login, then for channels."""

    rekey_bytes = REKEY_BYTES
    _sealer: Sealer = Clear()
    _opener: Opener = Clear()
    _reader: DataReader | None = None
    failure: DeliveryFailed | None = None
    """Why the connection ended, or is about to."""

    _writing = False
    _unkeyed = 0  # bytes sent with these keys

    def __init__(
        self,
        host: str,
        port: int,
        known_hosts: HostKeys,
        login: SshLogin,
        ciphers: Sequence[str] = (),
    ) -> None:
        """Connect with the host that is known by this name, and log in."""
        super().__init__(host, port, known_hosts, ciphers)
        self._login = login
        self._ended: list[Deferred[None]] | None = []
        self._buffer = memoryview(bytearray(_DATA + LONGEST_DATA + 64))
        # Other padding for each packet would cost more than the rest of it; it is sealed anyway.
        self._padding = secrets.token_bytes(32)
        self._batch: list[bytes] = []
        self._writers: list[Writer] = []
        self._greeting = Greeting(self.supportedVersions)
        self.heard = 0  # packets received; for whoever watches whether the server lives

    # The connection

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, streaming=False)
        super().connectionMade()

    def connectionLost(self, reason: Failure | None = None) -> None:
        error = self.failure
        if error is None and not self.gotVersion:
            error = nothing_greeted()
        if error is None:
            error = Away(
                "The connection to the system broke.",
                detail="" if reason is None else printable(reason.getErrorMessage()),
            )
        self.failure = error
        self._writers.clear()
        super().connectionLost(reason)
        self._login.failed(error)
        waiting, self._ended = self._ended or [], None
        for deferred in waiting:
            deferred.callback(None)

    def connectionSecure(self) -> None:
        self.requestService(self._login)

    def ssh_SERVICE_ACCEPT(self, packet: bytes) -> None:
        if self.service is not None:  # Conch would begin anew with the login
            raise broken_protocol("a service that was not asked for")
        super().ssh_SERVICE_ACCEPT(packet)

    def ended(self) -> Deferred[None]:
        """Return what fires when the connection has ended."""
        deferred: Deferred[None] = Deferred(self._forget)
        if self._ended is None:
            deferred.callback(None)
        else:
            self._ended.append(deferred)
        return deferred

    def _forget(self, deferred: Deferred[None]) -> None:
        if self._ended and deferred in self._ended:
            self._ended.remove(deferred)

    def abort(self) -> None:
        """End the connection at once."""
        self.transport.abortConnection()

    def fail(self, error: DeliveryFailed) -> None:
        """End the connection at once, with this error unless it has one."""
        if self.failure is None:
            self.failure = error
        if self.transport is not None:
            self.abort()

    def close(self, error: DeliveryFailed) -> None:
        """End the connection in order once what was written is sent; `error` is for who uses it."""
        if self.failure is None:
            self.failure = error
        self._writers.clear()
        self.sendPacket(MSG_DISCONNECT, struct.pack(">L", 11) + struct.pack(">LL", 0, 0))
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def sendDisconnect(self, reason: int, desc: bytes) -> None:  # noqa: ARG002
        """Replace Conch's, which is what it calls on faults of the other side."""
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
        except Forged as error:
            self.fail(broken_protocol(str(error)))
        except MALFORMED as error:
            self.fail(broken_protocol(f"{type(error).__name__} in a message: {error}"))

    def _receive(self, data: bytes) -> None:
        if not self.gotVersion:
            greeted = self._greeting.feed(data)
            if greeted is None:
                return
            self.otherVersionString, data = greeted
            self.gotVersion = True
        start = 0
        view = memoryview(data)
        while self.failure is None:
            found = self._opener.open(view[start:], self.incomingPacketSequence)
            if found is None:
                break
            packet, size = found
            start += size
            self.incomingPacketSequence = (self.incomingPacketSequence + 1) & _WRAP
            self.heard += 1
            self._take(packet)
        self.buf = data[start:]

    def _take(self, packet: bytes | memoryview) -> None:
        kind = packet[1]
        if kind == MSG_CHANNEL_DATA and self._reader is not None:
            self._reader.data(packet)
            return
        padding = packet[0]
        if not _SHORTEST_PADDING <= padding <= len(packet) - 2:
            raise Forged(f"{padding} bytes of padding")
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
        """Return where to put up to `LONGEST_DATA` bytes that `send_data` then sends."""
        return self._buffer[_DATA : _DATA + length]

    def send_data(self, channel: int, length: int) -> None:
        """Send so many bytes of `data_buffer` to the server's channel, not while exchanging keys.

        They go out with `flush`; the window is the caller's to keep.
        """
        _data_head.pack_into(self._buffer, _HEAD, MSG_CHANNEL_DATA, channel, length)
        self._seal(self._buffer, _DATA - _HEAD + length)

    def flush(self) -> None:
        """Hand what was sealed to TCP."""
        if self._batch:
            batch, self._batch = self._batch, []
            self.transport.writeSequence(batch)

    def _seal(self, buffer: memoryview, length: int) -> None:
        """Complete and seal the packet whose payload of `length` bytes lies in the buffer."""
        sealer = self._sealer
        padding = sealer.block - (5 - sealer.unsealed + length) % sealer.block
        if padding < _SHORTEST_PADDING:
            padding += sealer.block
        end = _HEAD + length + padding
        struct.pack_into(
            ">LLB", buffer, 0, self.outgoingPacketSequence, 1 + length + padding, padding
        )
        buffer[_HEAD + length : end] = self._padding[:padding]
        self._batch += sealer.seal(buffer[:end])
        self.outgoingPacketSequence = (self.outgoingPacketSequence + 1) & _WRAP
        self._unkeyed += end
        if self._unkeyed > self.rekey_bytes and not self.exchanging:
            self._unkeyed = 0
            self.sendKexInit()

    def _newKeys(self) -> None:
        keys: Ciphers = self.nextEncryptions
        self._sealer, self._opener = keys.outgoing, keys.incoming
        self._unkeyed = 0
        super()._newKeys()
        self.resumeProducing()

    # Who has much to send

    def read_data_with(self, reader: DataReader) -> None:
        """Give channel data to this service from now on."""
        self._reader = reader

    def add_writer(self, writer: Writer) -> None:
        """Ask `writer` for data whenever TCP has room, until it has none."""
        if writer not in self._writers:
            self._writers.append(writer)
            if not self._writing:
                self.resumeProducing()

    def resumeProducing(self) -> None:
        """Ask the writers in turn; those that had nothing to send must be added anew."""
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
