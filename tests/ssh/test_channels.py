"""What a server may say about channels: nothing of it is more than an error of the connection."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from shiftergw.errors import DeliveryFailed
from shiftergw.ssh.channel import WINDOW, SshChannel
from shiftergw.ssh.channels import Channels
from shiftergw.ssh.kex import PARSE_ERRORS

OPENED, DATA, CLOSE, SUCCESS = 91, 94, 97, 99


class Wire:
    """What stands below channels: keeps what they send."""

    failure = None
    exchanging = False

    def __init__(self) -> None:
        self.sent: list[tuple[int, bytes]] = []

    def sendPacket(self, kind: int, payload: bytes) -> None:
        """Keep it."""
        self.sent.append((kind, payload))

    def read_data_with(self, reader: Any) -> None:
        """Leave data to the test."""

    def add_writer(self, writer: Any) -> None:
        """Never ask for data."""


def started() -> Channels:
    """Return the service on such a wire."""
    channels = Channels()
    channels.transport = Wire()  # type: ignore[assignment]
    channels.serviceStarted()
    return channels


def words(*numbers: int) -> bytes:
    """Return numbers as SSH writes them."""
    return struct.pack(f">{len(numbers)}L", *numbers)


def opened() -> tuple[Channels, SshChannel]:
    """Return the service with an open channel, number 0."""
    channels = started()
    found: list[SshChannel] = []
    opening = Deferred.fromCoroutine(channels.open_session(b"exec", "true"))
    opening.addCallback(found.append)
    channels.packetReceived(OPENED, words(0, 7, 1 << 20, 32768))
    channels.packetReceived(SUCCESS, words(0))
    return channels, found[0]


def data(number: int, length: int, content: bytes) -> bytes:
    """Return a packet of channel data as it is opened."""
    return bytes((4, DATA)) + words(number, length) + content + bytes(4)


def test_more_than_the_window() -> None:
    """A server that sends more than it may is refused, before memory is full of it."""
    channels, _ = opened()
    piece = bytes(32768)
    for _ in range(WINDOW // len(piece)):
        channels.data(data(0, len(piece), piece))
    with pytest.raises(DeliveryFailed) as caught:
        channels.data(data(0, 1, b"x"))
    assert "more data than the window" in caught.value.detail


@pytest.mark.parametrize("length", [0, 2, 4, 0xFFFFFFFF])
def test_data_of_another_length(length: int) -> None:
    """Data that are not as long as they say are refused."""
    channels, _ = opened()
    with pytest.raises(DeliveryFailed):
        channels.data(data(0, length, b"abc"))


@pytest_twisted.ensureDeferred
async def test_channels_that_are_not() -> None:
    """A message about a channel that is not, or is no more, is nonsense."""
    channels, channel = opened()
    with pytest.raises(PARSE_ERRORS):
        channels.data(data(1, 1, b"x"))
    channels.packetReceived(CLOSE, words(0))
    assert await channel.closed is None
    with pytest.raises(PARSE_ERRORS):
        channels.packetReceived(CLOSE, words(0))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([80, 81, 82, 90, 91, 92, 93, 95, 96, 97, 98, 99, 100, 101, 255]),
            st.one_of(st.binary(max_size=40), st.binary(max_size=30).map(lambda b: words(0) + b)),
        ),
        max_size=8,
    )
)
def test_nonsense_about_channels(messages: list[tuple[int, bytes]]) -> None:
    """Whatever a server says, it is understood, or an error of the protocol: no other."""
    channels, channel = opened()
    channel.receive(lambda _: None)
    for kind, payload in messages:
        try:
            channels.packetReceived(kind, payload)
        except (DeliveryFailed, *PARSE_ERRORS):
            break
    channels.serviceStopped()
    channel.closed.addErrback(lambda _: None)
