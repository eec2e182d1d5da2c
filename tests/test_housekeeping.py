"""What is tidied up, and when: real files and a real store on a clock of the test's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from shiftergw.delivery.local import LocalDirectory
from shiftergw.housekeeping import FAILURES_KEPT, SCRATCH_KEPT, Housekeeping, Scratch
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.squash.build import SquashBuilder
from shiftergw.store.sqlite import SqliteStore
from tests.store.pulls import begun, failure, request

NOW = 1_000_000.0
ID = "a" * 64


async def until_gone(*paths: Path) -> None:
    """Wait until files are gone, but not for ever."""
    for _ in range(500):
        if not any(path.exists() for path in paths):
            return
        await pause(0.01, reactor)


def aged(path: Path, at: float) -> Path:
    """Make a file that was last written at some time."""
    path.write_bytes(b"x")
    os.utime(path, (at, at))
    return path


@pytest_twisted.ensureDeferred
async def test_scratch_removes_what_the_dead_left(tmp_path: Path) -> None:
    """Old temporaries go, from the builder's directory and from image directories; others stay."""
    expand, images = tmp_path / "expand", tmp_path / "images"
    expand.mkdir()
    images.mkdir()
    before, after = NOW - SCRATCH_KEPT - 1, NOW - SCRATCH_KEPT + 1
    stale = aged(images / f"{ID}.squashfs.partial.{'0' * 16}", before)
    fresh = aged(images / f"{ID}.squashfs.partial.{'1' * 16}", after)
    delivered = aged(images / f"{ID}.squashfs", before)
    foreign = aged(images / "notes.txt", before)
    unused = aged(expand / f"{ID}-{'b' * 12}.squashfs", before)
    clock = Clock()
    clock.advance(NOW)
    threads = Threads(reactor, 1, "test")
    threads.startService()
    builder = SquashBuilder(expand, "mksquashfs", threads, reactor, clock)
    scratch = Scratch(builder, [LocalDirectory(images, threads)], clock)
    scratch.startService()
    await until_gone(unused, stale)
    await scratch.stopService()
    await threads.stopService()
    assert not stale.exists()
    assert fresh.exists()
    assert delivered.exists()
    assert foreign.exists()
    assert not unused.exists()


@pytest_twisted.ensureDeferred
async def test_old_failures_are_forgotten(tmp_path: Path) -> None:
    """A day after its end a failure is gone; a younger one can still be asked about."""
    store = SqliteStore(reactor, tmp_path / "store.sqlite")
    await store.startService()
    clock = Clock()
    clock.advance(NOW)
    keys = []
    for tag, ended in (("old:1", NOW - FAILURES_KEPT - 1), ("new:1", NOW)):
        record = await begun(store, request(tag), ended)
        await store.finish(record.key, record.attempt, failure(), ended)
        keys.append(record.key)
    housekeeping = Housekeeping(store, clock)
    housekeeping.startService()
    for _ in range(1000):
        if await store.get(keys[0]) is None:
            break
        await pause(0.01, reactor)
    await housekeeping.stopService()
    assert await store.get(keys[0]) is None
    assert await store.get(keys[1]) is not None
    await store.stopService()
