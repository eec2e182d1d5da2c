"""Deliveries to remote systems that have a part of the image: what is sent, and what goes wrong."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.delivery import proof
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.errors import DeliveryFailed
from shiftergw.model.records import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import DeltaSource, SharedRange, Verification
from shiftergw.sftp import packets
from tests.delivery.contract import CONTENT, IMAGE, ignore, names
from tests.delivery.counted_system import (
    DELTA,
    NEW_BYTES,
    NEXT_CONTENT,
    PART,
    SENT_BYTES,
    SHA256,
    SHARED_BYTES,
    FarSystem,
)
from tests.delivery.delta_contract import NEXT_IMAGE, check_progress
from tests.delivery.far import without_ssh
from tests.installed_reactor import reactor
from tests.matrices import LONG
from tests.parts import need

WAYS = ["copy-data", "commands", "scp"]
BREAKS = 20 if LONG else 2


@pytest.fixture
def system(root: Path, tmp_path: Path, threads: Threads) -> Iterator[FarSystem]:
    """Give a system; its directories are closed after the test."""
    far_system = FarSystem(root, tmp_path, threads)
    yield far_system
    for directory in far_system.directories:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


def busybox(tmp_path: Path) -> Mapping[str, str]:
    """Return an environment whose `ssh` runs the programs of busybox."""
    programs = tmp_path / "busybox"
    programs.mkdir()
    subprocess.run([need("busybox"), "--install", "-s", programs], check=True)
    (programs / "scp").symlink_to(need("scp"))
    return without_ssh(tmp_path / "bin", before=f"PATH={programs}")


@pytest.mark.parametrize("way", [*WAYS, "busybox"])
@pytest_twisted.ensureDeferred
async def test_only_new_bytes_are_sent(system: FarSystem, tmp_path: Path, way: str) -> None:
    """What the system has is copied there; what is sent is hardly more than what is new."""
    env = busybox(tmp_path) if way == "busybox" else system.environment(way)
    verification = await system.deliver(system.open("scp" if way == "busybox" else way, env))
    assert verification == Verification("sha256")
    assert 0 < verification.seconds < 300
    assert SENT_BYTES <= system.sent_bytes < SENT_BYTES * 1.01
    check_progress(system.reports, len(NEXT_CONTENT))
    assert max(report.copied_bytes for report in system.reports) == SHARED_BYTES
    saving = f"the system had {SHARED_BYTES} bytes in another image, {SENT_BYTES} bytes were sent"
    assert system.log("info") == [f"{NEXT_IMAGE}: {saving}"]


LIES: dict[str, Callable[..., tuple[Any, ...]]] = {
    "copies other bytes": lambda n, src, at, length, dst, to: (n, src, at + 1, length, dst, to),
    "copies fewer bytes": lambda n, src, at, _, dst, to: (n, src, at, 1, dst, to),
    "refuses": lambda n, _, at, length, dst, to: (n, dst, at, length, dst, to),
}


@pytest.mark.parametrize("lie", LIES)
@pytest_twisted.ensureDeferred
async def test_server_that_copies_wrongly(
    system: FarSystem, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """If the server confirms what it has not done, or fails, the whole file is sent."""
    copy_request = packets.copy_request
    monkeypatch.setattr(packets, "copy_request", lambda *args: copy_request(*LIES[lie](*args)))
    directory = system.open("copy-data", system.environment("copy-data"))
    assert await system.deliver(directory) == Verification("sha256")
    assert system.sent_bytes > len(NEXT_CONTENT)
    assert [report.copied_bytes for report in system.reports if report.stage == "deliver"][-1] == 0
    (line,) = system.log("warn")
    assert line.startswith(f"{NEXT_IMAGE} is sent as a whole: ")


PROGRAMS = {
    "does nothing": "exit 0",
    "is old": "echo 'dd: invalid input flag: skip_bytes' >&2; exit 1",
    "prints": "echo Welcome >&9; echo",
}


@pytest.mark.parametrize("script", PROGRAMS.values(), ids=PROGRAMS)
@pytest_twisted.ensureDeferred
async def test_dd_that_copies_wrongly(system: FarSystem, script: str) -> None:
    """If `dd` of the system does not do what it should, the whole file is sent."""
    is_finishing = f'case "$*" in *fsync*) exec {need("dd")} "$@";; esac'
    env = system.environment("commands", {"dd": f"{is_finishing}; {script}"})
    assert await system.deliver(system.open("commands", env)) == Verification("sha256")
    assert system.sent_bytes > len(NEXT_CONTENT)
    assert len(system.log("warn")) == 1


@pytest_twisted.ensureDeferred
async def test_account_without_digests(system: FarSystem) -> None:
    """Without a digest of the result nothing is copied, and the log says why."""
    directory = system.open("copy-data", system.environment("copy-data", commands=False))
    assert (await system.deliver(directory)).method == "samples"
    assert system.sent_bytes > len(NEXT_CONTENT)
    assert "the account runs no commands" in system.log("info")[0]


@pytest_twisted.ensureDeferred
async def test_doubts_before_the_delivery(system: FarSystem) -> None:
    """If the other image is not as it should be, the whole file is sent, and the log says why."""
    env = system.environment("copy-data")
    directory = system.open("copy-data", env)
    first_byte = (SharedRange(0, 0, 1),)
    reasons = {
        DeltaSource(IMAGE, len(CONTENT) + 1, first_byte): "the other image has another size",
        DeltaSource(f"{'a' * 64}.squashfs", 9, first_byte): "the other image is not there",
        DeltaSource(IMAGE, 9, (SharedRange(0, 9, 9),)): "its ranges are longer than the files",
    }
    for delta, reason in reasons.items():
        await system.deliver(directory, delta)
        assert system.log("info") == [f"{NEXT_IMAGE} is sent as a whole: {reason}"]
    await system.deliver(system.open("copy-data", env, verify="sample"))
    assert '"verify" is "sample"' in system.log("info")[0]
    assert {report.copied_bytes for report in system.reports} == {0}


@pytest_twisted.ensureDeferred
async def test_image_that_cannot_be_read(
    system: FarSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system does not read the other image in time, the whole file is sent at once."""
    time_limit = proof.time_limit

    def short_limit(size: int) -> float:
        return 0.5 if size == 4096 else time_limit(size)  # the bytes that are read for a test

    monkeypatch.setattr(proof, "time_limit", short_limit)
    gate = tmp_path / "gate"
    waits = f"while [ ! -e {gate} ]; do sleep 0.02; done"
    head = f'case "$*" in *{IMAGE}) {waits};; esac; exec {need("head")} "$@"'
    directory = system.open("copy-data", system.environment("copy-data", {"head": head}))
    assert await system.deliver(directory) == Verification("sha256")
    gate.touch()
    assert "could not be checked in time" in system.log("info")[0]
    assert len(system.connections) == 1


@pytest.mark.parametrize("way", ["copy-data", "commands"])
@pytest_twisted.ensureDeferred
async def test_broken_connection(
    system: FarSystem, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """After a break the delivery is resumed, and what the system has is still not sent."""
    monkeypatch.setattr(SftpFiles, "copy_tail", 1 << 20)
    breaks: list[int] = []

    def report(progress: Progress) -> None:
        if not breaks and progress.done > len(NEW_BYTES) // 2:
            breaks.append(len(system.reports))
            system.kill()

    await system.deliver(system.open(way, system.environment(way)), report=report)
    assert breaks
    assert len(system.connections) == 2
    assert system.sent_bytes < 2.1 * SENT_BYTES
    assert system.log("warn") == []


@pytest.mark.parametrize("way", ["copy-data", "commands"])
@pytest_twisted.ensureDeferred
async def test_server_that_is_killed_at_random(
    system: FarSystem, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Whenever the server is killed, no wrong image is installed, and later attempts succeed."""
    monkeypatch.setattr(SftpFiles, "copy_tail", 1 << 20)
    points = sorted(random.Random(BREAKS).sample(range(1, len(NEXT_CONTENT)), BREAKS))
    killed_connections: list[int] = []

    def report(progress: Progress) -> None:
        assert names(system.root)[0] == IMAGE
        assert NEXT_IMAGE not in names(system.root)
        if (
            points
            and progress.done >= points[0]
            and len(system.connections) not in (killed_connections)
        ):
            points.pop(0)
            killed_connections.append(len(system.connections))
            system.kill()

    directory = system.open(way, system.environment(way))
    for _ in range(BREAKS + 1):
        with suppress(DeliveryFailed):
            await system.deliver(directory, report=report)
            break
    assert (system.root / NEXT_IMAGE).read_bytes() == NEXT_CONTENT
    assert killed_connections


@pytest_twisted.ensureDeferred
async def test_server_that_breaks_at_each_copy(
    system: FarSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server ends at each copy, the whole file is sent after a few attempts."""
    monkeypatch.setattr(packets, "copy_request", lambda *_: b"\xff" * 100)
    await system.deliver(system.open("copy-data", system.environment("copy-data")))
    assert 2 <= len(system.connections) <= 3
    assert "the last attempts made no progress" in system.log("info")[0]


@pytest_twisted.ensureDeferred
async def test_cancelled(system: FarSystem, tmp_path: Path) -> None:
    """A canceled delivery leaves no file, also if a program there still runs for a moment."""
    marker, gate = tmp_path / "begun", tmp_path / "gate"
    waits = f"touch {marker}; while [ ! -e {gate} ]; do sleep 0.02; done"
    is_copying = f'case "$*" in *skip_bytes*) {waits};; esac'
    env = system.environment("commands", {"dd": f'{is_copying}; exec {need("dd")} "$@"'})
    directory = system.open("commands", env)
    running = Deferred.fromCoroutine(
        directory.install(system.source, NEXT_IMAGE, SHA256, ignore, DELTA)
    )
    while not marker.exists():
        await pause(0.01, reactor)
    assert len(names(system.root)) == 3
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert names(system.root) == [IMAGE]
    gate.touch()
    await directory.close()
    assert names(system.root) == [IMAGE]


@pytest.mark.parametrize("way", WAYS)
@pytest_twisted.ensureDeferred
async def test_part_of_an_earlier_delivery(
    system: FarSystem, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The beginning of the file that is already there is neither copied nor sent again."""
    monkeypatch.setattr(SftpFiles, "copy_tail", 0)
    monkeypatch.setattr(SftpFiles, "unreliable_tail", 0)
    size = 6_000_000
    (system.root / PART).write_bytes(NEXT_CONTENT[:size])
    await system.deliver(system.open(way, system.environment(way)))
    assert system.reports[0].done == size
    assert max(report.copied_bytes for report in system.reports) == DELTA.ranges[1].length
    assert system.sent_bytes < (SENT_BYTES - 1_000_000) * 1.03
