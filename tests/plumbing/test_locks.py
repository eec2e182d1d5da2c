"""Locks between processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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
from tests.patience import patient

real: Any = reactor


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    """A second attempt fails; a released lock leaves no file and can be taken again."""
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
    """A lock excludes other processes, and the death of its holder releases it."""
    path = tmp_path / "lock"
    script = (
        "import sys, pathlib; from shiftergw.plumbing.locks import try_lock;"
        "print(try_lock(pathlib.Path(sys.argv[1])) is not None, flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == b"True\n"
        assert try_lock(path) is None
        second.kill()
        second.wait()
    first = try_lock(path)
    assert first is not None
    assert subprocess.run(argv, input=b"", stdout=subprocess.PIPE, check=True).stdout == b"False\n"
    unlock(path, first)


def test_a_late_release_leaves_a_new_lock_alone(tmp_path: Path) -> None:
    """Releasing a lock on a removed file does not remove the new lock of another holder."""
    path = tmp_path / "lock"
    stale = try_lock(path)
    assert stale is not None
    path.unlink()
    second = try_lock(path)
    assert second is not None
    unlock(path, stale)
    assert try_lock(path) is None
    unlock(path, second)


def between_open_and_flock(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], None]) -> None:
    """Call `happen` once between the opening and the locking of a file."""
    flock = locks._flock
    waiting = [happen]

    def late(descriptor: int, operation: int) -> bool:
        if waiting:
            waiting.pop()()
        return flock(descriptor, operation)

    monkeypatch.setattr(locks, "_flock", late)


def test_a_lock_on_a_removed_file_is_void(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the lock changes hands between opening and locking, the attempt fails."""
    path = tmp_path / "lock"
    owner, new_locks = try_lock(path), []

    def change_owner() -> None:
        unlock(path, owner)
        new_locks.append(try_lock(path))

    between_open_and_flock(monkeypatch, change_owner)
    assert try_lock(path) is None
    assert new_locks[0] is not None
    unlock(path, new_locks[0])


def test_a_share_of_a_removed_file_is_void(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is removed between opening and locking cannot be shared."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    between_open_and_flock(monkeypatch, path.unlink)
    assert try_share(path) is None


def test_a_lock_whose_file_cannot_be_removed_is_released(tmp_path: Path) -> None:
    """The file stays, as after a crash, and the next holder takes the lock."""
    with (tmp_path / "lock").open("w") as file:
        path = Path(f"/proc/self/fd/{file.fileno()}")  # this name cannot be removed
        lock = try_lock(path)
        assert lock is not None
        unlock(path, lock)
        second = try_lock(path)
        assert second is not None
        os.close(second)


def test_many_takers_exclude_each_other(tmp_path: Path) -> None:
    """In any order of creation and removal, two processes never hold the lock at once."""
    path = tmp_path / "lock"
    holders: list[int] = []
    holder_counts: list[int] = []

    def take(number: int) -> None:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            descriptor = try_lock(path)
            if descriptor is not None:
                holders.append(number)
                holder_counts.append(len(holders))
                holders.remove(number)
                unlock(path, descriptor)

    threads = [threading.Thread(target=take, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(holder_counts) == {1}
    assert list(tmp_path.iterdir()) == []


def test_descriptors_do_not_leak(tmp_path: Path) -> None:
    """Refused and failed attempts close their descriptors."""
    holders = try_lock(tmp_path / "lock")
    assert holders is not None
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert try_lock(tmp_path / "lock") is None
    with pytest.raises(FileNotFoundError):
        try_lock(tmp_path / "no" / "lock")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    unlock(tmp_path / "lock", holders)


@pytest_twisted.ensureDeferred
async def test_waiting_for_a_lock(tmp_path: Path, threads: Threads) -> None:
    """A second holder reports its wait once, and gets the lock after the release."""
    path = tmp_path / "lock"
    waits: list[None] = []
    waiting: Deferred[None] = Deferred()
    acquired_event: Deferred[None] = Deferred()
    leave: Deferred[None] = Deferred()

    def wait() -> None:
        waits.append(None)
        waiting.callback(None)

    async def hold() -> None:
        async with file_lock(path, threads, real, wait):
            acquired_event.callback(None)
            await leave

    first = try_lock(path)
    assert first is not None
    running = Deferred.fromCoroutine(hold())
    await waiting
    await pause(2 * POLL_SECONDS, real)
    assert not acquired_event.called
    unlock(path, first)
    await acquired_event
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

    first = try_lock(path)
    assert first is not None
    running = Deferred.fromCoroutine(hold())
    await waiting
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert clock.getDelayedCalls() == []
    assert try_lock(path) is None
    unlock(path, first)


@pytest_twisted.ensureDeferred
async def test_a_lock_that_comes_too_late_is_released(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled caller does not wait for a hanging disk; a late lock is released."""
    path = tmp_path / "lock"
    answers, release = threading.Event(), threading.Event()

    def lock_late(path: Path) -> int | None:
        answers.wait(patient(60))
        return try_lock(path)

    def unlock_and_tell(path: Path, descriptor: int | None) -> None:
        unlock(path, descriptor)
        release.set()

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
    assert await threads.run(release.wait, 60)
    assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_an_error_gives_the_lock_back(tmp_path: Path, threads: Threads) -> None:
    """A block that raises releases the lock, and the error passes on."""
    with pytest.raises(KeyError):
        async with file_lock(tmp_path / "lock", threads, Clock()):
            raise KeyError
    assert not (tmp_path / "lock").exists()


@pytest_twisted.ensureDeferred
async def test_a_lock_is_released_after_the_threads_have_ended(tmp_path: Path) -> None:
    """The reactor's thread pool releases a lock after the stop of the other pool."""
    pool = Threads(real, 2, "test")
    pool.startService()
    async with file_lock(tmp_path / "lock", pool, Clock()):
        await pool.stopService()
        assert try_lock(tmp_path / "lock") is None
    assert not (tmp_path / "lock").exists()


@pytest_twisted.ensureDeferred
async def test_a_lock_that_is_only_tried(tmp_path: Path, threads: Threads) -> None:
    """`tried_file_lock` never waits."""
    async with tried_file_lock(tmp_path / "lock", threads) as first:
        async with tried_file_lock(tmp_path / "lock", threads) as second:
            assert (first, second) == (True, False)
        assert try_lock(tmp_path / "lock") is None
    assert not (tmp_path / "lock").exists()


def test_a_shared_file_is_not_removed(tmp_path: Path) -> None:
    """A file may be shared several times; it is removed only without shares."""
    path = tmp_path / "file"
    assert try_share(path) is None
    assert remove_unshared(path)  # absent
    path.write_bytes(b"content")
    shares = [try_share(path), try_share(path)]
    for share in shares:
        assert not remove_unshared(path)
        assert share is not None
        os.close(share)
    assert remove_unshared(path)
    assert not path.exists()
    assert try_share(path) is None


def test_shares_end_with_their_process(tmp_path: Path) -> None:
    """A file that a dead process shared can be removed."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    script = (
        "import sys, pathlib; from shiftergw.plumbing.locks import try_share;"
        "print(try_share(pathlib.Path(sys.argv[1])) is not None, flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == b"True\n"
        assert not remove_unshared(path)
        second.kill()
        second.wait()
    assert remove_unshared(path)
