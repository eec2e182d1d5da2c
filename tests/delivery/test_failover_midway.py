"""Deliveries to systems of several hosts, which break, hang or die meanwhile: real servers."""

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
from shiftergw.model import Progress
from shiftergw.plumbing.timing import pause
from shiftergw.sftp import packets
from shiftergw.sftp.outgoing_file import REACH
from shiftergw.sftp.session import IN_FLIGHT
from tests.delivery.contract import IMAGE, META, ignore, names
from tests.delivery.far import reactor, sftp_server
from tests.delivery.several import System
from tests.parts import need_root
from tests.patience import patient, scaled
from tests.sshd import Sshd

SIZE = 40 << 20
SOON = 20.0
"""Seconds in which all that is tried has failed, on a busy machine."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Give a converted file that takes a while, and its digest."""
    path = tmp_path_factory.mktemp("large") / "converted"
    content = random.Random(SIZE).randbytes(SIZE)
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def at(point: int, action: Callable[[], None], heard: list[Progress]) -> Callable[[Progress], None]:
    """Return a report that acts once when so much has been delivered."""
    done: list[bool] = []

    def report(progress: Progress) -> None:
        heard.append(progress)
        if not done and progress.done >= point:
            done.append(True)
            action()

    return report


@pytest_twisted.ensureDeferred
async def test_a_host_dies_in_the_middle(
    system: System, pair: tuple[Sshd, Sshd], root: Path, large: tuple[Path, str]
) -> None:
    """The other host, which sees the same directory, goes on from what is there and verified."""
    source, sha256 = large
    point = random.randrange(SIZE // 2, SIZE - IN_FLIGHT)
    directory = system.directory([system.way(one) for one in pair], root)
    heard: list[Progress] = []
    died: list[int] = []

    def die() -> None:
        died.append(len(heard))
        pair[0].stop()

    await directory.install(source, IMAGE, sha256, at(point, die, heard))
    assert names(root) == [IMAGE], point
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256, point
    assert min(one.done for one in heard[died[0] :]) >= point - REACH, point
    assert heard[-1].done == heard[-1].total == SIZE


@pytest_twisted.ensureDeferred
async def test_hosts_without_a_common_directory(system: System, large: tuple[Path, str]) -> None:
    """A host that sees nothing of what the other one took begins anew, to the right file."""
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
        ways = [system.way(one) for one in hosts]
        directory = system.directory(ways, PurePosixPath("/images"))
        heard: list[Progress] = []
        report = at(SIZE // 2, hosts[0].stop, heard)
        await directory.install(source, IMAGE, sha256, report)
        assert min(one.done for one in heard[len(heard) // 3 :]) < SIZE // 2 - REACH
        assert names(roots[0]) == [f"{IMAGE}.partial.{sha256[:16]}"]
        assert names(roots[1]) == [IMAGE]
        assert hashlib.sha256((roots[1] / IMAGE).read_bytes()).hexdigest() == sha256


@pytest_twisted.ensureDeferred
async def test_all_hosts_die(
    system: System, pair: tuple[Sshd, Sshd], root: Path, large: tuple[Path, str]
) -> None:
    """A system that stays away is told in time; what it took already is there for the next pull."""
    source, sha256 = large
    directory = system.directory([system.way(one) for one in pair], root)
    began: list[float] = []

    def die() -> None:
        began.append(time.monotonic())
        for one in pair:
            one.stop()

    with pytest.raises(DeliveryFailed, match="cannot be reached") as caught:
        await directory.install(source, IMAGE, sha256, at(SIZE // 2, die, []))
    assert time.monotonic() - began[0] < patient(SOON)
    assert "a: The system" in caught.value.detail
    assert "b: The system" in caught.value.detail
    assert names(root) == [f"{IMAGE}.partial.{sha256[:16]}"]
    pair[1].start()
    heard: list[Progress] = []
    await directory.install(source, IMAGE, sha256, heard.append)
    assert heard[0].done >= SIZE // 2 - REACH
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256
    assert names(root) == [IMAGE]


@pytest.mark.parametrize("waiting", ["for the next try", "for a host"])
@pytest_twisted.ensureDeferred
async def test_closed_while_it_goes_on(
    system: System,
    pair: tuple[Sshd, Sshd],
    root: Path,
    large: tuple[Path, str],
    black_hole: int,
    waiting: str,
) -> None:
    """A delivery that waits ends at once when the gateway stops, and its part stays."""
    source, sha256 = large
    if waiting == "for a host":
        hole = system.way(pair[1], port=black_hole, connect_seconds=1000)
        directory = system.directory([system.way(pair[0]), hole], root)
    else:
        directory = system.directory([system.way(pair[0])], root, first_pause=1000)
    died: Deferred[None] = Deferred()

    def die() -> None:
        pair[0].stop()
        died.callback(None)

    running = Deferred.fromCoroutine(
        directory.install(source, IMAGE, sha256, at(SIZE // 2, die, []))
    )
    await died
    await pause(1, reactor)
    assert not running.called
    began = time.monotonic()
    await directory.close()
    with pytest.raises(DeliveryFailed, match="stopping"):
        await running
    assert time.monotonic() - began < patient(SOON / 2)
    assert names(root) == [f"{IMAGE}.partial.{sha256[:16]}"]


def hello_length() -> int:
    """Return how long the SFTP server's first answer is."""
    argv = [sftp_server(), "-P", "limits"]
    said = subprocess.run(argv, input=packets.hello(), stdout=subprocess.PIPE, check=False).stdout
    return len(said)


@pytest_twisted.ensureDeferred
async def test_host_whose_files_hang(
    system: System, root: Path, tmp_path: Path, large: tuple[Path, str]
) -> None:
    """A host that lets the gateway in and then answers nothing is left for another one."""
    script = tmp_path / "hangs"
    script.write_text(
        f"#!/bin/sh\n{sftp_server()} -P limits | {{ head -c {hello_length()}; cat > /dev/null; }}\n"
    )
    script.chmod(0o755)
    source, sha256 = large
    with Sshd(f"ForceCommand {script}") as first, Sshd() as second:
        ways = [system.way(first), system.way(second)]
        directory = system.directory(ways, root, idle_seconds=scaled(1))
        await directory.write(b"1", META)
        other = system.directory(ways, root, idle_seconds=scaled(1))
        await other.install(source, IMAGE, sha256, ignore)
        assert first.log.read_text().count("Starting session: forced-command") == 2
    assert names(root) == sorted([IMAGE, META])
