"""Locks between processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.plumbing import locks
from shiftergw.plumbing.locks import (
    POLL_SECONDS,
    file_lock,
    remove_unshared,
    tried_file_lock,
    try_lock,
    try_share,
    unlock,
)
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause

real: Any = reactor


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    """A held lock is refused; a released one leaves no file and can be taken again."""
    path = tmp_path / "lock"
    first = try_lock(path)
    assert first is not None
    assert try_lock(path) is None
    unlock(path, first)
    assert not path.exists()
    second = try_lock(path)
    assert second is not None
    unlock(path, second)


def test_a_lock_is_held_against_other_processes(tmp_path: Path) -> None:
    """Another process is refused while we hold, and its death gives its lock back."""
    path = tmp_path / "lock"
    script = (
        "import sys, pathlib; from shiftergw.plumbing.locks import try_lock;"
        "print(try_lock(pathlib.Path(sys.argv[1])) is not None, flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        assert try_lock(path) is None
        other.kill()
        other.wait()
    mine = try_lock(path)
    assert mine is not None
    assert subprocess.run(argv, input=b"", stdout=subprocess.PIPE, check=True).stdout == b"False\n"
    unlock(path, mine)


def test_a_lock_on_a_removed_file_is_worth_nothing(tmp_path: Path) -> None:
    """Whoever releases late does not remove the lock that another has taken meanwhile."""
    path = tmp_path / "lock"
    lost = try_lock(path)
    assert lost is not None
    path.unlink()
    other = try_lock(path)
    assert other is not None
    unlock(path, lost)
    assert try_lock(path) is None
    unlock(path, other)


def between_open_and_flock(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], None]) -> None:
    """Have something happen once between the open of a file and its lock."""
    flock = locks._flock
    waiting = [happen]

    def late(descriptor: int, operation: int) -> bool:
        if waiting:
            waiting.pop()()
        return flock(descriptor, operation)

    monkeypatch.setattr(locks, "_flock", late)


def test_a_lock_taken_on_a_removed_file_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner leaves and another comes while we are between open and lock: it is the other's."""
    path = tmp_path / "lock"
    owner, others = try_lock(path), []

    def change_owner() -> None:
        unlock(path, owner)
        others.append(try_lock(path))

    between_open_and_flock(monkeypatch, change_owner)
    assert try_lock(path) is None
    assert others[0] is not None
    unlock(path, others[0])


def test_a_share_of_a_removed_file_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that comes between open and lock has removed what is about to be shared."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    between_open_and_flock(monkeypatch, path.unlink)
    assert try_share(path) is None


def test_a_lock_whose_file_cannot_be_removed_is_given_back(tmp_path: Path) -> None:
    """The file stays, as that of a dead process does, and the next one takes the lock."""
    with (tmp_path / "lock").open("w") as file:
        path = Path(f"/proc/self/fd/{file.fileno()}")  # nobody can remove this name
        lock = try_lock(path)
        assert lock is not None
        unlock(path, lock)
        again = try_lock(path)
        assert again is not None
        os.close(again)


def test_many_takers_exclude_each_other(tmp_path: Path) -> None:
    """However takers and releasers race for the file itself, two never hold the lock at once."""
    path = tmp_path / "lock"
    held: list[int] = []
    together: list[int] = []

    def take(number: int) -> None:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            descriptor = try_lock(path)
            if descriptor is not None:
                held.append(number)
                together.append(len(held))
                held.remove(number)
                unlock(path, descriptor)

    threads = [threading.Thread(target=take, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(together) == {1}
    assert list(tmp_path.iterdir()) == []


def test_descriptors_do_not_leak(tmp_path: Path) -> None:
    """Refused and failed attempts close what they opened."""
    held = try_lock(tmp_path / "lock")
    assert held is not None
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert try_lock(tmp_path / "lock") is None
    with pytest.raises(FileNotFoundError):
        try_lock(tmp_path / "no" / "lock")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    unlock(tmp_path / "lock", held)


@pytest_twisted.async_yield_fixture
async def threads() -> AsyncIterator[Threads]:
    """Give two threads."""
    pool = Threads(real, 2, "test")
    pool.startService()
    yield pool
    await pool.stopService()


@pytest_twisted.ensureDeferred
async def test_waiting_for_a_lock(tmp_path: Path, threads: Threads) -> None:
    """The second holder waits, says so once, and gets the lock when the first gives it back."""
    path = tmp_path / "lock"
    waits: list[None] = []
    waiting: Deferred[None] = Deferred()
    entered: Deferred[None] = Deferred()
    leave: Deferred[None] = Deferred()

    def wait() -> None:
        waits.append(None)
        waiting.callback(None)

    async def hold() -> None:
        async with file_lock(path, threads, real, wait):
            entered.callback(None)
            await leave

    mine = try_lock(path)
    assert mine is not None
    running = Deferred.fromCoroutine(hold())
    await waiting
    await pause(2 * POLL_SECONDS, real)
    assert not entered.called
    unlock(path, mine)
    await entered
    assert waits == [None]
    assert try_lock(path) is None
    leave.callback(None)
    await running
    assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_waiting_can_be_cancelled(tmp_path: Path, threads: Threads) -> None:
    """A cancelled wait leaves the holder's lock alone and nothing on the clock."""
    clock, path = Clock(), tmp_path / "lock"
    waiting: Deferred[None] = Deferred()

    def wait() -> None:
        real.callLater(0, waiting.callback, None)  # when it does wait

    async def hold() -> None:
        async with file_lock(path, threads, clock, wait):
            raise AssertionError

    mine = try_lock(path)
    assert mine is not None
    running = Deferred.fromCoroutine(hold())
    await waiting
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert clock.getDelayedCalls() == []
    assert try_lock(path) is None
    unlock(path, mine)


@pytest_twisted.ensureDeferred
async def test_a_lock_that_comes_too_late_is_released(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that is cancelled does not wait for a disk that hangs, and keeps no lock on it."""
    path = tmp_path / "lock"
    answers, released = threading.Event(), threading.Event()

    def lock_late(path: Path) -> int | None:
        answers.wait(60)
        return try_lock(path)

    def unlock_and_tell(path: Path, descriptor: int | None) -> None:
        unlock(path, descriptor)
        released.set()

    monkeypatch.setattr(locks, "try_lock", lock_late)
    monkeypatch.setattr(locks, "unlock", unlock_and_tell)

    async def hold() -> None:
        async with file_lock(path, threads, Clock()):
            raise AssertionError

    running = Deferred.fromCoroutine(hold())
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    answers.set()
    assert await threads.run(released.wait, 60)
    assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_an_error_gives_the_lock_back(tmp_path: Path, threads: Threads) -> None:
    """A block that raises releases the lock and its error is not touched."""
    with pytest.raises(KeyError):
        async with file_lock(tmp_path / "lock", threads, Clock()):
            raise KeyError
    assert not (tmp_path / "lock").exists()


@pytest_twisted.ensureDeferred
async def test_a_lock_is_released_after_the_threads_have_ended(tmp_path: Path) -> None:
    """The reactor's own threads do it then."""
    pool = Threads(real, 2, "test")
    pool.startService()
    async with file_lock(tmp_path / "lock", pool, Clock()):
        await pool.stopService()
        assert try_lock(tmp_path / "lock") is None
    assert not (tmp_path / "lock").exists()


@pytest_twisted.ensureDeferred
async def test_a_lock_that_is_only_tried(tmp_path: Path, threads: Threads) -> None:
    """Nobody waits for it: it is there or it is not."""
    async with tried_file_lock(tmp_path / "lock", threads) as mine:
        async with tried_file_lock(tmp_path / "lock", threads) as again:
            assert (mine, again) == (True, False)
        assert try_lock(tmp_path / "lock") is None
    assert not (tmp_path / "lock").exists()


def test_a_shared_file_is_not_removed(tmp_path: Path) -> None:
    """Any number may share a file; it goes when none does, and then there is nothing to share."""
    path = tmp_path / "file"
    assert try_share(path) is None
    assert remove_unshared(path)  # there is none
    path.write_bytes(b"content")
    shares = [try_share(path), try_share(path)]
    for share in shares:
        assert not remove_unshared(path)
        assert share is not None
        os.close(share)
    assert remove_unshared(path)
    assert not path.exists()
    assert try_share(path) is None


def test_the_dead_share_nothing(tmp_path: Path) -> None:
    """When a process dies, what it has shared may be removed."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    script = (
        "import sys, pathlib; from shiftergw.plumbing.locks import try_share;"
        "print(try_share(pathlib.Path(sys.argv[1])) is not None, flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        assert not remove_unshared(path)
        other.kill()
        other.wait()
    assert remove_unshared(path)
