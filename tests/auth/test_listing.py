"""The users of a system as a command lists them."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from shiftergw.auth import listing as listing_module
from shiftergw.auth.listing import STEPS, ListedUsers, ListingState
from shiftergw.errors import Unavailable
from shiftergw.model.requests import UserAccount
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import UserDirectory
from tests.auth.listings import SYSTEM
from tests.installed_reactor import reactor
from tests.patience import patient


class Command:
    """A command that prints a file, counts its runs, and fails when the file is not there."""

    def __init__(self, root: Path, before: str = "") -> None:
        """Print the content that `answer` sets; `before` is shell text that runs before that."""
        self._file = root / "listing"
        self._runs = root / "runs"
        self._script = root / "command"
        self._script.write_text(f'#!/bin/sh\necho >> "$1/runs"\n{before}\ncat "$1/listing"\n')
        self._script.chmod(0o755)
        self.argv = [str(self._script), str(root)]

    @property
    def runs(self) -> int:
        """Return how often the command has run."""
        return len(self._runs.read_text()) if self._runs.exists() else 0

    def answer(self, content: bytes | None) -> None:
        """Print this content from now on; without any, fail."""
        if content is None:
            self._file.unlink()
        else:
            self._file.write_bytes(content)


class SetClock(Clock):
    """A clock that a test sets, with the real reactor's processes."""

    def spawnProcess(self, *arguments: Any, **options: Any) -> Any:
        return reactor.spawnProcess(*arguments, **options)


@asynccontextmanager
async def listing_by(argv: list[str], clock: Any = reactor) -> AsyncIterator[ListedUsers]:
    """Run the directory of a system whose users a command lists."""
    pool = Threads(reactor, 2, "test")
    users = ListedUsers("perlmutter", argv, dict(os.environ), pool, clock)
    pool.startService()
    users.startService()
    try:
        yield users
    finally:
        await maybeDeferred(users.stopService)
        await pool.stopService()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    for _ in range(500):
        if condition():
            return
        await pause(0.02, reactor)
    raise TimeoutError


@pytest_twisted.ensureDeferred
async def test_users_of_the_system(tmp_path: Path) -> None:
    """All requests are answered from one run, also those that come before it has ended."""
    command = Command(tmp_path)
    command.answer(SYSTEM)
    async with listing_by(command.argv) as users:
        directory: UserDirectory = users
        accounts = await gather_or_cancel(directory.account(2001, 2100) for _ in range(50))
        assert accounts == [UserAccount("alice", "users", frozenset({2100, 2300, 2301}))] * 50
        assert await directory.account(77, 78) == UserAccount("77", "78", frozenset({78}))
        assert await directory.groups("alice", 2001, 2100) == {2100, 2300, 2301}
        assert (await directory.uid_of("alice"), await directory.uid_of("carol")) == (2001, None)
        assert command.runs == 1


@pytest_twisted.ensureDeferred
async def test_a_listing_is_refreshed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old listing is used until the next run has ended."""
    monkeypatch.setattr(listing_module, "REFRESH_SECONDS", 0.05)
    command = Command(tmp_path)
    command.answer(SYSTEM)
    async with listing_by(command.argv) as users:
        assert await users.uid_of("carol") is None
        command.answer(SYSTEM + b"carol:x:2003:2100:::\n")
        while await users.uid_of("carol") is None:
            await pause(0.02, reactor)
        assert await users.uid_of("carol") == 2003


@pytest.mark.parametrize("content", [None, b"", b"ssh: no route\n"])
@pytest_twisted.ensureDeferred
async def test_the_command_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """The last good listing is used on, and the failure is logged."""
    monkeypatch.setattr(listing_module, "REFRESH_SECONDS", 0.05)
    command = Command(tmp_path)
    command.answer(SYSTEM)
    async with listing_by(command.argv) as users:
        assert await users.uid_of("alice") == 2001
        command.answer(content)
        with capturedLogs() as events:
            runs = command.runs
            while command.runs < runs + 3:
                assert await users.uid_of("alice") == 2001
                await pause(0.02, reactor)
        assert "perlmutter" in {event.get("system") for event in events}


@pytest_twisted.ensureDeferred
async def test_a_listing_that_is_too_old(tmp_path: Path) -> None:
    """After an hour of failures the listing is not used: a user may have left a group."""
    clock, command = SetClock(), Command(tmp_path)
    command.answer(SYSTEM)
    async with listing_by(command.argv, clock) as users:
        assert await users.uid_of("alice") == 2001
        command.answer(None)
        clock.advance(3590)
        assert await users.uid_of("alice") == 2001
        await until(lambda: command.runs == 2 and users.state is ListingState.WAITING)
        clock.advance(20)
        with pytest.raises(Unavailable) as caught:
            await users.groups("alice", 2001, 2100)
        assert "The last good listing is 60 min old, which is too old." in caught.value.detail
        assert "exited with code 1" in caught.value.detail
        # From now on the command runs again soon, and one good run is enough.
        clock.advance(listing_module.REFRESH_SECONDS)
        with pytest.raises(Unavailable):
            await users.groups("alice", 2001, 2100)
        command.answer(SYSTEM.replace(b"lab:x:2300:alice,", b"lab:x:2300:"))
        clock.advance(listing_module.RETRY_SECONDS)
        assert await users.groups("alice", 2001, 2100) == {2100, 2301}


@pytest_twisted.ensureDeferred
async def test_the_first_request_after_a_quiet_night(tmp_path: Path) -> None:
    """The first request after a long pause waits for a new listing and is not refused."""
    clock, command = SetClock(), Command(tmp_path)
    command.answer(SYSTEM)
    async with listing_by(command.argv, clock) as users:
        assert await users.uid_of("carol") is None
        command.answer(SYSTEM + b"carol:x:2003:2100:::\n")
        clock.advance(12 * 3600)
        assert await users.uid_of("carol") == 2003
        assert command.runs == 2


@pytest_twisted.ensureDeferred
async def test_before_the_first_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are refused with 503, the command runs seldom, and its first success is enough."""
    monkeypatch.setattr(listing_module, "RETRY_SECONDS", 0.3)
    command = Command(tmp_path)
    async with listing_by(command.argv) as users:
        for _ in range(20):
            with pytest.raises(Unavailable) as caught:
                await users.account(2001, 2100)
        assert command.runs == 1
        assert "exited with code 1" in caught.value.detail
        command.answer(SYSTEM)
        await pause(0.35, reactor)
        assert (await users.account(2001, 2100)).user == "alice"


@pytest_twisted.ensureDeferred
async def test_a_command_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests wait for a limited time, and the stop of the service ends the command."""
    monkeypatch.setattr(listing_module, "WAIT_LIMIT", 0.2)
    command = Command(tmp_path, before="exec sleep 1000")
    start = reactor.seconds()
    async with listing_by(command.argv) as users:
        with pytest.raises(Unavailable):
            await users.uid_of("alice")
        await until(lambda: command.runs == 1)
    assert reactor.seconds() - start < patient(4)


@pytest_twisted.ensureDeferred
async def test_a_listing_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that is too long is refused; nothing of it is used."""
    monkeypatch.setattr(listing_module, "MAX_BYTES", 1000)
    lines = "".join(f"u{n}:x:{n}:1:::\\n" for n in range(1, 200))
    async with listing_by([sys.executable, "-c", f'print("{lines}", end="")']) as users:
        with pytest.raises(Unavailable) as caught:
            await users.uid_of("u1")
    assert "larger than" in caught.value.detail


@pytest_twisted.ensureDeferred
async def test_the_states_of_the_command(tmp_path: Path) -> None:
    """The command runs, waits for the next request, and is stopped with the service."""
    command = Command(tmp_path, before=f'[ ! -e "{tmp_path}/slow" ] || exec sleep 1000')
    command.answer(SYSTEM)
    clock = SetClock()
    states: list[ListingState] = []
    async with listing_by(command.argv, clock) as users:
        states.append(users.state)
        await users.uid_of("alice")
        await until(lambda: users.state is not ListingState.RUNNING)
        states.append(users.state)
        (tmp_path / "slow").touch()
        clock.advance(listing_module.REFRESH_SECONDS)
        assert await users.uid_of("alice") == 2001
        states.append(users.state)
        end = users.stopService()
        states.append(users.state)
        await maybeDeferred(lambda: end)
        states.append(users.state)
    assert [state.name for state in states] == [
        "RUNNING", "WAITING", "RUNNING", "STOPPING", "STOPPED",
    ]  # fmt: skip


def test_the_table_of_states() -> None:
    """Every state can be reached and left; a step outside the table raises an error."""
    states = set(ListingState)
    assert set(STEPS) == states == set().union(*STEPS.values())
    users = ListedUsers(
        "perlmutter", ["true"], {}, Threads(reactor, 1, "test"), cast("Any", Clock())
    )
    with pytest.raises(AssertionError, match="STOPPED -> "):
        users._step(ListingState.STOPPING)
