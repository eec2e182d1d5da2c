"""Deliveries to another machine that go wrong: connections that break or freeze, full disks."""

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
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.errors import DeliveryFailed, NoSpace
from shiftergw.model import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.sftp.outgoing_file import REACH
from shiftergw.sftp.session import IN_FLIGHT
from shiftergw.ssh.openssh import OpensshAccount
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore, names
from tests.delivery.far import NOBODY, account_on, far_directory, without_ssh
from tests.parts import need, need_root
from tests.patience import patient, scaled
from tests.sshd import Sshd

LARGE = int(os.environ.get("SHIFTERGW_UPLOAD_MB", "64")) << 20
"""Bytes of the file whose delivery breaks; more with the variable set."""

BREAKS = 10
PART = 8 << 20
IDLE_SECONDS = 2.0
NOTICED_WITHIN = 4 * IDLE_SECONDS


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Give a converted file that takes a while, and its digest."""
    path = tmp_path_factory.mktemp("large") / "converted"
    chance = random.Random(LARGE)
    content = b"".join(chance.randbytes(1 << 20) for _ in range(LARGE >> 20))
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """Run a server."""
    with Sshd() as running:
        yield running


Opens = Callable[..., RemoteDirectory]


@pytest.fixture
def opens(threads: Threads) -> Iterator[Opens]:
    """Give what makes adapters that are closed afterwards."""
    made: list[RemoteDirectory] = []

    def far(account: OpensshAccount, root: Path, **more: Any) -> RemoteDirectory:
        made.append(far_directory(account, PurePosixPath(root), threads, **more))
        return made[-1]

    yield far
    for directory in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


@pytest.mark.parametrize("verify", ["sha256", "sample"])
@pytest_twisted.ensureDeferred
async def test_broken_connections(
    sshd: Sshd,
    opens: Opens,
    root: Path,
    large: tuple[Path, str],
    verify: Literal["sha256", "sample"],
) -> None:
    """A delivery whose server dies again and again goes on where it was, to the right file."""
    source, sha256 = large
    directory = opens(account_on(sshd), root, verify=verify)
    part = root / f"{IMAGE}.partial.{sha256[:16]}"
    points = sorted(random.Random(1).sample(range(REACH, LARGE - IN_FLIGHT), BREAKS))
    connections = 0
    heard: list[int] = []

    def report(progress: Progress) -> None:
        nonlocal connections
        heard.append(progress.done)
        made = sshd.log.read_text().count("Starting session: subsystem 'sftp'")
        if made == connections or not points or progress.done < points[0]:
            return
        connections = made
        while points and points[0] <= progress.done:
            points.pop(0)
        assert names(root) == [part.name]
        sshd.end_connections()

    await directory.install(source, IMAGE, sha256, report)
    assert points == []
    assert connections > BREAKS // 2
    assert all(now >= before - REACH for before, now in itertools.pairwise(heard))
    assert heard[-1] == LARGE
    assert names(root) == [IMAGE]
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256


@pytest_twisted.ensureDeferred
async def test_server_that_stays_away(
    sshd: Sshd, opens: Opens, root: Path, large: tuple[Path, str]
) -> None:
    """A delivery to a server that does not come back fails in time; a later one goes on."""
    source, sha256 = large
    directory = opens(account_on(sshd), root)
    began: list[float] = []

    def report(progress: Progress) -> None:
        if not began and progress.done > LARGE // 2:
            began.append(time.monotonic())
            sshd.stop()

    with pytest.raises(DeliveryFailed, match="cannot be reached"):
        await directory.install(source, IMAGE, sha256, report)
    assert time.monotonic() - began[0] < patient(NOTICED_WITHIN)
    assert names(root) == [f"{IMAGE}.partial.{sha256[:16]}"]
    sshd.start()
    heard: list[Progress] = []
    await directory.install(source, IMAGE, sha256, heard.append)
    assert heard[0].done > LARGE // 2 - REACH
    assert names(root) == [IMAGE]
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("commands", [True, False])
@pytest.mark.parametrize("damage", ["first", "last", "longer", "link"])
@pytest_twisted.ensureDeferred
async def test_part_that_is_no_part(
    opens: Opens,
    root: Path,
    tmp_path: Path,
    large: tuple[Path, str],
    damage: str,
    commands: bool,
) -> None:
    """What lies under a temporary's name and is not the file's beginning is thrown away."""
    source, sha256 = large
    part = root / f"{IMAGE}.partial.{sha256[:16]}"
    there = bytearray(source.read_bytes()[: PART + REACH])
    if damage == "first":
        there[0] ^= 1
    elif damage == "last":
        there[PART - 1] ^= 1
    elif damage == "longer":
        there = bytearray(LARGE + 1)
    part.write_bytes(there)
    if damage == "link":
        part.rename(tmp_path / "precious")
        part.symlink_to(tmp_path / "precious")
    env = without_ssh(tmp_path / "bin", commands=commands)
    directory = opens(NOBODY, root, env=env)
    heard: list[Progress] = []
    await directory.install(source, IMAGE, sha256, heard.append)
    assert heard[0].done < PART
    assert names(root) == [IMAGE]
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256
    if damage == "link":
        assert (tmp_path / "precious").read_bytes() == there


@pytest.mark.parametrize("commands", [True, False])
@pytest_twisted.ensureDeferred
async def test_part_that_has_its_last_byte(
    opens: Opens, root: Path, tmp_path: Path, large: tuple[Path, str], commands: bool
) -> None:
    """A part as long as the file may have a hole before its end, which no sample need hit."""
    source, sha256 = large
    there = bytearray(source.read_bytes())
    hole = slice(LARGE - 200_000, LARGE - 100_000)
    there[hole] = bytes(100_000)
    (root / f"{IMAGE}.partial.{sha256[:16]}").write_bytes(there)
    env = without_ssh(tmp_path / "bin", commands=commands)
    heard: list[Progress] = []
    await opens(NOBODY, root, env=env).install(source, IMAGE, sha256, heard.append)
    assert heard[0].done == LARGE - REACH
    assert names(root) == [IMAGE]
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("commands", [True, False])
@pytest_twisted.ensureDeferred
async def test_damage_on_the_way(
    opens: Opens, root: Path, tmp_path: Path, source: Path, commands: bool
) -> None:
    """A file that changed on its way is not installed, and the next attempt begins anew."""
    env = without_ssh(tmp_path / "bin", commands=commands)
    directory = opens(NOBODY, root, env=env)
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
    """A connection that is silent is given up within the limit, and the delivery goes on."""
    source, sha256 = large
    frozen = ExitStack()
    began: list[float] = []
    noticed: list[float] = []

    def thaw() -> None:
        if began and not noticed:
            noticed.append(time.monotonic())
            frozen.close()

    def report(progress: Progress) -> None:
        if not began and progress.done > LARGE // 2:
            frozen.enter_context(sshd.suspended())
            began.append(time.monotonic())

    account = account_on(sshd)
    directory = opens(account, root, idle_seconds=scaled(IDLE_SECONDS), before_connect=thaw)
    with frozen:
        await directory.install(source, IMAGE, sha256, report)
    assert noticed[0] - began[0] < patient(NOTICED_WITHIN)
    assert names(root) == [IMAGE]
    assert hashlib.sha256((root / IMAGE).read_bytes()).hexdigest() == sha256


@pytest_twisted.ensureDeferred
async def test_frozen_sftp_server(opens: Opens, root: Path, tmp_path: Path) -> None:
    """Also a server behind an `ssh` that is well."""
    env = without_ssh(tmp_path / "bin", before=f"echo $$ > {tmp_path}/pid")
    directory = opens(NOBODY, root, env=env, idle_seconds=IDLE_SECONDS)
    assert await directory.exists(META) is None
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert await directory.exists(META) is None
    assert IDLE_SECONDS <= time.monotonic() - began < patient(NOTICED_WITHIN)
    await directory.write(b"x", META)
    assert names(root) == [META]


@pytest_twisted.ensureDeferred
async def test_connection_that_broke_unused(sshd: Sshd, opens: Opens, root: Path) -> None:
    """A kept connection that is gone when it is needed again is made anew, whoever needs it."""
    directory = opens(account_on(sshd), root)
    await directory.write(b"1", META)

    async def size() -> int:
        found = await directory.exists(META)
        return found.size if found is not None else -1

    async def sizes() -> list[int]:
        return [found.size for found in await directory.list()]

    for number, (ask, answer) in enumerate(
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
        found = await ask()
        assert answer is None or found == answer, number
        assert (root / META).exists() == (number < 5)


@pytest.fixture
def mounts(root: Path) -> Iterator[Callable[[str], None]]:
    """Give what mounts a small file system on the image directory."""
    need_root()
    mounted: list[str] = []

    def mount(options: str) -> None:
        subprocess.run([need("mount"), "-t", "tmpfs", "-o", options, "tmpfs", root], check=True)
        mounted.append(options)

    yield mount
    for _ in mounted:
        subprocess.run([need("umount"), "--lazy", root], check=True)


@pytest_twisted.ensureDeferred
async def test_full_disk(
    opens: Opens,
    root: Path,
    tmp_path: Path,
    source: Path,
    mounts: Callable[[str], None],
) -> None:
    """A full disk is called so, and what was written goes."""
    mounts("size=9m")  # less than the file, more than is almost nothing
    env = without_ssh(tmp_path / "bin")
    directory = opens(NOBODY, root, env=env)
    await directory.write(b"x", META)
    with pytest.raises(NoSpace) as caught:
        await directory.install(source, IMAGE, SHA256, ignore)
    assert str(root) not in str(caught.value)
    assert names(root) == [META]
