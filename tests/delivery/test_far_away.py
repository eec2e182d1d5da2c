"""Deliveries over a connection with a long round trip: several sessions are faster than one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from filecmp import cmp
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.delivery.source_file import SourceFile
from shiftergw.plumbing.threads import Threads
from shiftergw.sftp.parallel_write import RATE
from tests.delivery.conch_client import open_connection
from tests.distance import Distance
from tests.installed_reactor import reactor
from tests.sshd import Sshd

IDLE_SECONDS = 60.0
SIZE = 80_000_000
WINDOW = 2 << 20
ROUND_TRIPS = (0.2, 0.6, 1.8)
"""Seconds. With a longer round trip, the load of the machine matters less."""


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Run a server."""
    with Sshd() as running:
        yield running


async def upload_seconds(
    sshd: Sshd, threads: Threads, source: Path, round_trip: float, rate: float
) -> float:
    """Upload with as many sessions as this rate needs; return the seconds."""
    target = source.with_name("delivered")
    with source.open("rb") as file, Distance(sshd.port, round_trip) as way:
        sshd.trust_port(way.port)
        async with open_connection(sshd, threads, port=way.port) as connection:
            files = await SftpFiles.begin(connection, reactor, IDLE_SECONDS, rate)
            content = SourceFile(file.fileno(), os.fstat(file.fileno()).st_size, threads)
            began = time.monotonic()
            await files.upload(os.fsencode(target), content, None, lambda _: None)
            seconds = time.monotonic() - began
    assert cmp(target, source, shallow=False)
    return seconds


@pytest_twisted.ensureDeferred
async def test_one_session_carries_a_window_in_a_round_trip(
    sshd: Sshd, threads: Threads, tmp_path: Path
) -> None:
    """One session sends at most one window in each round trip, however fast the link is."""
    source = tmp_path / "converted"
    source.write_bytes(os.urandom(4 * WINDOW))
    assert await upload_seconds(sshd, threads, source, 0.2, rate=1.0) > 3 * 0.2


@pytest_twisted.ensureDeferred
async def test_several_sessions_carry_more(sshd: Sshd, threads: Threads, tmp_path: Path) -> None:
    """Several sessions send more than one window in each round trip."""
    source = tmp_path / "converted"
    source.write_bytes(os.urandom(SIZE))
    ratios = []
    for round_trip in ROUND_TRIPS:
        seconds = await upload_seconds(sshd, threads, source, round_trip, RATE)
        ratios.append(SIZE / WINDOW * round_trip / seconds)
        if ratios[-1] > 1.8:
            break
    assert max(ratios) > 1.8
