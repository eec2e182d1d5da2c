"""Our own SSH connection: programs, streams, limits and failures."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.protocol import Protocol, ServerFactory

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import Channel, Connection, SystemUnavailable
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ssh.channel import WINDOW
from shiftergw.ssh.connection import connect, reach
from shiftergw.ssh.outgoing_data import HIGH_WATER
from tests.delivery.conch_client import account, finish, open_connection, refusal, run
from tests.installed_reactor import reactor
from tests.parts import free_port
from tests.patience import patient, stretch
from tests.sshd import Sshd, make_key


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Yield a server."""
    with Sshd() as server:
        yield server


class Source:
    """A producer that writes pieces until it is paused, and records what happens to it."""

    def __init__(self, channel: Channel, piece: bytes, count: int) -> None:
        self.channel, self.piece, self.remaining = channel, piece, count
        self.is_paused = False
        self.pauses = 0
        self.is_stopped = False

    def resumeProducing(self) -> None:
        """Write until paused."""
        self.is_paused = False
        while self.remaining and not self.is_paused:
            self.remaining -= 1
            self.channel.write(self.piece)
        if not self.remaining:
            self.channel.unregisterProducer()
            self.channel.end_input()

    def pauseProducing(self) -> None:
        """Record the pause."""
        self.is_paused = True
        self.pauses += 1

    def stopProducing(self) -> None:
        """Record the stop."""
        self.is_stopped = True


@pytest_twisted.ensureDeferred
async def test_it_implements_the_protocols(sshd: Sshd, threads: Threads) -> None:
    """The type checker sees a `Connection` that opens a `Channel`."""
    async with open_connection(sshd, threads) as connection:
        port: Connection = connection
        channel: Channel = await port.open_command(["true"])
        assert await channel.closed == 0


@pytest_twisted.ensureDeferred
async def test_command(sshd: Sshd, threads: Threads) -> None:
    """A command gets its input; output, standard error and exit status are returned."""
    async with open_connection(sshd, threads) as connection:
        argv = ["sh", "-c", "cat; echo one >&2; echo '\x07two' >&2; exit 7"]
        channel = await connection.open_command(argv)
        assert await finish(channel, b"input") == (7, b"input")
        assert channel.stderr == "one; \\x07two"
        assert (await run(connection, "sh", "-c", "kill -9 $$"))[0] is None


@pytest.mark.parametrize(
    "word", ["$(touch x)", "a b", "'", '"', "`id`", "\\", "a\nb", "; exit 3", "ä", "-n", "*"]
)
@pytest_twisted.ensureDeferred
async def test_words_stay_words(sshd: Sshd, threads: Threads, word: str) -> None:
    """The remote shell does not interpret characters of an argument."""
    async with open_connection(sshd, threads) as connection:
        assert await run(connection, "printf", "%s", word) == (0, word.encode())


@pytest_twisted.ensureDeferred
async def test_subsystem(sshd: Sshd, threads: Threads) -> None:
    """A subsystem replies; an unknown subsystem raises an error with an explanation."""
    async with open_connection(sshd, threads) as connection:
        channel = await connection.open_subsystem("sftp")
        reply: Deferred[bytes] = Deferred()
        channel.receive(reply.callback)
        channel.write(b"\0\0\0\x05\x01\0\0\0\x03")
        assert (await reply)[4:9] == b"\x02\0\0\0\x03"
        channel.lose()
        await channel.closed
        with pytest.raises(DeliveryFailed, match="does not start"):
            await connection.open_subsystem("nothing")
        assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_output_waits_for_a_reader(sshd: Sshd, threads: Threads) -> None:
    """Output is buffered up to the window until it is read, and nothing is lost."""
    size = 3 * WINDOW
    async with open_connection(sshd, threads) as connection:
        channel = await connection.open_command(["head", "-c", str(size), "/dev/zero"])
        await pause(0.5, reactor)
        unread_bytes = sum(map(len, channel._unread))
        assert WINDOW - 32768 <= unread_bytes <= WINDOW
        assert not channel.closed.called
        assert await finish(channel) == (0, bytes(size))


@pytest_twisted.ensureDeferred
async def test_large_stream(sshd: Sshd, threads: Threads) -> None:
    """A large stream arrives complete, and its producer is paused to limit memory."""
    piece = os.urandom(224 << 10)
    async with open_connection(sshd, threads) as connection:
        channel = await connection.open_command(["sha256sum"])
        output: list[bytes] = []
        channel.receive(output.append)
        source = Source(channel, piece, 500)
        channel.registerProducer(source, streaming=True)
        source.resumeProducing()
        assert channel._outgoing.size <= HIGH_WATER + len(piece)
        assert await channel.closed == 0
    digest = hashlib.sha256(piece * 500).hexdigest()
    assert b"".join(output).decode().split()[0] == digest
    assert source.pauses > 10


@pytest_twisted.ensureDeferred
async def test_pull_producer(sshd: Sshd, threads: Threads) -> None:
    """A pull producer is asked until it has no more data."""
    async with open_connection(sshd, threads) as connection:
        channel = await connection.open_command(["wc", "-c"])
        output: list[bytes] = []
        channel.receive(output.append)

        class PullSource(Source):
            def resumeProducing(self) -> None:
                self.is_paused = False
                self.remaining -= 1
                self.channel.write(self.piece)
                if not self.remaining:
                    self.channel.unregisterProducer()
                    self.channel.end_input()

        channel.registerProducer(PullSource(channel, bytes(300_000), 20), streaming=False)
        assert await channel.closed == 0
    assert int(b"".join(output)) == 6_000_000


@pytest_twisted.ensureDeferred
async def test_small_buffers(sshd: Sshd, threads: Threads) -> None:
    """Small, empty and other buffers are sent as one stream."""
    pieces = [bytes([n % 256]) * (n % 7) for n in range(20_000)]
    async with open_connection(sshd, threads) as connection:
        channel = await connection.open_command(["cat"])
        channel.writeSequence([memoryview(piece) for piece in pieces])
        channel.write(bytearray(b"end"))
        assert await finish(channel) == (0, b"".join(pieces) + b"end")


@pytest_twisted.ensureDeferred
async def test_channels_side_by_side(sshd: Sshd, threads: Threads) -> None:
    """Several programs run on one connection, each with its own stream both ways."""
    contents = [os.urandom(2_000_000 + number) for number in range(8)]
    async with open_connection(sshd, threads) as connection:
        runs = [
            Deferred.fromCoroutine(run(connection, "cat", stdin=content)) for content in contents
        ]
        assert await gatherResults(runs) == [(0, content) for content in contents]


@pytest_twisted.ensureDeferred
async def test_too_many_channels(threads: Threads) -> None:
    """A server that opens no more sessions is an error of that channel only."""
    with Sshd("MaxSessions 1") as server:
        async with open_connection(server, threads) as connection:
            first = await connection.open_command(["cat"])
            with pytest.raises(DeliveryFailed, match="opens no session"):
                await connection.open_command(["true"])
            assert await finish(first, b"still here") == (0, b"still here")


@pytest_twisted.ensureDeferred
async def test_lost_channel(sshd: Sshd, threads: Threads) -> None:
    """A lost channel ends, ignores writes, and leaves the connection usable."""
    async with open_connection(sshd, threads) as connection:
        channel = await connection.open_command(["sleep", "1000"])
        channel.write(bytes(10_000_000))
        channel.lose()
        channel.lose()
        channel.write(b"more")
        await channel.closed
        assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_refused_key(sshd: Sshd, threads: Threads) -> None:
    """A key that the system does not accept raises an error with its fingerprint."""
    key = make_key(sshd.root / "unknown")
    error = await refusal(sshd, threads, key=key)
    assert "does not accept the gateway's key" in error.what
    assert "SHA256:" in error.detail
    assert f"{sshd.user}@127.0.0.1:{sshd.port}" in error.detail
    assert "127.0.0.1" not in str(error)


@pytest_twisted.ensureDeferred
async def test_users_who_may_not_log_in(threads: Threads) -> None:
    """The error for an unknown or forbidden user contains the server's banner."""
    with Sshd("DenyUsers nobody", "Banner /etc/hostname") as server:
        banner = server.root / "banner"
        banner.write_text("No\x1b[31mway\n" + "x" * 5000)
        with Sshd("AllowUsers nobody-at-all", f"Banner {banner}") as server_with_banner:
            error = await refusal(server_with_banner, threads)
        assert "does not accept" in error.what
        assert "No\\x1b[31mway" in error.detail
        assert len(error.detail) < 1000
        error = await refusal(server, threads, user="no-such-user")
        assert "does not accept" in error.what


@pytest_twisted.ensureDeferred
async def test_server_without_keys(threads: Threads) -> None:
    """A server that accepts only passwords has an error of its own."""
    with Sshd("PubkeyAuthentication no", "PasswordAuthentication yes") as server:
        error = await refusal(server, threads)
    assert "with a key" in error.what
    assert "password" in error.detail


@pytest_twisted.ensureDeferred
async def test_server_that_asks_for_more(threads: Threads) -> None:
    """A server that requires a second factor has an error of its own."""
    settings = "PasswordAuthentication yes", "AuthenticationMethods publickey,password"
    with Sshd(*settings) as server:
        assert "asks for more" in (await refusal(server, threads)).what


@pytest_twisted.ensureDeferred
async def test_known_hosts_of_the_user(
    sshd: Sshd, threads: Threads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without configured known hosts, the file of the gateway's user is read."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "is not known" in (await refusal(sshd, threads, known_hosts=None)).what
    list_of_user = tmp_path / ".ssh" / "known_hosts"
    list_of_user.parent.mkdir()
    list_of_user.write_text(sshd.known_hosts.read_text())
    async with open_connection(sshd, threads, known_hosts=None) as connection:
        assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_unreachable(sshd: Sshd, threads: Threads) -> None:
    """A closed port and a host name without an address have errors of their own."""
    assert "cannot be reached" in (await refusal(sshd, threads, port=free_port())).what
    unknown = await refusal(sshd, threads, host="no-such-host.invalid")
    assert (type(unknown), "has no address" in unknown.what) == (SystemUnavailable, True)
    assert "`host` names no-such-host.invalid" in unknown.remedy
    assert "later" not in unknown.remedy


@pytest_twisted.ensureDeferred
async def test_server_that_closes_at_once(sshd: Sshd, threads: Threads) -> None:
    """A server that closes at once has an error of its own."""

    class HangsUp(ServerFactory):
        def buildProtocol(self, addr: Any) -> None:
            return None

    listening = reactor.listenTCP(0, HangsUp(), interface="127.0.0.1")
    try:
        error = await refusal(sshd, threads, port=listening.getHost().port)
    finally:
        await listening.stopListening()
    assert "before it said a word" in error.what


@pytest_twisted.ensureDeferred
async def test_broken_connection(threads: Threads) -> None:
    """When the connection breaks, all channels fail at once, and no new one opens."""
    with Sshd() as server:
        connection = await connect(account(server), reactor, threads)
        channels = [await connection.open_command(["sleep", "100"]) for _ in range(3)]
        source = Source(channels[0], bytes(1 << 20), 100)
        channels[0].registerProducer(source, streaming=True)
        source.resumeProducing()
        server.end_connections()
        for channel in channels:
            with pytest.raises(DeliveryFailed):
                await channel.closed
        assert source.is_stopped
        assert not connection.usable
        with pytest.raises(DeliveryFailed):
            await connection.open_command(["true"])
        await connection.close()


@pytest_twisted.ensureDeferred
async def test_frozen_server(threads: Threads) -> None:
    """A frozen server is detected within the idle limit, also without requests."""
    with Sshd() as server:
        connection = await connect(account(server), reactor, threads, idle_seconds=1)
        channel = await connection.open_command(["sleep", "1000"])
        began = time.monotonic()
        with server.suspension(), pytest.raises(DeliveryFailed, match="does not answer"):
            await channel.closed
        assert time.monotonic() - began < patient(2.5)
        await connection.close()


@pytest_twisted.ensureDeferred
async def test_frozen_server_in_mid_stream(threads: Threads) -> None:
    """A frozen server is detected during an upload, when no more data can be sent."""
    with Sshd() as server:
        connection = await connect(account(server), reactor, threads, idle_seconds=1)
        channel = await connection.open_command(["sh", "-c", "cat >/dev/null"])
        source = Source(channel, bytes(1 << 20), 1 << 30)
        channel.registerProducer(source, streaming=True)
        source.resumeProducing()
        await pause(0.2, reactor)
        with server.suspension(), pytest.raises(DeliveryFailed, match="does not answer"):
            await channel.closed
        assert source.is_stopped
        await connection.close()


@pytest_twisted.ensureDeferred
async def test_quiet_server(threads: Threads) -> None:
    """A server that answers keep-alives stays connected without other traffic."""
    with Sshd() as server:
        async with open_connection(server, threads, idle_seconds=stretch(0.4)) as connection:
            await pause(stretch(2), reactor)
            assert connection.usable
            assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_server_keeps_alive_too(threads: Threads) -> None:
    """The server's own keep-alives are answered."""
    interval = math.ceil(stretch(0.5))
    with Sshd(f"ClientAliveInterval {interval}", "ClientAliveCountMax 1") as server:
        async with open_connection(server, threads, idle_seconds=100) as connection:
            await pause(2.5 * interval, reactor)
            assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_frozen_during_the_login(threads: Threads) -> None:
    """A server that freezes before the login fails within the connect limit."""
    with Sshd() as server, server.suspension():
        began = time.monotonic()
        with pytest.raises(DeliveryFailed, match="does not answer"):
            await connect(account(server), reactor, threads, connect_seconds=0.5)
        assert time.monotonic() - began < patient(2)


@pytest_twisted.ensureDeferred
async def test_cancelled(threads: Threads) -> None:
    """Connecting and opening can be cancelled, and leave nothing behind."""
    with Sshd() as server:
        connection = await connect(account(server), reactor, threads)
        with server.suspension():
            connecting = Deferred.fromCoroutine(connect(account(server), reactor, threads))
            opening = Deferred.fromCoroutine(connection.open_command(["true"]))
            await pause(0.3, reactor)
            for waiting in connecting, opening:
                waiting.cancel()
                with pytest.raises(CancelledError):
                    await waiting
        assert (await run(connection, "true"))[0] == 0
        await connection.close()


@pytest.mark.parametrize("turns", range(6))
@pytest_twisted.ensureDeferred
async def test_cancelled_at_once(sshd: Sshd, turns: int) -> None:
    """Cancelling during look-up or connect raises `CancelledError`, not `SystemUnavailable`."""
    question: Any = Protocol()
    reaching = Deferred.fromCoroutine(reach("127.0.0.1", sshd.port, question, reactor))
    for _ in range(turns):
        await pause(0, reactor)
    if not reaching.called:
        reaching.cancel()
        with pytest.raises(CancelledError):
            await reaching
    else:
        question.transport.abortConnection()
    await pause(0, reactor)  # the end of a connection is reported in the next turn


@pytest_twisted.ensureDeferred
async def test_close(threads: Threads) -> None:
    """Closing fails the channels, may be repeated, and sends a disconnect."""
    with Sshd() as server:
        connection = await connect(account(server), reactor, threads)
        channel = await connection.open_command(["sleep", "1000"])
        await connection.close()
        await connection.close()
        with pytest.raises(DeliveryFailed, match="closed the connection"):
            await channel.closed
        while "Received disconnect" not in server.log.read_text():
            await pause(0.05, reactor)
