"""A system's users as a command lists them."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from shiftergw.auth import listing as listing_module
from shiftergw.auth.listing import ListedUsers, parse
from shiftergw.auth.users import Account, Users
from shiftergw.errors import Unavailable
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from tests.patience import patient

reactor: Any = global_reactor

SYSTEM = b"""root:x:0:0:root:/root:/bin/bash
alice:x:2001:2100:Alice, of the lab:/home/alice:/bin/bash
DOM\\bob b (3):*:2002:2100::/home/bob:
root:x:0:0::/root:
alice:x:9999:9999::/:
toor:x:0:7::/root:
root:x:0:
users:x:2100:
lab:x:2300:alice,toor,nobody-knows
lab2:x:2301:DOM\\bob b (3),alice
lab2:x:2301:
"""


def test_what_getent_prints() -> None:
    """Users and groups by number and by name; of two lines the first counts."""
    listing = parse(SYSTEM)
    assert listing.users == {
        0: ("root", 0),
        2001: ("alice", 2100),
        2002: ("DOM\\bob b (3)", 2100),
    }
    assert listing.uids == {"root": 0, "alice": 2001, "DOM\\bob b (3)": 2002, "toor": 0}
    assert listing.groups == {0: "root", 2100: "users", 2300: "lab", 2301: "lab2"}
    assert listing.groups_of("alice", 2100) == {2100, 2300, 2301}
    assert listing.groups_of("alice", 5) == {5, 2100, 2300, 2301}
    assert listing.groups_of("stranger", 5) == {5}


def test_this_machine() -> None:
    """The listing of this machine's own databases is read, and knows root."""
    passwd, group = Path("/etc/passwd").read_bytes(), Path("/etc/group").read_bytes()
    assert parse(passwd + group).users[0] == ("root", 0)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"users:x:2100:\n",
        SYSTEM[:-1],
        SYSTEM + b"\n",
        SYSTEM + b"# comment\n",
        SYSTEM + b":x:1:1:::\n",
        SYSTEM + b"a:s3cret:-1:1:::\n",
        SYSTEM + b"a:s3cret:4294967295:1:::\n",
        SYSTEM + b"a:s3cret:1:4294967295:::\n",
        SYSTEM + b"a:s3cret::1:::\n",
        SYSTEM + b"a:s3cret:" + "٣".encode() + b":1:::\n",
        SYSTEM + b"a:s3cret:1:1::\n",
        SYSTEM + b"a:s3cret:one:b\n",
        SYSTEM + b"a\0:s3cret:1:1:::\n",
        SYSTEM + b"a\r:s3cret:1:1:::\n",
        SYSTEM + b"a" * 300 + b":s3cret:1:1:::\n",
        SYSTEM + b"ssh: connect to host login1: No route\n",
    ],
    ids=lambda bad: repr(bad[-30:]),
)
def test_no_listing(bad: bytes) -> None:
    """Anything else is refused as a whole, with the number of the line and not its content."""
    with pytest.raises(Unavailable) as caught:
        parse(bad)
    assert caught.value.detail
    assert "s3cret" not in caught.value.detail


@given(st.binary())
def test_anything(output: bytes) -> None:
    """Whatever a command prints is understood or refused."""
    with suppress(Unavailable):
        assert parse(output).users


class Command:
    """A command that prints a file, counts its runs, and fails when the file is not there."""

    def __init__(self, root: Path, before: str = "") -> None:
        """Print what `answer` is given; `before` is shell text that runs before that."""
        self._file = root / "listing"
        self._runs = root / "runs"
        self._script = root / "command"
        self._script.write_text(f'#!/bin/sh\necho >> "$1/runs"\n{before}\ncat "$1/listing"\n')
        self._script.chmod(0o755)
        self.argv = [str(self._script), str(root)]

    @property
    def runs(self) -> int:
        """Return how often it has run."""
        return len(self._runs.read_text()) if self._runs.exists() else 0

    def answer(self, content: bytes | None) -> None:
        """Print this from now on."""
        if content is None:
            self._file.unlink()
        else:
            self._file.write_bytes(content)


class SetClock(Clock):
    """A clock that a test sets, with the real reactor's processes."""

    def spawnProcess(self, *arguments: Any, **named: Any) -> Any:
        return reactor.spawnProcess(*arguments, **named)


@asynccontextmanager
async def listed(argv: list[str], clock: Any = reactor) -> AsyncIterator[ListedUsers]:
    """Run the users of a system by a command."""
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
    """Return once a condition holds."""
    for _ in range(500):
        if condition():
            return
        await pause(0.02, reactor)
    raise TimeoutError


@pytest_twisted.ensureDeferred
async def test_users_of_the_system(tmp_path: Path) -> None:
    """All questions are answered from one run, also those that come before it has ended."""
    command = Command(tmp_path)
    command.answer(SYSTEM)
    async with listed(command.argv) as users:
        seam: Users = users
        accounts = await gather_or_cancel(seam.account(2001, 2100) for _ in range(50))
        assert accounts == [Account("alice", "users", frozenset({2100, 2300, 2301}))] * 50
        assert await seam.account(77, 78) == Account("77", "78", frozenset({78}))
        assert await seam.groups("alice", 2001, 2100) == {2100, 2300, 2301}
        assert (await seam.uid_of("alice"), await seam.uid_of("carol")) == (2001, None)
        assert command.runs == 1


@pytest_twisted.ensureDeferred
async def test_a_newer_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that is old is used until the next one is there."""
    monkeypatch.setattr(listing_module, "REFRESH_SECONDS", 0.05)
    command = Command(tmp_path)
    command.answer(SYSTEM)
    async with listed(command.argv) as users:
        assert await users.uid_of("carol") is None
        command.answer(SYSTEM + b"carol:x:2003:2100:::\n")
        while await users.uid_of("carol") is None:
            await pause(0.02, reactor)
        assert await users.uid_of("carol") == 2003


@pytest.mark.parametrize("broken", [None, b"", b"ssh: no route\n"])
@pytest_twisted.ensureDeferred
async def test_the_command_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bytes | None
) -> None:
    """The last good listing goes on being used, and the log is told."""
    monkeypatch.setattr(listing_module, "REFRESH_SECONDS", 0.05)
    command = Command(tmp_path)
    command.answer(SYSTEM)
    async with listed(command.argv) as users:
        assert await users.uid_of("alice") == 2001
        command.answer(broken)
        with capturedLogs() as events:
            runs = command.runs
            while command.runs < runs + 3:
                assert await users.uid_of("alice") == 2001
                await pause(0.02, reactor)
        assert "perlmutter" in {event.get("system") for event in events}


@pytest_twisted.ensureDeferred
async def test_a_listing_gets_too_old(tmp_path: Path) -> None:
    """After an hour of failures nobody is known any more: who has left a group stays out."""
    clock, command = SetClock(), Command(tmp_path)
    command.answer(SYSTEM)
    async with listed(command.argv, clock) as users:
        assert await users.uid_of("alice") == 2001
        command.answer(None)
        clock.advance(3590)
        assert await users.uid_of("alice") == 2001
        await until(lambda: command.runs == 2 and users._refreshing is None)
        clock.advance(20)
        with pytest.raises(Unavailable) as caught:
            await users.groups("alice", 2001, 2100)
        assert "The last good listing is 60 min old, which is too old." in caught.value.detail
        assert "exited with code 1" in caught.value.detail
        # Now it is tried again soon, and one good run is enough.
        clock.advance(listing_module.REFRESH_SECONDS)
        with pytest.raises(Unavailable):
            await users.groups("alice", 2001, 2100)
        command.answer(SYSTEM.replace(b"lab:x:2300:alice,", b"lab:x:2300:"))
        clock.advance(listing_module.RETRY_SECONDS)
        assert await users.groups("alice", 2001, 2100) == {2100, 2301}


@pytest_twisted.ensureDeferred
async def test_nobody_has_asked_for_long(tmp_path: Path) -> None:
    """The first request after a quiet night waits for a new listing and is not refused."""
    clock, command = SetClock(), Command(tmp_path)
    command.answer(SYSTEM)
    async with listed(command.argv, clock) as users:
        assert await users.uid_of("carol") is None
        command.answer(SYSTEM + b"carol:x:2003:2100:::\n")
        clock.advance(12 * 3600)
        assert await users.uid_of("carol") == 2003
        assert command.runs == 2


@pytest_twisted.ensureDeferred
async def test_no_listing_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any listing nobody is known: 503, few runs, and well as soon as there is one."""
    monkeypatch.setattr(listing_module, "RETRY_SECONDS", 0.3)
    command = Command(tmp_path)
    async with listed(command.argv) as users:
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
    """Requests do not wait for ever, and the stop ends the command."""
    monkeypatch.setattr(listing_module, "WAIT_LIMIT", 0.2)
    command = Command(tmp_path, before="exec sleep 1000")
    start = reactor.seconds()
    async with listed(command.argv) as users:
        with pytest.raises(Unavailable):
            await users.uid_of("alice")
        await until(lambda: command.runs == 1)
    assert reactor.seconds() - start < patient(4)


@pytest_twisted.ensureDeferred
async def test_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing without end is refused; nothing of it is used."""
    monkeypatch.setattr(listing_module, "LARGEST", 1000)
    many = "".join(f"u{n}:x:{n}:1:::\\n" for n in range(1, 200))
    async with listed([sys.executable, "-c", f'print("{many}", end="")']) as users:
        with pytest.raises(Unavailable) as caught:
            await users.uid_of("u1")
    assert "larger than" in caught.value.detail
