"""A native SSH connection: programs, streams, limits, and how it fails."""

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
from shiftergw.plumbing.channel import Away, Channel, Connection
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ssh.channel import HIGH_WATER, WINDOW
from shiftergw.ssh.connection import connect, reach
from tests.delivery.native import account, finish, open_connection, reactor, refusal, run
from tests.parts import free_port
from tests.patience import patient, scaled
from tests.sshd import Sshd, make_key


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Give a server."""
    with Sshd() as server:
        yield server


class Source:
    """A producer that writes pieces while it may; what it has done is there to see."""

    def __init__(self, channel: Channel, piece: bytes, count: int) -> None:
        self.channel, self.piece, self.left = channel, piece, count
        self.paused = False
        self.pauses = 0
        self.stopped = False

    def resumeProducing(self) -> None:
        """Write until told to pause."""
        self.paused = False
        while self.left and not self.paused:
            self.left -= 1
            self.channel.write(self.piece)
        if not self.left:
            self.channel.unregisterProducer()
            self.channel.end_input()

    def pauseProducing(self) -> None:
        """Remember it."""
        self.paused = True
        self.pauses += 1

    def stopProducing(self) -> None:
        """Remember it."""
        self.stopped = True


@pytest_twisted.ensureDeferred
async def test_it_keeps_the_protocols(sshd: Sshd, threads: Threads) -> None:
    """The type checker sees a `Connection` that opens a `Channel`."""
    async with open_connection(sshd, threads) as connection:
        port: Connection = connection
        channel: Channel = await port.open_command(["true"])
        assert await channel.closed == 0


@pytest_twisted.ensureDeferred
async def test_command(sshd: Sshd, threads: Threads) -> None:
    """A command gets its input; its output, its errors and its exit status come back."""
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
    """Nothing in an argument is more than an argument to the far side's shell."""
    async with open_connection(sshd, threads) as connection:
        assert await run(connection, "printf", "%s", word) == (0, word.encode())


@pytest_twisted.ensureDeferred
async def test_subsystem(sshd: Sshd, threads: Threads) -> None:
    """A subsystem answers; one that the server does not have is refused in words."""
    async with open_connection(sshd, threads) as connection:
        channel = await connection.open_subsystem("sftp")
        answered: Deferred[bytes] = Deferred()
        channel.receive(answered.callback)
        channel.write(b"\0\0\0\x05\x01\0\0\0\x03")
        assert (await answered)[4:9] == b"\x02\0\0\0\x03"
        channel.lose()
        await channel.closed
        with pytest.raises(DeliveryFailed, match="does not start"):
            await connection.open_subsystem("nothing")
        assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_output_waits_for_a_reader(sshd: Sshd, threads: Threads) -> None:
    """What a program says before anybody reads is kept, up to the window, and nothing is lost."""
    size = 3 * WINDOW
    async with open_connection(sshd, threads) as connection:
        channel = await connection.open_command(["head", "-c", str(size), "/dev/zero"])
        await pause(0.5, reactor)
        kept = sum(map(len, channel._unread))
        assert WINDOW - 32768 <= kept <= WINDOW
        assert not channel.closed.called
        assert await finish(channel) == (0, bytes(size))


@pytest_twisted.ensureDeferred
async def test_large_stream(sshd: Sshd, threads: Threads) -> None:
    """A large stream arrives whole; its producer is paused, so that little waits in memory."""
    piece = os.urandom(224 << 10)
    async with open_connection(sshd, threads) as connection:
        channel = await connection.open_command(["sha256sum"])
        said: list[bytes] = []
        channel.receive(said.append)
        source = Source(channel, piece, 500)
        channel.registerProducer(source, streaming=True)
        source.resumeProducing()
        assert channel._queued_bytes <= HIGH_WATER + len(piece)
        assert await channel.closed == 0
    digest = hashlib.sha256(piece * 500).hexdigest()
    assert b"".join(said).decode().split()[0] == digest
    assert source.pauses > 10


@pytest_twisted.ensureDeferred
async def test_pull_producer(sshd: Sshd, threads: Threads) -> None:
    """A producer that waits to be asked is asked until it has nothing more."""
    async with open_connection(sshd, threads) as connection:
        channel = await connection.open_command(["wc", "-c"])
        said: list[bytes] = []
        channel.receive(said.append)

        class Asked(Source):
            def resumeProducing(self) -> None:
                self.paused = False
                self.left -= 1
                self.channel.write(self.piece)
                if not self.left:
                    self.channel.unregisterProducer()
                    self.channel.end_input()

        channel.registerProducer(Asked(channel, bytes(300_000), 20), streaming=False)
        assert await channel.closed == 0
    assert int(b"".join(said)) == 6_000_000


@pytest_twisted.ensureDeferred
async def test_small_buffers(sshd: Sshd, threads: Threads) -> None:
    """Many small buffers, empty ones and other views of memory are one stream."""
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
        runs = [Deferred.fromCoroutine(run(connection, "cat", stdin=each)) for each in contents]
        assert await gatherResults(runs) == [(0, each) for each in contents]


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
    """A channel that is given up ends; writing to it does nothing; the connection goes on."""
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
    """A key that the system does not know is an error of its own, with its fingerprint."""
    key = make_key(sshd.root / "unknown")
    error = await refusal(sshd, threads, key=key)
    assert "does not accept the gateway's key" in error.what
    assert "SHA256:" in error.detail
    assert f"{sshd.user}@127.0.0.1:{sshd.port}" in error.detail
    assert "127.0.0.1" not in str(error)


@pytest_twisted.ensureDeferred
async def test_user_that_may_not(threads: Threads) -> None:
    """Users that do not exist or may not log in are refused, with what the server says."""
    with Sshd("DenyUsers nobody", "Banner /etc/hostname") as server:
        banner = server.root / "banner"
        banner.write_text("No\x1b[31mway\n" + "x" * 5000)
        with Sshd("AllowUsers nobody-at-all", f"Banner {banner}") as other:
            error = await refusal(other, threads)
        assert "does not accept" in error.what
        assert "No\\x1b[31mway" in error.detail
        assert len(error.detail) < 1000
        error = await refusal(server, threads, user="no-such-user")
        assert "does not accept" in error.what


@pytest_twisted.ensureDeferred
async def test_server_without_keys(threads: Threads) -> None:
    """A server that takes passwords only is told from one that does not know the key."""
    with Sshd("PubkeyAuthentication no", "PasswordAuthentication yes") as server:
        error = await refusal(server, threads)
    assert "with a key" in error.what
    assert "password" in error.detail


@pytest_twisted.ensureDeferred
async def test_server_that_asks_for_more(threads: Threads) -> None:
    """A server that wants a second factor is told from one that refuses the key."""
    settings = "PasswordAuthentication yes", "AuthenticationMethods publickey,password"
    with Sshd(*settings) as server:
        assert "asks for more" in (await refusal(server, threads)).what


@pytest_twisted.ensureDeferred
async def test_known_hosts_of_the_user(
    sshd: Sshd, threads: Threads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a list of its own the gateway takes that of the user it runs as."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "is not known" in (await refusal(sshd, threads, known_hosts=None)).what
    list_of_user = tmp_path / ".ssh" / "known_hosts"
    list_of_user.parent.mkdir()
    list_of_user.write_text(sshd.known_hosts.read_text())
    async with open_connection(sshd, threads, known_hosts=None) as connection:
        assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_unreachable(sshd: Sshd, threads: Threads) -> None:
    """A port where nobody listens is an unreachable system; a name without address is wrong."""
    assert "cannot be reached" in (await refusal(sshd, threads, port=free_port())).what
    unknown = await refusal(sshd, threads, host="no-such-host.invalid")
    assert (type(unknown), "has no address" in unknown.what) == (Away, True)
    assert "`host` names no-such-host.invalid" in unknown.remedy
    assert "later" not in unknown.remedy


@pytest_twisted.ensureDeferred
async def test_server_that_closes_at_once(sshd: Sshd, threads: Threads) -> None:
    """A server that hangs up before a word is an error that says so."""

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
    """When the connection breaks, all its channels fail at once, and no more are opened."""
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
        assert source.stopped
        assert not connection.usable
        with pytest.raises(DeliveryFailed):
            await connection.open_command(["true"])
        await connection.close()


@pytest_twisted.ensureDeferred
async def test_frozen_server(threads: Threads) -> None:
    """A server that freezes is found out within the idle limit, while nothing is asked of it."""
    with Sshd() as server:
        connection = await connect(account(server), reactor, threads, idle_seconds=1)
        channel = await connection.open_command(["sleep", "1000"])
        began = time.monotonic()
        with server.suspended(), pytest.raises(DeliveryFailed, match="does not answer"):
            await channel.closed
        assert time.monotonic() - began < patient(2.5)
        await connection.close()


@pytest_twisted.ensureDeferred
async def test_frozen_server_in_mid_stream(threads: Threads) -> None:
    """So it is in the middle of an upload, when nothing more can be written."""
    with Sshd() as server:
        connection = await connect(account(server), reactor, threads, idle_seconds=1)
        channel = await connection.open_command(["sh", "-c", "cat >/dev/null"])
        source = Source(channel, bytes(1 << 20), 1 << 30)
        channel.registerProducer(source, streaming=True)
        source.resumeProducing()
        await pause(0.2, reactor)
        with server.suspended(), pytest.raises(DeliveryFailed, match="does not answer"):
            await channel.closed
        assert source.stopped
        await connection.close()


@pytest_twisted.ensureDeferred
async def test_quiet_server(threads: Threads) -> None:
    """A server that answers keep-alives is kept, however long nothing else is said."""
    with Sshd() as server:
        async with open_connection(server, threads, idle_seconds=scaled(0.4)) as connection:
            await pause(scaled(2), reactor)
            assert connection.usable
            assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_server_keeps_alive_too(threads: Threads) -> None:
    """The server's own keep-alives are answered."""
    interval = math.ceil(scaled(1))
    with Sshd(f"ClientAliveInterval {interval}", "ClientAliveCountMax 1") as server:
        async with open_connection(server, threads, idle_seconds=100) as connection:
            await pause(3 * interval, reactor)
            assert (await run(connection, "true"))[0] == 0


@pytest_twisted.ensureDeferred
async def test_frozen_during_the_login(threads: Threads) -> None:
    """A server that freezes before it is logged in to is given up within the connect limit."""
    with Sshd() as server, server.suspended():
        began = time.monotonic()
        with pytest.raises(DeliveryFailed, match="does not answer"):
            await connect(account(server), reactor, threads, connect_seconds=0.5)
        assert time.monotonic() - began < patient(2)


@pytest_twisted.ensureDeferred
async def test_cancelled(threads: Threads) -> None:
    """Connecting and opening can be cancelled, and leave nothing behind."""
    with Sshd() as server:
        connection = await connect(account(server), reactor, threads)
        with server.suspended():
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
    """A host that nobody waits for any more, while it is looked up or reached, is not one away."""
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
    await pause(0, reactor)  # the end of a connection is told in the next turn


@pytest_twisted.ensureDeferred
async def test_close(threads: Threads) -> None:
    """Closing ends channels with an error, can be repeated, and does not wait for a dead server."""
    with Sshd() as server:
        connection = await connect(account(server), reactor, threads)
        channel = await connection.open_command(["sleep", "1000"])
        await connection.close()
        await connection.close()
        with pytest.raises(DeliveryFailed, match="closed the connection"):
            await channel.closed
        while "Received disconnect" not in server.log.read_text():
            await pause(0.05, reactor)
