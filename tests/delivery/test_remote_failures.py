"""Failing deliveries over SFTP: connections that break or freeze, full disks."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest
import pytest_twisted

from shiftergw.errors import DeliveryFailed, NoSpace
from shiftergw.model.records import Progress
from shiftergw.sftp.outgoing_file import REACH
from shiftergw.sftp.session import IN_FLIGHT
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore, names
from tests.delivery.far import (
    UNUSED_ACCOUNT,
    Opens,
    account_on,
    large_file,
    retried_silence,
    without_ssh,
)
from tests.matrices import LONG
from tests.parts import need, need_root
from tests.patience import patient
from tests.sshd import Sshd

LARGE = int(os.environ.get("SHIFTERGW_UPLOAD_MB", "64" if LONG else "36")) << 20
"""Bytes of the file whose delivery breaks; the variable makes it larger."""

BREAKS = 10 if LONG else 5
PART = 8 << 20
IDLE_SECONDS = 1.0
NOTICE_SECONDS = 8.0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Give a converted file whose delivery takes a while, and its digest."""
    return large_file(tmp_path_factory.mktemp("large"), LARGE)


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """Run a server."""
    with Sshd() as running:
        yield running


@pytest.mark.parametrize("verify", ["sha256", "sample"])
@pytest_twisted.ensureDeferred
@pytest.mark.slow
async def test_broken_connections(
    sshd: Sshd,
    opens: Opens,
    root: Path,
    large: tuple[Path, str],
    verify: Literal["sha256", "sample"],
) -> None:
    """A delivery whose server dies again and again is resumed, and the file is right."""
    source, sha256 = large
    directory = opens(account_on(sshd), root, verify=verify)
    part = root / f"{IMAGE}.partial.{sha256[:16]}"
    points = sorted(random.Random(1).sample(range(REACH, LARGE - IN_FLIGHT), BREAKS))
    connections = 0
    reports: list[int] = []

    def report(progress: Progress) -> None:
        nonlocal connections
        if progress.stage == "deliver":
            reports.append(progress.done)
        session_count = sshd.log.read_text().count("Starting session: subsystem 'sftp'")
        if session_count == connections or not points or progress.done < points[0]:
            return
        connections = session_count
        while points and points[0] <= progress.done:
            points.pop(0)
        assert names(root) == [part.name]
        sshd.end_connections()

    await directory.install(source, IMAGE, sha256, report)
    assert points == []
    assert connections > BREAKS // 2
    assert all(now >= before - REACH for before, now in itertools.pairwise(reports))
    assert reports[-1] == LARGE
    assert names(root) == [IMAGE]
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256


@pytest_twisted.ensureDeferred
async def test_server_that_stays_down(
    sshd: Sshd, opens: Opens, root: Path, large: tuple[Path, str]
) -> None:
    """A delivery to a server that stays down fails in time; a later delivery resumes it."""
    source, sha256 = large
    directory = opens(account_on(sshd), root)
    began: list[float] = []

    def report(progress: Progress) -> None:
        if not began and progress.done > LARGE // 2:
            began.append(time.monotonic())
            sshd.stop()

    with pytest.raises(DeliveryFailed, match="cannot be reached"):
        await directory.install(source, IMAGE, sha256, report)
    assert time.monotonic() - began[0] < patient(NOTICE_SECONDS)
    assert names(root) == [f"{IMAGE}.partial.{sha256[:16]}"]
    sshd.start()
    reports: list[Progress] = []
    await directory.install(source, IMAGE, sha256, reports.append)
    assert reports[0].done > LARGE // 2 - REACH
    assert names(root) == [IMAGE]
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("commands", [True, False])
@pytest.mark.parametrize("damage", ["first", "last", "longer", "link"])
@pytest_twisted.ensureDeferred
async def test_part_with_other_content(
    opens: Opens,
    root: Path,
    tmp_path: Path,
    large: tuple[Path, str],
    damage: str,
    commands: bool,
) -> None:
    """A temporary that is not the beginning of the file is replaced."""
    source, sha256 = large
    part = root / f"{IMAGE}.partial.{sha256[:16]}"
    part_content = bytearray(source.read_bytes()[: PART + REACH])
    if damage == "first":
        part_content[0] ^= 1
    elif damage == "last":
        part_content[PART - 1] ^= 1
    elif damage == "longer":
        part_content = bytearray(LARGE + 1)
    part.write_bytes(part_content)
    if damage == "link":
        part.rename(tmp_path / "precious")
        part.symlink_to(tmp_path / "precious")
    env = without_ssh(tmp_path / "bin", commands=commands)
    directory = opens(UNUSED_ACCOUNT, root, env=env)
    reports: list[Progress] = []
    await directory.install(source, IMAGE, sha256, reports.append)
    assert reports[0].done < PART
    assert names(root) == [IMAGE]
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256
    if damage == "link":
        assert (tmp_path / "precious").read_bytes() == part_content


@pytest.mark.parametrize("commands", [True, False])
@pytest_twisted.ensureDeferred
async def test_part_that_has_its_last_byte(
    opens: Opens, root: Path, tmp_path: Path, large: tuple[Path, str], commands: bool
) -> None:
    """A part as long as the file may have a hole near its end, which samples may miss."""
    source, sha256 = large
    part_content = bytearray(source.read_bytes())
    hole = slice(LARGE - 200_000, LARGE - 100_000)
    part_content[hole] = bytes(100_000)
    (root / f"{IMAGE}.partial.{sha256[:16]}").write_bytes(part_content)
    env = without_ssh(tmp_path / "bin", commands=commands)
    reports: list[Progress] = []
    await opens(UNUSED_ACCOUNT, root, env=env).install(source, IMAGE, sha256, reports.append)
    assert reports[0].done == LARGE - REACH
    assert names(root) == [IMAGE]
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("commands", [True, False])
@pytest_twisted.ensureDeferred
async def test_damage_on_the_way(
    opens: Opens, root: Path, tmp_path: Path, source: Path, commands: bool
) -> None:
    """A file that was damaged during the delivery is not installed; the next attempt succeeds."""
    env = without_ssh(tmp_path / "bin", commands=commands)
    directory = opens(UNUSED_ACCOUNT, root, env=env)
    part = root / f"{IMAGE}.partial.{SHA256[:16]}"

    def report(progress: Progress) -> None:
        if progress.done == len(CONTENT):
            with part.open("r+b") as file:
                file.write(bytes([CONTENT[0] ^ 1]))

    with pytest.raises(DeliveryFailed, match="not what was sent"):
        await directory.install(source, IMAGE, SHA256, report)
    assert names(root) == []
    await directory.install(source, IMAGE, SHA256, ignore)
    assert (root / IMAGE).read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_frozen_server(sshd: Sshd, opens: Opens, root: Path, large: tuple[Path, str]) -> None:
    """A silent connection is given up within its time limit, and the delivery is resumed."""
    source, sha256 = large
    freeze = ExitStack()
    began: list[float] = []
    notice_times: list[float] = []

    def thaw() -> None:
        if began and not notice_times:
            notice_times.append(time.monotonic())
            freeze.close()

    def report(progress: Progress) -> None:
        if not began and progress.done > LARGE // 2:
            freeze.enter_context(sshd.suspension())
            began.append(time.monotonic())

    account = account_on(sshd)
    directory = opens(
        account, root, idle_seconds=retried_silence(IDLE_SECONDS), before_connect=thaw
    )
    with freeze:
        await directory.install(source, IMAGE, sha256, report)
    assert notice_times[0] - began[0] < patient(NOTICE_SECONDS)
    assert names(root) == [IMAGE]
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256


@pytest_twisted.ensureDeferred
async def test_frozen_sftp_server(opens: Opens, root: Path, tmp_path: Path) -> None:
    """An SFTP server that freezes behind a working `ssh` is given up within the time limit."""
    env = without_ssh(tmp_path / "bin", before=f"echo $$ > {tmp_path}/pid")
    directory = opens(UNUSED_ACCOUNT, root, env=env, idle_seconds=IDLE_SECONDS)
    assert await directory.exists(META) is None
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert await directory.exists(META) is None
    assert IDLE_SECONDS <= time.monotonic() - began < patient(NOTICE_SECONDS)
    await directory.write(b"x", META)
    assert names(root) == [META]


@pytest_twisted.ensureDeferred
async def test_connection_that_broke_while_idle(sshd: Sshd, opens: Opens, root: Path) -> None:
    """An idle connection that broke is replaced, whichever method needs it."""
    directory = opens(account_on(sshd), root)
    await directory.write(b"1", META)

    async def size() -> int:
        file = await directory.exists(META)
        return file.size if file is not None else -1

    async def sizes() -> list[int]:
        return [file.size for file in await directory.list()]

    for number, (request, answer) in enumerate(
        [
            (lambda: directory.write(b"22", META), None),
            (size, 2),
            (sizes, [2]),
            (lambda: directory.digest(META), hashlib.sha256(b"22").hexdigest()),
            (lambda: directory.sweep(0), 0),
            (lambda: directory.remove(META), None),
            (directory.free_space, None),
        ]
    ):
        sshd.end_connections()
        result = await request()
        assert answer is None or result == answer, number
        assert (root / META).exists() == (number < 5)


@pytest.fixture
def mounts(root: Path) -> Iterator[Callable[[str], None]]:
    """Give a function that mounts a small file system on the image directory."""
    need_root()
    mounts_done: list[str] = []

    def mount(options: str) -> None:
        subprocess.run([need("mount"), "-t", "tmpfs", "-o", options, "tmpfs", root], check=True)
        mounts_done.append(options)

    yield mount
    for _ in mounts_done:
        subprocess.run([need("umount"), "--lazy", root], check=True)


@pytest_twisted.ensureDeferred
async def test_full_disk(
    opens: Opens,
    root: Path,
    tmp_path: Path,
    source: Path,
    mounts: Callable[[str], None],
) -> None:
    """A full disk raises `NoSpace`, and the partial file is removed."""
    mounts("size=9m")  # less than the file, but not almost full
    env = without_ssh(tmp_path / "bin")
    directory = opens(UNUSED_ACCOUNT, root, env=env)
    await directory.write(b"x", META)
    with pytest.raises(NoSpace) as caught:
        await directory.install(source, IMAGE, SHA256, ignore)
    assert str(root) not in str(caught.value)
    assert names(root) == [META]
