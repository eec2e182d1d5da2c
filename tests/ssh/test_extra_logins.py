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
from shiftergw.plumbing.channel import Away, Channel, Connection, HostFull, no_answer
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within
from shiftergw.ports import Verification
from shiftergw.ssh.connection import CONNECT_SECONDS
from shiftergw.ssh.extra_logins import MOST_EXTRA, ExtraLogins
from tests.delivery.contract import IMAGE, ignore, names
from tests.delivery.several import System
from tests.delivery.test_login_shells import LARGE, SHA256, install_over_part, large
from tests.sftp.test_client import Wire, error_of
from tests.sshd import Sshd

__all__ = ["large"]

OTHER = f"{'f' * 64}.squashfs"


@pytest.fixture
def native(threads: Threads) -> Any:
    """Give a system that is reached by the native SSH; check that no connection is left."""
    made = System("conch", threads)
    yield made
    for directory in made.directories:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))
    assert made.alive() == 0


@pytest.mark.parametrize("open_files", [SftpFiles.begin, ScpFiles.begin], ids=["sftp", "scp"])
@pytest.mark.parametrize("sessions", [1, 2])
@pytest_twisted.ensureDeferred
async def test_few_sessions(
    native: System, root: Path, large: Path, sessions: int, open_files: Any
) -> None:
    """The digest is made although SFTP has the only session; so is that of a second delivery."""
    with Sshd(f"MaxSessions {sessions}") as sshd:
        directory = native.directory([native.way(sshd)], root, open_files=open_files)
        assert await install_over_part(directory, large, root) == Verification("sha256")
        both = await gather_or_cancel(
            directory.install(large, name, SHA256, ignore) for name in (IMAGE, OTHER)
        )
        assert both == [Verification("sha256")] * 2
        assert await directory.digest(OTHER) == SHA256
        assert sshd.log.read_text().count("Accepted publickey") <= 1 + MOST_EXTRA
    assert names(root) == [IMAGE, OTHER]
    assert hashlib.sha256((root / OTHER).read_bytes()).hexdigest() == SHA256


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_no_further_login(native: System, root: Path, large: Path) -> None:
    """Delivery to a server that admits one login succeeds; the result names the weaker check."""
    with Sshd("MaxSessions 1") as sshd:
        way = native.way(sshd)
        logins = 0

        async def once() -> Connection:
            nonlocal logins
            logins += 1
            if logins > 1:
                raise Away("Too many logins.")
            return await way()

        directory = native.directory([once], root)
        reason = "the SSH server starts no command beside SFTP"
        assert await install_over_part(directory, large, root) == Verification("samples", reason)
    assert (root / IMAGE).read_bytes() == LARGE


class Logins:
    """Makes connections whose server has room for some sessions each."""

    def __init__(self, room: int) -> None:
        """Have room for so many programs on each connection."""
        self.room = room
        self.made: list[Login] = []
        self.waiting: Deferred[None] | None = None

    async def connect(self) -> Connection:
        """Make a connection, at once or after `waiting` fires."""
        if self.waiting is not None:
            await self.waiting
        self.made.append(Login(self))
        return self.made[-1]


class Login:
    """A connection that counts its programs."""

    window = 7

    def __init__(self, logins: Logins) -> None:
        """Have no programs."""
        self.usable = True
        self.programs = 0
        self.answer: Deferred[None] | None = None
        self._room = logins.room

    async def open_subsystem(self, name: str) -> Channel:
        """Start a program."""
        return await self.open_command([name])

    async def open_command(self, argv: Sequence[str]) -> Channel:
        """Start a program, if there is room, once the server answers."""
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
            self.answer.errback(Away("It was closed."))


def started(over: ExtraLogins, clock: Clock) -> Deferred[Channel]:
    """Start a program, and let the pauses pass."""
    starting = Deferred.fromCoroutine(over.open_command(["true"]))
    clock.pump([0.1, 0.3])
    return starting


def test_logins_are_bounded() -> None:
    """No more further logins are made than allowed; all are used, and closed."""
    clock, logins = Clock(), Logins(1)
    first = Login(logins)
    over = ExtraLogins(first, logins.connect, clock)
    for _ in range(1 + MOST_EXTRA):
        assert started(over, clock).called
    assert isinstance(error_of(started(over, clock)), HostFull)
    assert [login.programs for login in (first, *logins.made)] == [1] * (1 + MOST_EXTRA)
    logins.made[0].usable = False  # one that broke makes room for another
    assert started(over, clock).called
    assert (len(logins.made), over.usable, over.window) == (MOST_EXTRA + 1, True, 7)
    assert Deferred.fromCoroutine(over.close()).called
    assert not any(login.usable for login in (first, *logins.made))


def test_closed_while_it_logs_in() -> None:
    """Closing cancels a login, and its caller gets an error."""
    clock, logins = Clock(), Logins(1)
    over = ExtraLogins(Login(logins), logins.connect, clock)
    assert started(over, clock).called
    logins.waiting = Deferred()
    starting = started(over, clock)
    assert not starting.called
    assert Deferred.fromCoroutine(over.close()).called
    error = error_of(starting)
    assert isinstance(error, DeliveryFailed)
    assert "was closed" in error.what


def test_login_that_hangs() -> None:
    """A further login that gets no answer is not made again at once: the digest has a limit."""
    clock, logins = Clock(), Logins(1)
    tries = 0

    async def connect() -> Connection:
        nonlocal tries
        tries += 1
        return await within(CONNECT_SECONDS, clock, Deferred(), no_answer)

    over = ExtraLogins(Login(logins), connect, clock)
    assert started(over, clock).called
    digest = Deferred.fromCoroutine(remote_sha256(over, b"/image", 1, clock))
    clock.pump([0.1] * 1200)
    error = error_of(digest)
    assert isinstance(error, NoDigest)
    assert "does not answer" in error.detail
    assert tries == 1
    clock.advance(10 * CONNECT_SECONDS)
    assert not started(over, clock).called
    assert tries == 2


def test_login_that_fails_at_once() -> None:
    """A further login that a busy server refuses is made again soon."""
    clock, logins = Clock(), Logins(1)
    refusals = [Away("Too many logins."), Away("Too many logins.")]

    async def connect() -> Connection:
        clock.advance(0.01)
        if refusals:
            raise refusals.pop()
        return await logins.connect()

    over = ExtraLogins(Login(logins), connect, clock)
    assert started(over, clock).called
    program = OutputProgram(10)
    opening = Deferred.fromCoroutine(_run(over, clock, program))
    clock.pump([0.1] * 100)
    assert opening.called
    assert len(logins.made) == 1


async def _run(over: Connection, clock: Clock, program: OutputProgram) -> None:
    async with remote_program.running_program(over, clock, program, "true"):
        pass


@pytest.mark.parametrize("is_extra", [False, True])
def test_closed_while_a_program_starts(is_extra: bool) -> None:
    """Closing ends a start that the server does not answer, and does not wait for it."""
    clock, logins = Clock(), Logins(1)
    first = Login(logins)
    over = ExtraLogins(first, logins.connect, clock)
    assert started(over, clock).called
    if is_extra:
        assert started(over, clock).called
    login = logins.made[0] if is_extra else first
    login.programs = 1
    waiting = Deferred.fromCoroutine(over.open_command(["true"]))
    clock.advance(0.1)
    login.answer = Deferred()
    clock.advance(0.3)
    assert not waiting.called
    assert Deferred.fromCoroutine(over.close()).called
    error = error_of(waiting)
    assert isinstance(error, DeliveryFailed)
    assert not isinstance(error, HostFull)
    assert not any(login.usable for login in (first, *logins.made))


def digest_of_busy_host(clock: Clock) -> tuple[Deferred[str], Login, list[Channel]]:
    """Ask for a digest while programs use every session; return a login and the programs."""
    logins = Logins(1)
    over = ExtraLogins(Login(logins), logins.connect, clock)
    channels: list[Channel] = []
    for _ in range(1 + MOST_EXTRA):
        started(over, clock).addCallback(channels.append)
    digest = Deferred.fromCoroutine(remote_sha256(over, b"/image", 1, clock))
    clock.pump([0.1] * 300)
    assert not digest.called
    return digest, logins.made[0], channels


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
    """A digest that gets no session within its limit is not made."""
    clock = Clock()
    digest, _, _ = digest_of_busy_host(clock)
    clock.pump([1.0] * 100)
    assert isinstance(error_of(digest), NoDigest)
    assert clock.getDelayedCalls() == []
