"""Answers of any size are collected in memory or in a file."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable

import pytest
import pytest_twisted

from shiftergw.errors import Unavailable
from shiftergw.plumbing.threads import Threads
from shiftergw.web.spool import Spool
from tests.patience import patient
from tests.web.fakes import in_no_thread


@pytest_twisted.ensureDeferred
async def test_bytes_are_read_as_they_were_written(threads: Threads) -> None:
    """Bytes are read in the order of their writes, from memory and from a file."""
    spool = Spool(threads.run, 10)
    try:
        for number in range(100):
            await spool.write(b"%04d" % number)
        assert len(spool) == 400
        assert spool._file._rolled  # type: ignore[attr-defined]
        assert spool.open().read() == b"".join(b"%04d" % number for number in range(100))
    finally:
        spool.close()


@pytest_twisted.ensureDeferred
async def test_little_needs_no_thread() -> None:
    """A small answer stays in memory, without a call in a thread."""

    async def no_thread(function: Callable[[bytes], int], data: bytes) -> int:
        raise AssertionError

    spool = Spool(no_thread)
    await spool.write(b"abc")
    assert spool.open().read() == b"abc"
    spool.close()


@pytest_twisted.ensureDeferred
async def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the gateway's disk."""
    spool = Spool(in_no_thread, 1)

    def full(_: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool._file, "write", full)
    try:
        with pytest.raises(Unavailable, match="no room"):
            await spool.write(b"abc")
    finally:
        spool.close()


def test_a_disk_that_is_full_at_the_end() -> None:
    """All bytes are on the disk before the answer begins, so it cannot fail later."""
    script = """
import resource, signal
from shiftergw.errors import Unavailable
from shiftergw.web.spool import Spool

async def at_once(function, data):
    return function(data)

async def written():
    await spool.write(b"x" * 5_000)
    await spool.write(b"x" * 100)

spool = Spool(at_once, 1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    written().send(None)
except Unavailable as error:
    print(error.detail)
"""
    program = [sys.executable, "-c", script]
    done = subprocess.run(program, check=False, capture_output=True, text=True, timeout=patient(30))
    assert "File too large" in done.stdout, done.stderr
