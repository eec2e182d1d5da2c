"""Messages of a server about channels cause at worst an error of the connection."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from shiftergw.errors import DeliveryFailed
from shiftergw.ssh.channel import WINDOW, ChannelState, SshChannel
from shiftergw.ssh.channels import Channels
from shiftergw.ssh.kex import PARSE_ERRORS

OPEN_CONFIRMATION, DATA, CLOSE, SUCCESS = 91, 94, 97, 99


class FakeTransport:
    """A transport that records the packets of channels."""

    failure = None
    exchanging = False

    def __init__(self) -> None:
        self.packets: list[tuple[int, bytes]] = []

    def sendPacket(self, kind: int, payload: bytes) -> None:
        """Record a packet."""
        self.packets.append((kind, payload))

    def read_data_with(self, reader: Any) -> None:
        """Ignore the reader: the test passes data itself."""

    def add_writer(self, writer: Any) -> None:
        """Ignore the writer: the test sends no data."""


def start_service() -> Channels:
    """Return a service on a fake transport."""
    channels = Channels()
    channels.transport = FakeTransport()  # type: ignore[assignment]
    channels.serviceStarted()
    return channels


def words(*numbers: int) -> bytes:
    """Return the encoding of numbers in SSH."""
    return struct.pack(f">{len(numbers)}L", *numbers)


def open_channel() -> tuple[Channels, SshChannel]:
    """Return the service with an open channel, number 0."""
    channels = start_service()
    opened_channels: list[SshChannel] = []
    opening = Deferred.fromCoroutine(channels.open_session(b"exec", "true"))
    opening.addCallback(opened_channels.append)
    channels.packetReceived(OPEN_CONFIRMATION, words(0, 7, 1 << 20, 32768))
    channels.packetReceived(SUCCESS, words(0))
    return channels, opened_channels[0]


def data(number: int, length: int, content: bytes) -> bytes:
    """Return a decrypted packet of channel data."""
    return bytes((4, DATA)) + words(number, length) + content + bytes(4)


def test_more_than_the_window() -> None:
    """A server that exceeds the window is refused, so memory is bounded."""
    channels, _ = open_channel()
    piece = bytes(32768)
    for _ in range(WINDOW // len(piece)):
        channels.data(data(0, len(piece), piece))
    with pytest.raises(DeliveryFailed) as excinfo:
        channels.data(data(0, 1, b"x"))
    assert "more data than the window" in excinfo.value.detail


@pytest.mark.parametrize("length", [0, 2, 4, 0xFFFFFFFF])
def test_data_of_another_length(length: int) -> None:
    """A wrong length of channel data is refused."""
    channels, _ = open_channel()
    with pytest.raises(DeliveryFailed):
        channels.data(data(0, length, b"abc"))


@pytest_twisted.ensureDeferred
async def test_messages_for_missing_channels() -> None:
    """A message for an unknown or closed channel is a protocol error."""
    channels, channel = open_channel()
    with pytest.raises(PARSE_ERRORS):
        channels.data(data(1, 1, b"x"))
    channels.packetReceived(CLOSE, words(0))
    assert await channel.closed is None
    with pytest.raises(PARSE_ERRORS):
        channels.packetReceived(CLOSE, words(0))


def closes(channels: Channels) -> int:
    """Return the number of times that the client has closed its side of a channel."""
    transport: Any = channels.transport
    return [kind for kind, _ in transport.packets].count(CLOSE)


def test_a_channel_that_is_abandoned_before_its_confirmation() -> None:
    """The channel is closed once, after the server has confirmed it."""
    channels = start_service()
    opening = Deferred.fromCoroutine(channels.open_session(b"exec", "true"))
    channel = channels._channels[0]
    opening.addErrback(lambda _: None)
    opening.cancel()
    assert (channel.state, closes(channels)) == (ChannelState.ABANDONED, 0)
    channels.packetReceived(OPEN_CONFIRMATION, words(0, 7, 1 << 20, 32768))
    assert (channel.state, closes(channels)) == (ChannelState.CLOSING, 1)
    channels.packetReceived(CLOSE, words(0))
    assert (channel.state, closes(channels)) == (ChannelState.END, 1)


@pytest.mark.parametrize("first_side", ["client", "server"])
@pytest_twisted.ensureDeferred
async def test_each_side_closes_a_channel_once(first_side: str) -> None:
    """The end of a channel is reported once, and data that arrives meanwhile is dropped."""
    channels, channel = open_channel()
    output: list[bytes] = []
    channel.receive(output.append)
    if first_side == "client":
        channel.lose()
        assert (channel.state, closes(channels)) == (ChannelState.CLOSING, 1)
        channels.data(data(0, 1, b"x"))
    channels.packetReceived(CLOSE, words(0))
    assert (channel.state, closes(channels)) == (ChannelState.END, 1)
    channel.lose()
    channel.write(b"x")
    assert (await channel.closed, output, closes(channels)) == (None, [], 1)


def test_a_second_confirmation() -> None:
    """A server that confirms an open channel again violates the protocol."""
    channels, _ = open_channel()
    with pytest.raises(DeliveryFailed) as excinfo:
        channels.packetReceived(OPEN_CONFIRMATION, words(0, 8, 1 << 20, 32768))
    assert "opened twice" in excinfo.value.detail


@given(
    st.lists(
        st.tuples(
            st.sampled_from([80, 81, 82, 90, 91, 92, 93, 95, 96, 97, 98, 99, 100, 101, 255]),
            st.one_of(st.binary(max_size=40), st.binary(max_size=30).map(lambda b: words(0) + b)),
        ),
        max_size=8,
    )
)
def test_arbitrary_messages(messages: list[tuple[int, bytes]]) -> None:
    """Any message is handled or raises a protocol error, and no other exception."""
    channels, channel = open_channel()
    channel.receive(lambda _: None)
    for kind, payload in messages:
        try:
            channels.packetReceived(kind, payload)
        except (DeliveryFailed, *PARSE_ERRORS):
            break
    channels.serviceStopped()
    channel.closed.addErrback(lambda _: None)
