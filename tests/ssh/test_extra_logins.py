"""Deliveries to an SSH server that limits the sessions of one login."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.delivery import remote_program
from shiftergw.delivery.proof import NoDigest, remote_sha256
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.delivery.shell import OutputProgram
from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import Channel, Connection, HostFull, SystemUnavailable, no_answer
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within
from shiftergw.ports import Verification
from shiftergw.ssh.connection import CONNECT_SECONDS
from shiftergw.ssh.extra_logins import MOST_EXTRA, ExtraLogins
from tests.delivery.contract import IMAGE, ignore, names
from tests.delivery.ssh_systems import System
from tests.delivery.test_login_shells import LARGE, SHA256, install_over_part, large
from tests.sftp.recorded_wire import Wire, error_of
from tests.sshd import Sshd

__all__ = ["large"]

SECOND_IMAGE = f"{'f' * 64}.squashfs"


@pytest.fixture
def native(threads: Threads) -> Any:
    """Yield a system reached by our own SSH; check that no connection is left."""
    system = System("conch", threads)
    yield system
    for directory in system.directories:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))
    assert system.alive() == 0


@pytest.mark.parametrize("open_files", [SftpFiles.begin, ScpFiles.begin], ids=["sftp", "scp"])
@pytest.mark.parametrize("sessions", [1, 2])
@pytest_twisted.ensureDeferred
async def test_few_sessions(
    native: System, root: Path, large: Path, sessions: int, open_files: Any
) -> None:
    """Digests are computed although SFTP uses the only session, also in parallel deliveries."""
    with Sshd(f"MaxSessions {sessions}") as sshd:
        directory = native.directory([native.connector(sshd)], root, open_files=open_files)
        assert await install_over_part(directory, large, root) == Verification("sha256")
        verifications = await gather_or_cancel(
            directory.install(large, name, SHA256, ignore) for name in (IMAGE, SECOND_IMAGE)
        )
        assert verifications == [Verification("sha256")] * 2
        assert await directory.digest(SECOND_IMAGE) == SHA256
        assert sshd.log.read_text().count("Accepted publickey") <= 1 + MOST_EXTRA
    assert names(root) == [IMAGE, SECOND_IMAGE]
    assert hashlib.sha256((root / SECOND_IMAGE).read_bytes()).hexdigest() == SHA256


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_no_further_login(native: System, root: Path, large: Path) -> None:
    """Delivery to a server that allows one login succeeds; the result names the weaker check."""
    with Sshd("MaxSessions 1") as sshd:
        connector = native.connector(sshd)
        logins = 0

        async def connect_once() -> Connection:
            nonlocal logins
            logins += 1
            if logins > 1:
                raise SystemUnavailable("Too many logins.")
            return await connector()

        directory = native.directory([connect_once], root)
        reason = "the SSH server starts no command beside SFTP"
        assert await install_over_part(directory, large, root) == Verification("samples", reason)
    assert (root / IMAGE).read_bytes() == LARGE


class FakeLogins:
    """Makes connections to a server that limits the sessions of each."""

    def __init__(self, room: int) -> None:
        """Allow `room` programs on each connection."""
        self.room = room
        self.connections: list[FakeLogin] = []
        self.waiting: Deferred[None] | None = None

    async def connect(self) -> Connection:
        """Make a connection, at once or after `waiting` fires."""
        if self.waiting is not None:
            await self.waiting
        self.connections.append(FakeLogin(self))
        return self.connections[-1]


class FakeLogin:
    """A connection that counts its programs."""

    window = 7

    def __init__(self, logins: FakeLogins) -> None:
        """Start without programs."""
        self.usable = True
        self.programs = 0
        self.answer: Deferred[None] | None = None
        self._room = logins.room

    async def open_subsystem(self, name: str) -> Channel:
        """Start a program."""
        return await self.open_command([name])

    async def open_command(self, argv: Sequence[str]) -> Channel:
        """Start a program if there is room, once the server answers."""
        if self.answer is not None:
            await self.answer
        if self.programs == self._room:
            raise HostFull(f"no room for {argv}")
        self.programs += 1
        return Wire()

    async def close(self) -> None:
        """Close the connection; fail the start that waits for an answer."""
        self.usable = False
        if self.answer is not None and not self.answer.called:
            self.answer.errback(SystemUnavailable("It was closed."))


def start_program(connection: ExtraLogins, clock: Clock) -> Deferred[Channel]:
    """Start a program, and advance the clock past the pauses."""
    starting = Deferred.fromCoroutine(connection.open_command(["true"]))
    clock.pump([0.1, 0.3])
    return starting


def test_logins_are_bounded() -> None:
    """Further logins are limited, all of them are used, and all are closed."""
    clock, logins = Clock(), FakeLogins(1)
    first = FakeLogin(logins)
    connection = ExtraLogins(first, logins.connect, clock)
    for _ in range(1 + MOST_EXTRA):
        assert start_program(connection, clock).called
    assert isinstance(error_of(start_program(connection, clock)), HostFull)
    assert [login.programs for login in (first, *logins.connections)] == [1] * (1 + MOST_EXTRA)
    logins.connections[0].usable = False  # a broken login makes room for another
    assert start_program(connection, clock).called
    assert (len(logins.connections), connection.usable, connection.window) == (
        MOST_EXTRA + 1,
        True,
        7,
    )
    assert Deferred.fromCoroutine(connection.close()).called
    assert not any(login.usable for login in (first, *logins.connections))


def test_closed_while_it_logs_in() -> None:
    """Closing cancels a login, and its caller gets an error."""
    clock, logins = Clock(), FakeLogins(1)
    connection = ExtraLogins(FakeLogin(logins), logins.connect, clock)
    assert start_program(connection, clock).called
    logins.waiting = Deferred()
    starting = start_program(connection, clock)
    assert not starting.called
    assert Deferred.fromCoroutine(connection.close()).called
    error = error_of(starting)
    assert isinstance(error, DeliveryFailed)
    assert "was closed" in error.what


def test_login_that_hangs() -> None:
    """A further login that times out is not repeated at once, since the digest has a limit."""
    clock, logins = Clock(), FakeLogins(1)
    tries = 0

    async def connect() -> Connection:
        nonlocal tries
        tries += 1
        return await within(CONNECT_SECONDS, clock, Deferred(), no_answer)

    connection = ExtraLogins(FakeLogin(logins), connect, clock)
    assert start_program(connection, clock).called
    digest = Deferred.fromCoroutine(remote_sha256(connection, b"/image", 1, clock))
    clock.pump([0.1] * 1200)
    error = error_of(digest)
    assert isinstance(error, NoDigest)
    assert "does not answer" in error.detail
    assert tries == 1
    clock.advance(10 * CONNECT_SECONDS)
    assert not start_program(connection, clock).called
    assert tries == 2


def test_login_that_fails_at_once() -> None:
    """A further login that a busy server refuses is repeated soon."""
    clock, logins = Clock(), FakeLogins(1)
    refusals = [SystemUnavailable("Too many logins."), SystemUnavailable("Too many logins.")]

    async def connect() -> Connection:
        clock.advance(0.01)
        if refusals:
            raise refusals.pop()
        return await logins.connect()

    connection = ExtraLogins(FakeLogin(logins), connect, clock)
    assert start_program(connection, clock).called
    program = OutputProgram(10)
    opening = Deferred.fromCoroutine(_run(connection, clock, program))
    clock.pump([0.1] * 100)
    assert opening.called
    assert len(logins.connections) == 1


async def _run(connection: Connection, clock: Clock, program: OutputProgram) -> None:
    async with remote_program.running_program(connection, clock, program, "true"):
        pass


@pytest.mark.parametrize("is_extra", [False, True])
def test_closed_while_a_program_starts(is_extra: bool) -> None:
    """Closing ends a start that the server does not answer, and does not wait for it."""
    clock, logins = Clock(), FakeLogins(1)
    first = FakeLogin(logins)
    connection = ExtraLogins(first, logins.connect, clock)
    assert start_program(connection, clock).called
    if is_extra:
        assert start_program(connection, clock).called
    login = logins.connections[0] if is_extra else first
    login.programs = 1
    waiting = Deferred.fromCoroutine(connection.open_command(["true"]))
    clock.advance(0.1)
    login.answer = Deferred()
    clock.advance(0.3)
    assert not waiting.called
    assert Deferred.fromCoroutine(connection.close()).called
    error = error_of(waiting)
    assert isinstance(error, DeliveryFailed)
    assert not isinstance(error, HostFull)
    assert not any(login.usable for login in (first, *logins.connections))


def digest_of_busy_host(clock: Clock) -> tuple[Deferred[str], FakeLogin, list[Channel]]:
    """Ask for a digest while programs use every session; return a login and the programs."""
    logins = FakeLogins(1)
    connection = ExtraLogins(FakeLogin(logins), logins.connect, clock)
    channels: list[Channel] = []
    for _ in range(1 + MOST_EXTRA):
        start_program(connection, clock).addCallback(channels.append)
    digest = Deferred.fromCoroutine(remote_sha256(connection, b"/image", 1, clock))
    clock.pump([0.1] * 300)
    assert not digest.called
    return digest, logins.connections[0], channels


def test_digest_waits_for_room() -> None:
    """A digest waits while other programs of the gateway use every session."""
    clock = Clock()
    digest, login, channels = digest_of_busy_host(clock)
    login.programs = 0
    channels[1].closed.callback(0)
    clock.pump([0.1] * 50)
    assert login.programs == 1
    digest.cancel()
    assert isinstance(error_of(digest), CancelledError)
    assert clock.getDelayedCalls() == []


def test_digest_waits_no_longer_than_its_limit() -> None:
    """A digest that gets no session within its limit fails."""
    clock = Clock()
    digest, _, _ = digest_of_busy_host(clock)
    clock.pump([1.0] * 100)
    assert isinstance(error_of(digest), NoDigest)
    assert clock.getDelayedCalls() == []
