"""One connection for all who need it, for as long as they do."""

from __future__ import annotations

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
from shiftergw.plumbing.channel import Away, Connection
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.timing import pause
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused
from shiftergw.ssh.openssh import OpenSsh
from tests.delivery.far import IDLE_SECONDS, NOBODY, connection, reactor, without_ssh

KEPT_SECONDS = 0.2


class Connections:
    """Makes connections and counts them."""

    def __init__(self, directory: Path, before: str = "") -> None:
        """Make them without an SSH server."""
        self._env = without_ssh(directory, before=before)
        self.made: list[OpenSsh] = []
        self.hosts = Hosts({"far": self.connect}, reactor)

    async def connect(self) -> OpenSsh:
        """Make one."""
        self.made.append(connection(NOBODY, self._env))
        return self.made[-1]

    def alive(self) -> int:
        """Return how many have a child process."""
        return sum(bool(one._children) for one in self.made)


@pytest_twisted.ensureDeferred
async def test_shared_kept_and_closed(tmp_path: Path) -> None:
    """Those who come at the same time share a connection; once it is not needed it goes."""
    connections = Connections(tmp_path / "bin")
    link = SharedSession(connections.hosts, reactor, IDLE_SECONDS, KEPT_SECONDS)

    async def use() -> None:
        async with link.use() as (sftp, _):
            await sftp.lstat(b"/")

    await gather_or_cancel(use() for _ in range(5))
    await use()
    assert len(connections.made) == connections.alive() == 1
    for _ in range(100):
        await pause(KEPT_SECONDS, reactor)
        if not connections.alive():
            break
    assert connections.alive() == 0
    await use()
    assert len(connections.made) == 2
    await link.close()
    assert connections.alive() == 0


@pytest_twisted.ensureDeferred
async def test_not_closed_while_used(tmp_path: Path) -> None:
    """A connection stays as long as somebody uses it, whoever else has left."""
    connections = Connections(tmp_path / "bin")
    link = SharedSession(connections.hosts, reactor, IDLE_SECONDS, KEPT_SECONDS)
    async with link.use() as (sftp, _):
        async with link.use():
            pass
        await pause(2 * KEPT_SECONDS, reactor)
        assert sftp.usable
    await link.close()


@pytest_twisted.ensureDeferred
async def test_broken_while_used(tmp_path: Path) -> None:
    """An error after which the session is over says that it broke, and where; others do not."""
    connections = Connections(tmp_path / "bin")
    link = SharedSession(connections.hosts, reactor, IDLE_SECONDS)

    async def use(*, close: bool) -> None:
        async with link.use() as (sftp, _):
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
    await link.close()


@pytest_twisted.ensureDeferred
async def test_host_that_refuses_to_begin(tmp_path: Path) -> None:
    """A host that says no before its files can be used is one that cannot be used."""

    async def refuses(connection: Connection, clock: object, seconds: float) -> RemoteFiles:
        raise SftpRefused(packets.FAILURE, "a program was killed")

    connections = Connections(tmp_path / "bin")
    link = SharedSession(connections.hosts, reactor, IDLE_SECONDS, open_files=refuses)
    with pytest.raises(DeliveryFailed) as caught:
        async with link.use():
            pass
    assert "a program was killed" in caught.value.detail
    assert connections.alive() == 0
    await link.close()


@pytest_twisted.ensureDeferred
async def test_closed_while_somebody_pauses(tmp_path: Path) -> None:
    """A pause ends when the link is closed, and none begins afterwards."""
    link = SharedSession(Connections(tmp_path / "bin").hosts, reactor, IDLE_SECONDS)
    waiting = Deferred.fromCoroutine(link.pause(1000))
    await link.pause(0)
    await link.close()
    for one in (waiting, Deferred.fromCoroutine(link.pause(0))):
        with pytest.raises(DeliveryFailed, match="stopping"):
            await one


@pytest_twisted.ensureDeferred
async def test_closed_while_opening(tmp_path: Path) -> None:
    """Whoever waits for a system that does not answer is told when the gateway stops."""
    connections = Connections(tmp_path / "bin", before="exec sleep 1000")
    link = SharedSession(connections.hosts, reactor, IDLE_SECONDS)

    async def use() -> None:
        async with link.use():
            raise AssertionError

    waiting = [Deferred.fromCoroutine(use()) for _ in range(2)]
    await pause(0.1, reactor)
    await link.close()
    for one in waiting:
        with pytest.raises(DeliveryFailed, match="stopping"):
            await one
    assert len(connections.made) == 1
    assert connections.alive() == 0


@pytest_twisted.ensureDeferred
async def test_cancelled_while_opening(tmp_path: Path) -> None:
    """One who does not wait any longer leaves no process behind, and the next one begins anew."""
    connections = Connections(tmp_path / "bin", before=f"test -e {tmp_path}/up || exec sleep 1000")
    link = SharedSession(connections.hosts, reactor, IDLE_SECONDS)

    async def use() -> None:
        async with link.use() as (sftp, _):
            await sftp.lstat(b"/")

    first = Deferred.fromCoroutine(use())
    await pause(0.1, reactor)
    first.cancel()
    with pytest.raises(CancelledError):
        await first
    (tmp_path / "up").write_bytes(b"")
    await use()
    await link.close()
    assert connections.alive() == 0


@pytest_twisted.ensureDeferred
async def test_a_failure_is_shared_by_those_who_wait(tmp_path: Path) -> None:
    """A sweep and a pull that come together do not try a silent host one after the other."""
    connections = Connections(tmp_path / "bin")
    silent: list[Deferred[None]] = []

    async def connect() -> Connection:
        silent.append(Deferred())
        await silent[-1]
        return await connections.connect()

    link = SharedSession(Hosts({"far": connect}, reactor), reactor, IDLE_SECONDS, KEPT_SECONDS)
    errors: list[DeliveryFailed] = []

    async def use() -> None:
        try:
            async with link.use() as (sftp, _):
                await sftp.lstat(b"/")
        except Away as away:
            errors.append(away)

    together = [Deferred.fromCoroutine(use()) for _ in range(3)]
    silent[0].errback(Away("The system does not answer."))
    for using in together:
        await using
    assert [error.what for error in errors] == ["The system does not answer."] * 3
    assert len(silent) == 1
    later = Deferred.fromCoroutine(use())
    silent[1].callback(None)
    await later
    assert len(errors) == 3
    await link.close()


def test_a_closed_session_is_never_opened_again() -> None:
    """Every state can be closed, and no step leads out of the state CLOSED."""
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
    assert len(connections.made) == 2
    async with session.use() as (files, _):
        await files.lstat(b"/")
        await pause(2 * KEPT_SECONDS, reactor)
        assert files.usable
    assert len(connections.made) == 2
    await session.close()
    assert connections.alive() == 0
