"""One session is shared by all callers, kept while it is used, and replaced when it broke."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.delivery.files import RemoteFiles
from shiftergw.delivery.hosts import Hosts
from shiftergw.delivery.shared_session import (
    STEPS,
    SessionBroken,
    SessionState,
    SharedSession,
)
from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import Connection, SystemUnavailable
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.timing import pause
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused
from shiftergw.ssh.openssh import OpenSsh
from tests.delivery.far import IDLE_SECONDS, UNUSED_ACCOUNT, connection, without_ssh
from tests.installed_reactor import reactor

KEPT_SECONDS = 0.2


class Connections:
    """Opens connections and counts them."""

    def __init__(self, directory: Path, before: str = "") -> None:
        """Connect without an SSH server."""
        self._env = without_ssh(directory, before=before)
        self.openings: list[OpenSsh] = []
        self.hosts = Hosts({"far": self.connect}, reactor)

    async def connect(self) -> OpenSsh:
        """Open a connection."""
        self.openings.append(connection(UNUSED_ACCOUNT, self._env))
        return self.openings[-1]

    def alive(self) -> int:
        """Return how many connections have a child process."""
        return sum(bool(connection._children) for connection in self.openings)


@pytest_twisted.ensureDeferred
async def test_shared_kept_and_closed(tmp_path: Path) -> None:
    """Concurrent callers share a connection; it is closed when it has been idle for a while."""
    connections = Connections(tmp_path / "bin")
    session = SharedSession(connections.hosts, reactor, IDLE_SECONDS, KEPT_SECONDS)

    async def use() -> None:
        async with session.use() as (sftp, _):
            await sftp.lstat(b"/")

    await gather_or_cancel(use() for _ in range(5))
    await use()
    assert len(connections.openings) == connections.alive() == 1
    for _ in range(100):
        await pause(KEPT_SECONDS, reactor)
        if not connections.alive():
            break
    assert connections.alive() == 0
    await use()
    assert len(connections.openings) == 2
    await session.close()
    assert connections.alive() == 0


@pytest_twisted.ensureDeferred
async def test_not_closed_while_used(tmp_path: Path) -> None:
    """A connection stays open as long as one caller uses it."""
    connections = Connections(tmp_path / "bin")
    session = SharedSession(connections.hosts, reactor, IDLE_SECONDS, KEPT_SECONDS)
    async with session.use() as (sftp, _):
        async with session.use():
            pass
        await pause(2 * KEPT_SECONDS, reactor)
        assert sftp.usable
    await session.close()


@pytest_twisted.ensureDeferred
async def test_broken_while_used(tmp_path: Path) -> None:
    """An error that ends the session raises `SessionBroken` with the host; other errors do not."""
    connections = Connections(tmp_path / "bin")
    session = SharedSession(connections.hosts, reactor, IDLE_SECONDS)

    async def use(*, close: bool) -> None:
        async with session.use() as (sftp, _):
            await sftp.lstat(b"/")
            if close:
                sftp.close()
            raise DeliveryFailed("What went wrong.", remedy="Mend it.", detail="this")

    with pytest.raises(DeliveryFailed) as caught:
        await use(close=False)
    assert not isinstance(caught.value, SessionBroken)
    with pytest.raises(SessionBroken) as broke:
        await use(close=True)
    assert (str(broke.value), broke.value.detail) == ("What went wrong. Mend it.", "far: this")
    assert broke.value.host == "far"
    await session.close()


@pytest_twisted.ensureDeferred
async def test_host_that_refuses_to_begin(tmp_path: Path) -> None:
    """A host that refuses to open a session counts as unusable."""

    async def refuses(connection: Connection, clock: object, seconds: float) -> RemoteFiles:
        raise SftpRefused(packets.FAILURE, "a program was killed")

    connections = Connections(tmp_path / "bin")
    session = SharedSession(connections.hosts, reactor, IDLE_SECONDS, open_files=refuses)
    with pytest.raises(DeliveryFailed) as caught:
        async with session.use():
            pass
    assert "a program was killed" in caught.value.detail
    assert connections.alive() == 0
    await session.close()


@pytest_twisted.ensureDeferred
async def test_closed_during_a_pause(tmp_path: Path) -> None:
    """A pause ends when the session is closed, and no further pause begins."""
    session = SharedSession(Connections(tmp_path / "bin").hosts, reactor, IDLE_SECONDS)
    waiting = Deferred.fromCoroutine(session.pause(1000))
    await session.pause(0)
    await session.close()
    for waiter in (waiting, Deferred.fromCoroutine(session.pause(0))):
        with pytest.raises(DeliveryFailed, match="stopping"):
            await waiter


@pytest_twisted.ensureDeferred
async def test_closed_while_opening(tmp_path: Path) -> None:
    """Callers that wait for a silent system get an error when the gateway stops."""
    connections = Connections(tmp_path / "bin", before="exec sleep 1000")
    session = SharedSession(connections.hosts, reactor, IDLE_SECONDS)

    async def use() -> None:
        async with session.use():
            raise AssertionError

    waiting = [Deferred.fromCoroutine(use()) for _ in range(2)]
    await pause(0.1, reactor)
    await session.close()
    for waiter in waiting:
        with pytest.raises(DeliveryFailed, match="stopping"):
            await waiter
    assert len(connections.openings) == 1
    assert connections.alive() == 0


@pytest_twisted.ensureDeferred
async def test_opened_although_closed(tmp_path: Path) -> None:
    """A session that opens after the gateway began to stop is closed; its caller gets the reason.

    The cancellation of a host that is over its time limit leads to the next host.
    """
    connections = Connections(tmp_path / "bin")

    async def connect() -> Connection:
        with suppress(CancelledError):
            await pause(1000, reactor)
        return await connections.connect()

    session = SharedSession(Hosts({"far": connect}, reactor), reactor, IDLE_SECONDS)

    async def use() -> None:
        async with session.use():
            raise AssertionError

    waiting = Deferred.fromCoroutine(use())
    await session.close()
    with pytest.raises(DeliveryFailed, match="stopping"):
        await waiting
    await session.close()
    assert len(connections.openings) == 1
    assert connections.alive() == 0


@pytest_twisted.ensureDeferred
async def test_cancelled_while_opening(tmp_path: Path) -> None:
    """A cancelled caller leaves no process behind, and the next caller opens a new session."""
    connections = Connections(tmp_path / "bin", before=f"test -e {tmp_path}/up || exec sleep 1000")
    session = SharedSession(connections.hosts, reactor, IDLE_SECONDS)

    async def use() -> None:
        async with session.use() as (sftp, _):
            await sftp.lstat(b"/")

    first = Deferred.fromCoroutine(use())
    await pause(0.1, reactor)
    first.cancel()
    with pytest.raises(CancelledError):
        await first
    (tmp_path / "up").write_bytes(b"")
    await use()
    await session.close()
    assert connections.alive() == 0


@pytest_twisted.ensureDeferred
async def test_waiting_callers_share_a_failure(tmp_path: Path) -> None:
    """A sweep and a pull at the same time do not wait for a silent host one after the other."""
    connections = Connections(tmp_path / "bin")
    silent: list[Deferred[None]] = []

    async def connect() -> Connection:
        silent.append(Deferred())
        await silent[-1]
        return await connections.connect()

    session = SharedSession(Hosts({"far": connect}, reactor), reactor, IDLE_SECONDS, KEPT_SECONDS)
    errors: list[DeliveryFailed] = []

    async def use() -> None:
        try:
            async with session.use() as (sftp, _):
                await sftp.lstat(b"/")
        except SystemUnavailable as error:
            errors.append(error)

    concurrent_uses = [Deferred.fromCoroutine(use()) for _ in range(3)]
    silent[0].errback(SystemUnavailable("The system does not answer."))
    for using in concurrent_uses:
        await using
    assert [error.what for error in errors] == ["The system does not answer."] * 3
    assert len(silent) == 1
    later_use = Deferred.fromCoroutine(use())
    silent[1].callback(None)
    await later_use
    assert len(errors) == 3
    await session.close()


def test_a_closed_session_is_never_opened_again() -> None:
    """Every state can be followed by SHUTDOWN, which no step leaves."""
    assert set(STEPS) == set(SessionState)
    assert all(SessionState.SHUTDOWN in steps for steps in STEPS.values())
    assert STEPS[SessionState.SHUTDOWN] == {SessionState.SHUTDOWN}


@pytest_twisted.ensureDeferred
async def test_a_broken_session_is_replaced_while_it_is_used(tmp_path: Path) -> None:
    """The next caller gets a new session, and it stays open after the users of the old one left."""
    connections = Connections(tmp_path / "bin")
    session = SharedSession(connections.hosts, reactor, IDLE_SECONDS, KEPT_SECONDS)
    async with session.use() as (old_files, _):
        old_files.close()
        async with session.use() as (files, _):
            await files.lstat(b"/")
    assert len(connections.openings) == 2
    async with session.use() as (files, _):
        await files.lstat(b"/")
        await pause(2 * KEPT_SECONDS, reactor)
        assert files.usable
    assert len(connections.openings) == 2
    await session.close()
    assert connections.alive() == 0
