"""Text of an SSH server before its version and during the login is limited."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.conch.ssh.common import NS
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.task import LoopingCall

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.channels import Channels
from shiftergw.ssh.connection import SshAccount, connect
from shiftergw.ssh.greeting import LONGEST_LINE, MOST_BYTES, MOST_LINES, Greeting
from shiftergw.ssh.host_keys import host_keys
from shiftergw.ssh.login import MOST_BANNER_BYTES, SshLogin
from tests.installed_reactor import reactor
from tests.sshd import make_key

VERSION = b"SSH-2.0-Test"
SECONDS = 0.5


@given(
    lines=st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=5),
    rest=st.binary(max_size=20),
    length=st.integers(1, 30),
    newline=st.sampled_from([b"\n", b"\r\n"]),
)
def test_any_lines(lines: list[bytes], rest: bytes, length: int, newline: bytes) -> None:
    """The version is found after any lines, however the stream is split."""
    greeting = Greeting([b"2.0"])
    lines = [line for line in lines if not line.startswith(b"SSH-")]
    stream = b"".join(line + b"\n" for line in lines) + VERSION + newline + rest
    pieces = [stream[at : at + length] for at in range(0, len(stream), length)]
    for number, piece in enumerate(pieces, 1):
        result = greeting.feed(piece)
        if result is not None:
            version, after = result
            assert (version, after + b"".join(pieces[number:])) == (VERSION, rest)
            return
    raise AssertionError("no version")


def test_limits() -> None:
    """A further or longer line than OpenSSH's limits allow is refused."""
    greeting = Greeting([b"2.0"])
    assert greeting.feed(b"x\n" * MOST_LINES + b"x" * LONGEST_LINE) is None
    with pytest.raises(DeliveryFailed) as excinfo:
        greeting.feed(b"\n")
    assert "no version in the first lines" in excinfo.value.detail
    with pytest.raises(DeliveryFailed):
        Greeting([b"2.0"]).feed(b"x" * (LONGEST_LINE + 1))
    line = b"x" * LONGEST_LINE + b"\n"
    with pytest.raises(DeliveryFailed):
        Greeting([b"2.0"]).feed(line * (MOST_BYTES // LONGEST_LINE + 1))
    for version in (b"SSH-1.5-old", b"SSH-", VERSION + b"x" * 255):
        with pytest.raises(DeliveryFailed):
            Greeting([b"2.0"]).feed(version + b"\n")


class Endless(Protocol):
    """A server that sends greetings until the connection is closed."""

    pieces: Iterator[bytes]

    def connectionMade(self) -> None:
        """Start to send."""
        self._loop = LoopingCall(self._say)
        self._loop.start(0.001)

    def _say(self) -> None:
        assert self.transport is not None
        self.transport.write(next(self.pieces))

    def connectionLost(self, reason: Any = None) -> None:
        """Stop to send."""
        self._loop.stop()


@pytest.mark.parametrize("piece", [b"Welcome!\r\n" * 100, b"x" * 1000, b"x"])
@pytest_twisted.ensureDeferred
async def test_greeting_without_end(threads: Threads, tmp_path: Path, piece: bytes) -> None:
    """A server that never sends its version is refused by lines, bytes or time."""
    factory = ServerFactory()
    factory.protocol = type("Said", (Endless,), {"pieces": cycle([piece])})
    listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
    port = listening.getHost().port
    known_hosts = tmp_path / "known_hosts"
    known_hosts.touch()
    account = SshAccount("127.0.0.1", port, "u", make_key(tmp_path / "id"), None, known_hosts)
    seconds = SECONDS if piece == b"x" else 100
    expected = "does not answer" if piece == b"x" else "no version in the first lines"
    try:
        for attempt in (
            connect(account, reactor, threads, connect_seconds=seconds),
            host_keys("127.0.0.1", port, reactor, seconds=seconds),
        ):
            with pytest.raises(DeliveryFailed) as excinfo:
                await attempt
            assert expected in f"{excinfo.value.what} {excinfo.value.detail}"
    finally:
        await listening.stopListening()


@pytest.mark.parametrize("banner", [b"", b"x" * 30_000])
def test_banners_without_end(banner: bytes) -> None:
    """Banners during the login are limited."""
    login = SshLogin("u", (), Channels())

    def greet() -> None:
        for _ in range(1 + MOST_BANNER_BYTES // (len(banner) or 1)):
            login.packetReceived(53, NS(banner) + NS(b""))

    with pytest.raises(DeliveryFailed) as excinfo:
        greet()
    assert "banners without end" in excinfo.value.detail
