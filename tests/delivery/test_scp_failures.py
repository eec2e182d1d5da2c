"""Deliveries by SCP that go wrong: connections that break or freeze, full disks, wrong programs."""

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
from shiftergw.model import Progress
from shiftergw.plumbing.channel import Connection
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.connection import connect
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore, names
from tests.delivery.far import FIRST_PAUSE, NOBODY, account_on, connection, reactor, without_ssh
from tests.delivery.native import account
from tests.delivery.test_scp_files import program_is
from tests.parts import need, need_root
from tests.patience import patient, scaled
from tests.sshd import Sshd

LARGE = int(os.environ.get("SHIFTERGW_UPLOAD_MB", "48")) << 20
"""Bytes of the file whose delivery breaks; more with the variable set."""

BREAKS = 10
STRETCH = (LARGE >> 20) // 12 << 20
IDLE_SECONDS = 2.0
NOTICED_WITHIN = 4 * IDLE_SECONDS
USUAL_SECONDS = 20.0

begin = partial(ScpFiles.begin, stretch=STRETCH)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Give a converted file that takes a while, and its digest."""
    path = tmp_path_factory.mktemp("large") / "converted"
    chance = random.Random(LARGE)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(LARGE >> 20):
            piece = chance.randbytes(1 << 20)
            digest.update(piece)
            file.write(piece)
    return path, digest.hexdigest()


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """Run a server that has no SFTP."""
    with Sshd("Subsystem sftp /bin/false") as running:
        yield running


Opens = Callable[..., RemoteDirectory]


@pytest.fixture
def opens(threads: Threads, root: Path) -> Iterator[Opens]:
    """Give what makes adapters that are closed afterwards: on a server, or on a stand-in."""
    made: list[RemoteDirectory] = []

    def far(
        there: Sshd | Mapping[str, str],
        transport: str = "openssh",
        idle_seconds: float = USUAL_SECONDS,
        verify: Literal["sha256", "sample"] = "sha256",
        before_connect: Callable[[], None] = lambda: None,
    ) -> RemoteDirectory:
        async def connected() -> Connection:
            before_connect()
            if not isinstance(there, Sshd):
                return connection(NOBODY, there, idle_seconds)
            if transport == "openssh":
                return connection(account_on(there), idle_seconds=idle_seconds)
            return await connect(account(there), reactor, threads, idle_seconds=idle_seconds)

        made.append(
            RemoteDirectory(
                Hosts({"127.0.0.1": connected}, reactor),
                PurePosixPath(root),
                threads,
                reactor,
                RemoteOptions(verify, idle_seconds, begin, first_pause=FIRST_PAUSE),
            )
        )
        return made[-1]

    yield far
    for directory in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "verify"), [("conch", "sha256"), ("conch", "sample"), ("openssh", "sha256")]
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
    """A delivery whose server dies again and again goes on where it was, to the right file."""
    source, sha256 = large
    directory = opens(sshd, transport, verify=verify)
    points = sorted(random.Random(1).sample(range(1, LARGE - IN_FLIGHT), BREAKS))
    logins = 0
    heard: list[int] = []

    def report(progress: Progress) -> None:
        nonlocal logins
        heard.append(progress.done)
        made = sshd.log.read_text().count("Accepted publickey")
        if made == logins or not points or progress.done < points[0]:
            return
        logins = made
        while points and points[0] <= progress.done:
            points.pop(0)
        # Beside it is what arrived of a stretch.
        assert f"{IMAGE}.partial.{sha256[:16]}" in names(root)
        assert len(names(root)) <= 2
        sshd.end_connections()

    await directory.install(source, IMAGE, sha256, report)
    assert points == []
    assert logins > BREAKS // 2
    lost = max(before - now for before, now in itertools.pairwise(heard))
    assert lost <= STRETCH + IN_FLIGHT
    assert heard[-1] == LARGE
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
    """A part with a hole such as SFTP leaves, which no sample need hit, is sent anew."""
    source, sha256 = large
    there = bytearray(source.read_bytes())
    there[LARGE - 200_000 : LARGE - 100_000] = bytes(100_000)
    (root / f"{IMAGE}.partial.{sha256[:16]}").write_bytes(there)
    heard: list[int] = []
    directory = opens(without_ssh(tmp_path / "bin"), verify=verify)
    await directory.install(source, IMAGE, sha256, lambda progress: heard.append(progress.done))
    assert heard[0] < LARGE // 2
    assert names(root) == [IMAGE]
    assert digest_of(root / IMAGE) == sha256


@pytest.mark.parametrize("transport", ["conch", "openssh"])
@pytest_twisted.ensureDeferred
async def test_frozen_server(
    sshd: Sshd, opens: Opens, root: Path, large: tuple[Path, str], transport: str
) -> None:
    """A server that answers nothing is given up within the limit, and the delivery goes on."""
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

    directory = opens(sshd, transport, scaled(IDLE_SECONDS), before_connect=thaw)
    with frozen:
        await directory.install(source, IMAGE, sha256, report)
    assert noticed[0] - began[0] < patient(NOTICED_WITHIN)
    assert names(root) == [IMAGE]
    assert digest_of(root / IMAGE) == sha256


@pytest_twisted.ensureDeferred
async def test_frozen_scp(
    opens: Opens, root: Path, tmp_path: Path, large: tuple[Path, str]
) -> None:
    """Also a program on a server that is well."""
    source, sha256 = large
    env = program_is(tmp_path, "scp", f'echo $$ > {tmp_path}/pid; exec {need("scp")} "$@"')
    began: list[float] = []
    noticed: list[float] = []
    frozen: list[int] = []

    def again() -> None:
        if began and not noticed:
            noticed.append(time.monotonic())

    def report(progress: Progress) -> None:
        if not began and progress.done > LARGE // 2:
            began.append(time.monotonic())
            frozen.append(int((tmp_path / "pid").read_text()))
            os.kill(frozen[0], signal.SIGSTOP)

    directory = opens(env, idle_seconds=scaled(IDLE_SECONDS), before_connect=again)
    try:
        await directory.install(source, IMAGE, sha256, report)
        assert IDLE_SECONDS / 2 < noticed[0] - began[0] < patient(NOTICED_WITHIN)
    finally:
        with suppress(ProcessLookupError):
            os.kill(frozen[0], signal.SIGKILL)
    assert names(root) == [IMAGE]
    assert digest_of(root / IMAGE) == sha256


@pytest.mark.parametrize("transport", ["conch", "openssh"])
@pytest_twisted.ensureDeferred
async def test_account_without_commands(opens: Opens, root: Path, transport: str) -> None:
    """An account that is restricted to SFTP is told from one that works, at once."""
    with (
        Sshd("ForceCommand internal-sftp") as sshd,
        pytest.raises(DeliveryFailed, match="runs no commands") as caught,
    ):
        await opens(sshd, transport).write(b"x", META)
    assert '"transfer": "scp" needs' in caught.value.remedy
    assert names(root) == []


@pytest_twisted.ensureDeferred
async def test_server_of_one_session(opens: Opens, root: Path, large: tuple[Path, str]) -> None:
    """Where one program may run at a time, a delivery goes through, whatever else is asked."""
    source, sha256 = large
    asked: list[Deferred[Any]] = []
    with Sshd("Subsystem sftp /bin/false", "MaxSessions 1") as sshd:
        directory = opens(sshd, "conch")

        def report(_: Progress) -> None:
            if not asked:
                asked.append(Deferred.fromCoroutine(directory.list()))

        await directory.install(source, IMAGE, sha256, report)
        (one,) = asked
        assert [file.name for file in await one] in ([], [IMAGE])
        assert [file.name for file in await directory.list()] == [IMAGE]
        assert sshd.log.read_text().count("Accepted publickey") in {1, 2}
    assert digest_of(root / IMAGE) == sha256


@pytest.mark.parametrize("transport", ["conch", "openssh"])
@pytest_twisted.ensureDeferred
async def test_connection_that_broke_unused(
    sshd: Sshd, opens: Opens, root: Path, transport: str
) -> None:
    """A kept connection that is gone when it is needed again is made anew."""
    directory = opens(sshd, transport)
    await directory.write(b"1", META)
    sshd.end_connections()
    assert await directory.exists(META) is not None
    sshd.end_connections()
    await directory.write(b"2", META)
    assert (root / META).read_bytes() == b"2"


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


@pytest.mark.parametrize("there", [0, 3 << 20])
@pytest_twisted.ensureDeferred
async def test_full_disk(
    opens: Opens,
    root: Path,
    tmp_path: Path,
    source: Path,
    mounts: Callable[[str], None],
    there: int,
) -> None:
    """A full disk is called so, and what was written goes."""
    mounts("size=9m")
    directory = opens(without_ssh(tmp_path / "bin"))
    await directory.write(b"x", META)
    (root / f"{IMAGE}.partial.{SHA256[:16]}").write_bytes(CONTENT[:there])
    with pytest.raises(NoSpace) as caught:
        await directory.install(source, IMAGE, SHA256, ignore)
    assert str(root) not in str(caught.value)
    assert names(root) == [META]
