"""Hosts of a system that break, hang or die during a delivery: real servers."""

from __future__ import annotations

import hashlib
import random
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.errors import DeliveryFailed
from shiftergw.model.records import Progress
from shiftergw.plumbing.timing import pause
from shiftergw.sftp import packets
from shiftergw.sftp.outgoing_file import REACH
from shiftergw.sftp.session import IN_FLIGHT
from tests.delivery.contract import IMAGE, META, ignore, names
from tests.delivery.far import sftp_server
from tests.delivery.ssh_systems import System
from tests.installed_reactor import reactor
from tests.parts import need_root
from tests.patience import patient, stretch
from tests.sshd import Sshd

SIZE = 40 << 20
BUSY_SECONDS = 20.0
"""Seconds in which all retries have failed, on a busy machine."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Give a converted file whose delivery takes a while, and its digest."""
    path = tmp_path_factory.mktemp("large") / "converted"
    content = random.Random(SIZE).randbytes(SIZE)
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def at(
    point: int, action: Callable[[], None], reports: list[Progress]
) -> Callable[[Progress], None]:
    """Return a report function that runs `action` once, when `point` bytes are delivered."""
    done: list[bool] = []

    def report(progress: Progress) -> None:
        if progress.stage == "deliver":
            reports.append(progress)
        if not done and progress.done >= point:
            done.append(True)
            action()

    return report


@pytest_twisted.ensureDeferred
async def test_a_host_dies_in_the_middle(
    system: System, pair: tuple[Sshd, Sshd], root: Path, large: tuple[Path, str]
) -> None:
    """The other host sees the same directory and resumes the verified part."""
    source, sha256 = large
    point = random.randrange(SIZE // 2, SIZE - IN_FLIGHT)
    directory = system.directory([system.connector(host) for host in pair], root)
    reports: list[Progress] = []
    death: list[int] = []

    def die() -> None:
        death.append(len(reports))
        pair[0].stop()

    await directory.install(source, IMAGE, sha256, at(point, die, reports))
    assert names(root) == [IMAGE], point
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256, point
    assert min(report.done for report in reports[death[0] :]) >= point - REACH, point
    assert reports[-1].done == reports[-1].total == SIZE


@pytest_twisted.ensureDeferred
async def test_hosts_without_a_common_directory(system: System, large: tuple[Path, str]) -> None:
    """A host that does not see the part on the first host starts again, and the file is right."""
    need_root()
    source, sha256 = large
    with ExitStack() as stack:
        roots, hosts = [], []
        for _ in range(2):
            # Writable by root alone, as sshd demands.
            jail = stack.enter_context(TemporaryDirectory(dir="/run"))
            roots.append(Path(jail) / "images")
            roots[-1].mkdir()
            roots[-1].parent.chmod(0o755)
            settings = ("ForceCommand internal-sftp", f"ChrootDirectory {jail}")
            hosts.append(stack.enter_context(Sshd(*settings)))
        connectors = [system.connector(host) for host in hosts]
        directory = system.directory(connectors, PurePosixPath("/images"))
        reports: list[Progress] = []
        report = at(SIZE // 2, hosts[0].stop, reports)
        await directory.install(source, IMAGE, sha256, report)
        assert min(report.done for report in reports[len(reports) // 3 :]) < SIZE // 2 - REACH
        assert names(roots[0]) == [f"{IMAGE}.partial.{sha256[:16]}"]
        assert names(roots[1]) == [IMAGE]
        assert hashlib.sha256((roots[1] / IMAGE).read_bytes()).hexdigest() == sha256


@pytest_twisted.ensureDeferred
async def test_all_hosts_die(
    system: System, pair: tuple[Sshd, Sshd], root: Path, large: tuple[Path, str]
) -> None:
    """A delivery to a dead system fails in time; the next pull resumes the part."""
    source, sha256 = large
    directory = system.directory([system.connector(host) for host in pair], root)
    began: list[float] = []

    def die() -> None:
        began.append(time.monotonic())
        for host in pair:
            host.stop()

    with pytest.raises(DeliveryFailed, match="cannot be reached") as caught:
        await directory.install(source, IMAGE, sha256, at(SIZE // 2, die, []))
    assert time.monotonic() - began[0] < patient(BUSY_SECONDS)
    assert "a: The system" in caught.value.detail
    assert "b: The system" in caught.value.detail
    assert names(root) == [f"{IMAGE}.partial.{sha256[:16]}"]
    pair[1].start()
    reports: list[Progress] = []
    await directory.install(source, IMAGE, sha256, reports.append)
    assert reports[0].done >= SIZE // 2 - REACH
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256
    assert names(root) == [IMAGE]


@pytest.mark.parametrize("waiting", ["for the next try", "for a host"])
@pytest_twisted.ensureDeferred
async def test_closed_during_a_retry(
    system: System,
    pair: tuple[Sshd, Sshd],
    root: Path,
    large: tuple[Path, str],
    black_hole: int,
    waiting: str,
) -> None:
    """A waiting delivery ends at once when the gateway stops, and its part stays."""
    source, sha256 = large
    if waiting == "for a host":
        hole = system.connector(pair[1], port=black_hole, connect_seconds=1000)
        directory = system.directory([system.connector(pair[0]), hole], root)
    else:
        directory = system.directory([system.connector(pair[0])], root, first_pause=1000)
    death: Deferred[None] = Deferred()

    def die() -> None:
        pair[0].stop()
        death.callback(None)

    running = Deferred.fromCoroutine(
        directory.install(source, IMAGE, sha256, at(SIZE // 2, die, []))
    )
    await death
    await pause(1, reactor)
    assert not running.called
    began = time.monotonic()
    await directory.close()
    with pytest.raises(DeliveryFailed, match="stopping"):
        await running
    assert time.monotonic() - began < patient(BUSY_SECONDS / 2)
    assert names(root) == [f"{IMAGE}.partial.{sha256[:16]}"]


def hello_length() -> int:
    """Return the length of the first answer of the SFTP server, in bytes."""
    argv = [sftp_server(), "-P", "limits"]
    output = subprocess.run(argv, input=packets.hello(), stdout=subprocess.PIPE, check=False).stdout
    return len(output)


@pytest_twisted.ensureDeferred
async def test_host_whose_files_hang(
    system: System, root: Path, tmp_path: Path, large: tuple[Path, str]
) -> None:
    """A host that accepts the login and then stops answering is replaced by another host."""
    script = tmp_path / "hangs"
    script.write_text(
        f"#!/bin/sh\n{sftp_server()} -P limits | {{ head -c {hello_length()}; cat > /dev/null; }}\n"
    )
    script.chmod(0o755)
    source, sha256 = large
    with Sshd(f"ForceCommand {script}") as first, Sshd() as second:
        connectors = [system.connector(first), system.connector(second)]
        directory = system.directory(connectors, root, idle_seconds=stretch(1))
        await directory.write(b"1", META)
        second_directory = system.directory(connectors, root, idle_seconds=stretch(1))
        await second_directory.install(source, IMAGE, sha256, ignore)
        assert first.log.read_text().count("Starting session: forced-command") == 2
    assert names(root) == sorted([IMAGE, META])
