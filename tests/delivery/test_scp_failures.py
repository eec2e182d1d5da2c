"""Failing deliveries over SCP: connections that break or freeze, full disks, faulty programs."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.delivery.hosts import Hosts
from shiftergw.delivery.remote import RemoteDirectory, RemoteOptions
from shiftergw.delivery.scp import IN_FLIGHT
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.errors import DeliveryFailed, NoSpace
from shiftergw.model.records import Progress
from shiftergw.plumbing.channel import Connection
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.connection import connect
from tests.delivery.conch_client import account
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore, names
from tests.delivery.far import (
    FIRST_PAUSE,
    UNUSED_ACCOUNT,
    Opens,
    account_on,
    connection,
    large_file,
    program_is,
    retried_silence,
    without_ssh,
)
from tests.installed_reactor import reactor
from tests.matrices import LONG, combinations
from tests.parts import need, need_root
from tests.patience import patient
from tests.sshd import Sshd

LARGE = int(os.environ.get("SHIFTERGW_UPLOAD_MB", "48" if LONG else "24")) << 20
"""Bytes of the file whose delivery breaks; the variable makes it larger."""

BREAKS = 10 if LONG else 5
STRETCH = (LARGE >> 20) // 12 << 20
IDLE_SECONDS = 1.0
NOTICE_SECONDS = 8.0
USUAL_SECONDS = 20.0

begin = partial(ScpFiles.begin, stretch=STRETCH)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Give a converted file whose delivery takes a while, and its digest."""
    return large_file(tmp_path_factory.mktemp("large"), LARGE)


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """Run a server that has no SFTP."""
    with Sshd("Subsystem sftp /bin/false") as running:
        yield running


@pytest.fixture
def opens(threads: Threads, root: Path, directories: list[RemoteDirectory]) -> Opens:
    """Give a function that opens image directories, on a server or with a stand-in for `ssh`."""

    def open_directory(
        server: Sshd | Mapping[str, str],
        transport: str = "openssh",
        idle_seconds: float = USUAL_SECONDS,
        verify: Literal["sha256", "sample"] = "sha256",
        before_connect: Callable[[], None] = lambda: None,
    ) -> RemoteDirectory:
        async def connect_to_server() -> Connection:
            before_connect()
            if not isinstance(server, Sshd):
                return connection(UNUSED_ACCOUNT, server, idle_seconds)
            if transport == "openssh":
                return connection(account_on(server), idle_seconds=idle_seconds)
            return await connect(account(server), reactor, threads, idle_seconds=idle_seconds)

        directories.append(
            RemoteDirectory(
                Hosts({"127.0.0.1": connect_to_server}, reactor),
                PurePosixPath(root),
                threads,
                reactor,
                RemoteOptions(verify, idle_seconds, begin, first_pause=FIRST_PAUSE),
            )
        )
        return directories[-1]

    return open_directory


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "verify"), combinations(["openssh", "conch"], ["sha256", "sample"])
)
@pytest_twisted.ensureDeferred
async def test_broken_connections(
    sshd: Sshd,
    opens: Opens,
    root: Path,
    large: tuple[Path, str],
    transport: str,
    verify: Literal["sha256", "sample"],
) -> None:
    """A delivery whose server dies again and again is resumed, and the file is right."""
    source, sha256 = large
    directory = opens(sshd, transport, verify=verify)
    points = sorted(random.Random(1).sample(range(1, LARGE - IN_FLIGHT), BREAKS))
    logins = 0
    reports: list[int] = []

    def report(progress: Progress) -> None:
        nonlocal logins
        if progress.stage == "deliver":
            reports.append(progress.done)
        login_count = sshd.log.read_text().count("Accepted publickey")
        if login_count == logins or not points or progress.done < points[0]:
            return
        logins = login_count
        while points and points[0] <= progress.done:
            points.pop(0)
        # A second file may be a part of a stretch.
        assert f"{IMAGE}.partial.{sha256[:16]}" in names(root)
        assert len(names(root)) <= 2
        sshd.end_connections()

    await directory.install(source, IMAGE, sha256, report)
    assert points == []
    assert logins > BREAKS // 2
    repeated_bytes = max(before - now for before, now in itertools.pairwise(reports))
    assert repeated_bytes <= STRETCH + IN_FLIGHT
    assert reports[-1] == LARGE
    assert names(root) == [IMAGE]
    assert digest_of(root / IMAGE) == sha256
    assert (root / IMAGE).stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("verify", ["sha256", "sample"])
@pytest_twisted.ensureDeferred
async def test_part_by_another_protocol(
    opens: Opens,
    root: Path,
    tmp_path: Path,
    large: tuple[Path, str],
    verify: Literal["sha256", "sample"],
) -> None:
    """A part with a hole, such as SFTP may leave, is sent again from its start."""
    source, sha256 = large
    part_content = bytearray(source.read_bytes())
    part_content[LARGE - 200_000 : LARGE - 100_000] = bytes(100_000)
    (root / f"{IMAGE}.partial.{sha256[:16]}").write_bytes(part_content)
    reports: list[int] = []
    directory = opens(without_ssh(tmp_path / "bin"), verify=verify)
    await directory.install(source, IMAGE, sha256, lambda progress: reports.append(progress.done))
    assert reports[0] < LARGE // 2
    assert names(root) == [IMAGE]
    assert digest_of(root / IMAGE) == sha256


@pytest.mark.parametrize("transport", ["conch", "openssh"])
@pytest_twisted.ensureDeferred
@pytest.mark.slow
async def test_frozen_server(
    sshd: Sshd, opens: Opens, root: Path, large: tuple[Path, str], transport: str
) -> None:
    """A silent server is given up within the time limit, and the delivery is resumed."""
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

    directory = opens(sshd, transport, retried_silence(IDLE_SECONDS), before_connect=thaw)
    with freeze:
        await directory.install(source, IMAGE, sha256, report)
    assert notice_times[0] - began[0] < patient(NOTICE_SECONDS)
    assert names(root) == [IMAGE]
    assert digest_of(root / IMAGE) == sha256


@pytest_twisted.ensureDeferred
async def test_frozen_scp(
    opens: Opens, root: Path, tmp_path: Path, large: tuple[Path, str]
) -> None:
    """A program that freezes on a working server is given up within the time limit."""
    source, sha256 = large
    env = program_is(tmp_path, "scp", f'echo $$ > {tmp_path}/pid; exec {need("scp")} "$@"')
    began: list[float] = []
    notice_times: list[float] = []
    freeze: list[int] = []

    def note_reconnect() -> None:
        if began and not notice_times:
            notice_times.append(time.monotonic())

    def report(progress: Progress) -> None:
        if not began and progress.done > LARGE // 2:
            began.append(time.monotonic())
            freeze.append(int((tmp_path / "pid").read_text()))
            os.kill(freeze[0], signal.SIGSTOP)

    directory = opens(
        env, idle_seconds=retried_silence(IDLE_SECONDS), before_connect=note_reconnect
    )
    try:
        await directory.install(source, IMAGE, sha256, report)
        assert IDLE_SECONDS / 2 < notice_times[0] - began[0] < patient(NOTICE_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.kill(freeze[0], signal.SIGKILL)
    assert names(root) == [IMAGE]
    assert digest_of(root / IMAGE) == sha256


@pytest.mark.parametrize("transport", ["conch", "openssh"])
@pytest_twisted.ensureDeferred
async def test_account_without_commands(opens: Opens, root: Path, transport: str) -> None:
    """An account that is restricted to SFTP fails at once, with a remedy."""
    with (
        Sshd("ForceCommand internal-sftp") as sshd,
        pytest.raises(DeliveryFailed, match="runs no commands") as caught,
    ):
        await opens(sshd, transport).write(b"x", META)
    assert '"transfer": "scp" needs' in caught.value.remedy
    assert names(root) == []


@pytest_twisted.ensureDeferred
async def test_server_of_one_session(opens: Opens, root: Path, large: tuple[Path, str]) -> None:
    """If the server runs one program at a time, a delivery succeeds beside other requests."""
    source, sha256 = large
    listings: list[Deferred[Any]] = []
    with Sshd("Subsystem sftp /bin/false", "MaxSessions 1") as sshd:
        directory = opens(sshd, "conch")

        def report(_: Progress) -> None:
            if not listings:
                listings.append(Deferred.fromCoroutine(directory.list()))

        await directory.install(source, IMAGE, sha256, report)
        (listing,) = listings
        assert [file.name for file in await listing] in ([], [IMAGE])
        assert [file.name for file in await directory.list()] == [IMAGE]
        assert sshd.log.read_text().count("Accepted publickey") in {1, 2}
    assert digest_of(root / IMAGE) == sha256


@pytest.mark.parametrize("transport", ["conch", "openssh"])
@pytest_twisted.ensureDeferred
async def test_connection_that_broke_while_idle(
    sshd: Sshd, opens: Opens, root: Path, transport: str
) -> None:
    """An idle connection that broke is replaced."""
    directory = opens(sshd, transport)
    await directory.write(b"1", META)
    sshd.end_connections()
    assert await directory.exists(META) is not None
    sshd.end_connections()
    await directory.write(b"2", META)
    assert (root / META).read_bytes() == b"2"


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


@pytest.mark.parametrize("part_size", [0, 3 << 20])
@pytest_twisted.ensureDeferred
async def test_full_disk(
    opens: Opens,
    root: Path,
    tmp_path: Path,
    source: Path,
    mounts: Callable[[str], None],
    part_size: int,
) -> None:
    """A full disk raises `NoSpace`, and the partial file is removed."""
    mounts("size=9m")
    directory = opens(without_ssh(tmp_path / "bin"))
    await directory.write(b"x", META)
    (root / f"{IMAGE}.partial.{SHA256[:16]}").write_bytes(CONTENT[:part_size])
    with pytest.raises(NoSpace) as caught:
        await directory.install(source, IMAGE, SHA256, ignore)
    assert str(root) not in str(caught.value)
    assert names(root) == [META]
