"""Writing one file in several SFTP sessions: their number, their end, interruptions."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs

from shiftergw.delivery.hosts import Hosts
from shiftergw.delivery.remote import RemoteDirectory, RemoteOptions
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.errors import DeliveryFailed
from shiftergw.model.records import Progress
from shiftergw.plumbing.channel import Connection
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import Verification
from shiftergw.sftp import parallel_write
from shiftergw.sftp.outgoing_file import REACH
from shiftergw.sftp.parallel_write import MOST_SESSIONS
from shiftergw.ssh.connection import connect
from tests.delivery.conch_client import account
from tests.delivery.contract import IMAGE, ignore, names
from tests.delivery.far import FIRST_PAUSE, account_on, connection, sftp_server
from tests.delivery.numbered_sessions import PLAIN, SLOW_FIRST, NumberedSystem, slow
from tests.installed_reactor import reactor
from tests.patience import stretch
from tests.sshd import Sshd
from tests.work.waiting import until

IDLE_SECONDS = 20.0
GIVEN_UP = 3.0
UNREACHABLE = 1e15
"""A rate that needs the highest number of sessions."""
MODEST = 1e6
"""A rate that one session reaches, however long a busy machine's round trips are."""

LARGE = 48 << 20
WINDOW = 2 << 20
BREAKS = 3

RunSystem = Callable[..., NumberedSystem]
OpenDirectory = Callable[..., RemoteDirectory]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a converted file that is large enough for many sessions, and its digest."""
    path = tmp_path_factory.mktemp("large") / "converted"
    content = random.Random(1).randbytes(LARGE)
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


@pytest.fixture
def run_system(tmp_path: Path) -> Iterator[RunSystem]:
    """Return a function that runs systems until the end of the test."""
    with ExitStack() as stack:

        def run(body: str = PLAIN, *settings: str) -> NumberedSystem:
            system = NumberedSystem(tmp_path / "far", body, settings)
            stack.enter_context(system.sshd)
            return system

        yield run


@pytest.fixture
def open_directory(threads: Threads, root: Path) -> Iterator[OpenDirectory]:
    """Return a function that makes adapters with many sessions; close them afterwards."""
    directories: list[RemoteDirectory] = []

    def make_directory(
        sshd: Sshd,
        *,
        transport: str = "conch",
        rate: float = UNREACHABLE,
        idle_seconds: float = IDLE_SECONDS,
        before_connect: Callable[[], None] = lambda: None,
    ) -> RemoteDirectory:
        async def begin() -> Connection:
            before_connect()
            if transport == "openssh":
                return connection(account_on(sshd))
            return await connect(account(sshd), reactor, threads, idle_seconds=idle_seconds)

        directories.append(
            RemoteDirectory(
                Hosts({"far": begin}, reactor),
                PurePosixPath(root),
                threads,
                reactor,
                RemoteOptions(
                    idle_seconds=idle_seconds,
                    open_files=partial(SftpFiles.begin, rate=rate),
                    first_pause=FIRST_PAUSE,
                ),
            )
        )
        return directories[-1]

    yield make_directory
    for directory in directories:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


def part_of(root: Path, sha256: str) -> Path:
    """Return the path of the temporary file of the image."""
    return root / f"{IMAGE}.partial.{sha256[:16]}"


def first_hole(part: Path, source: Path) -> int:
    """Return the offset of the first byte of a part that differs from the source."""
    with part.open("rb") as part_file, source.open("rb") as whole:
        at = 0
        while piece := part_file.read(1 << 16):
            expected = whole.read(len(piece))
            if piece != expected:
                pairs = enumerate(zip(piece, expected, strict=True))
                return at + next(n for n, (byte, expected_byte) in pairs if byte != expected_byte)
            at += len(piece)
    return at


def hole_of(part: Path, source: Path) -> Iterator[int]:
    """Yield the distance from the first hole of a part to its end, if there is a part."""
    if part.exists():
        yield part.stat().st_size - first_hole(part, source)


@pytest.mark.parametrize(
    ("round_trip", "window", "size", "sessions"),
    [
        (0.05, WINDOW, 1 << 30, 5),
        (0.05, 0, 1 << 30, 1),
        (0.05, 4 * WINDOW, 1 << 30, 2),
        (0.0001, WINDOW, 1 << 40, 1),
        (0.01, WINDOW, 1 << 40, 1),
        (0.2, WINDOW, 1 << 40, MOST_SESSIONS),
        (0.05, WINDOW, 3 << 20, 1),
        (0.05, WINDOW, 0, 1),
    ],
)
def test_session_count(round_trip: float, window: int, size: int, sessions: int) -> None:
    """A long round trip needs several sessions for a large file and small windows."""
    assert parallel_write.session_count(round_trip, window, size) == sessions


@given(
    st.floats(0, 1e6),
    st.integers(0, 1 << 32),
    st.integers(0, 1 << 60),
    st.floats(0, 1e15),
)
def test_session_count_is_limited(round_trip: float, window: int, size: int, rate: float) -> None:
    """With any measurements, there is at least one session and at most the limit."""
    assert 1 <= parallel_write.session_count(round_trip, window, size, rate) <= MOST_SESSIONS


@pytest_twisted.ensureDeferred
async def test_several_sessions(
    run_system: RunSystem, open_directory: OpenDirectory, root: Path, large: tuple[Path, str]
) -> None:
    """A file written by many sessions is correct; afterwards one session is left."""
    source, sha256 = large
    system = run_system(SLOW_FIRST)
    directory = open_directory(system.sshd)
    reports: list[Progress] = []
    await directory.install(source, IMAGE, sha256, reports.append)
    assert len(system.pids) == MOST_SESSIONS
    assert system.running_pids() == system.pids[:1]
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == source.read_bytes()
    assert (root / IMAGE).stat().st_mode & 0o7777 == 0o600
    done = [report.done for report in reports if report.stage == "deliver"]
    assert done == sorted(done)
    assert done[-1] == LARGE
    await directory.install(source, IMAGE, sha256, ignore)
    assert len(system.pids) == 2 * MOST_SESSIONS - 1


@pytest.mark.parametrize(("transport", "rate"), [("conch", MODEST), ("openssh", UNREACHABLE)])
@pytest_twisted.ensureDeferred
async def test_one_session(
    run_system: RunSystem,
    open_directory: OpenDirectory,
    large: tuple[Path, str],
    transport: str,
    rate: float,
) -> None:
    """One session suffices for a modest rate, and where each would be a login."""
    source, sha256 = large
    system = run_system()
    await open_directory(system.sshd, transport=transport, rate=rate).install(
        source, IMAGE, sha256, ignore
    )
    assert len(system.pids) == 1


@pytest.mark.parametrize("limit", [1, 2, 4])
@pytest_twisted.ensureDeferred
async def test_server_that_opens_few(
    run_system: RunSystem,
    open_directory: OpenDirectory,
    root: Path,
    large: tuple[Path, str],
    limit: int,
) -> None:
    """A server that refuses further sessions is no error, and commands can start later."""
    source, sha256 = large
    system = run_system(SLOW_FIRST, f"MaxSessions {limit}")
    with capturedLogs() as events:
        await open_directory(system.sshd).install(source, IMAGE, sha256, ignore)
    assert len(system.pids) == limit
    assert (root / IMAGE).read_bytes() == source.read_bytes()
    messages = [event["log_format"] for event in events if event["log_format"]]
    assert not any("samples only" in message for message in messages)
    assert sum("no further session" in message for message in messages) == MOST_SESSIONS - limit


@pytest_twisted.ensureDeferred
async def test_server_without_extensions(
    run_system: RunSystem, open_directory: OpenDirectory, root: Path, large: tuple[Path, str]
) -> None:
    """Several sessions also write to a server without extensions."""
    source, sha256 = large
    old = "limits,fsync,posix-rename,statvfs,fstatvfs"
    system = run_system(f"server='{sftp_server()} -P {old}'; {SLOW_FIRST}")
    await open_directory(system.sshd).install(source, IMAGE, sha256, ignore)
    assert len(system.pids) == MOST_SESSIONS
    assert (root / IMAGE).read_bytes() == source.read_bytes()


@pytest_twisted.ensureDeferred
async def test_sessions_that_may_not_write(
    run_system: RunSystem, open_directory: OpenDirectory, root: Path, large: tuple[Path, str]
) -> None:
    """Sessions that cannot open the file are skipped."""
    source, sha256 = large
    system = run_system(f"[ $n = 0 ] || exec $server -R; {SLOW_FIRST}")
    await open_directory(system.sshd).install(source, IMAGE, sha256, ignore)
    assert len(system.pids) == MOST_SESSIONS
    assert (root / IMAGE).read_bytes() == source.read_bytes()


@pytest_twisted.ensureDeferred
async def test_sessions_that_never_begin(
    run_system: RunSystem, open_directory: OpenDirectory, root: Path, large: tuple[Path, str]
) -> None:
    """A complete write does not wait for sessions that are not open yet."""
    source, sha256 = large
    system = run_system(f"[ $n = 0 ] || {{ cat > /dev/null; exit; }}; {PLAIN}")
    began = time.monotonic()
    limit = stretch(IDLE_SECONDS)
    await open_directory(system.sshd, idle_seconds=limit).install(source, IMAGE, sha256, ignore)
    assert time.monotonic() - began < limit / 2
    assert (root / IMAGE).read_bytes() == source.read_bytes()
    await until(lambda: system.running_pids() == system.pids[:1])


@pytest_twisted.ensureDeferred
async def test_two_deliveries_at_once(
    run_system: RunSystem, open_directory: OpenDirectory, root: Path, large: tuple[Path, str]
) -> None:
    """Deliveries over one connection share its limit on sessions."""
    source, sha256 = large
    system = run_system(SLOW_FIRST)
    directory = open_directory(system.sshd)
    image_names = [f"{digit * 64}.squashfs" for digit in "ab"]
    await gather_or_cancel(directory.install(source, name, sha256, ignore) for name in image_names)
    assert names(root) == image_names
    assert len(system.pids) == MOST_SESSIONS


@pytest_twisted.ensureDeferred
async def test_refused_write_of_one(
    run_system: RunSystem, open_directory: OpenDirectory, root: Path, large: tuple[Path, str]
) -> None:
    """A refused write in one session ends the delivery, which leaves no file."""
    source, sha256 = large
    system = run_system(f"[ $n != 2 ] || {{ trap '' XFSZ; ulimit -f 1; }}; {SLOW_FIRST}")
    directory = open_directory(system.sshd)
    with pytest.raises(DeliveryFailed) as excinfo:
        await directory.install(source, IMAGE, sha256, ignore)
    assert "status 4" in excinfo.value.detail
    assert names(root) == []
    await until(lambda: system.running_pids() == system.pids[:1])
    await directory.install(source, IMAGE, sha256, ignore)
    assert names(root) == [IMAGE]


@pytest_twisted.ensureDeferred
async def test_cancelled(
    run_system: RunSystem, open_directory: OpenDirectory, root: Path, large: tuple[Path, str]
) -> None:
    """A cancelled delivery ends every session but the first, and leaves no file."""
    source, sha256 = large
    system = run_system(SLOW_FIRST)
    running: Deferred[Verification] = Deferred()

    def report(progress: Progress) -> None:
        if len(system.pids) == MOST_SESSIONS:
            running.cancel()

    running = Deferred.fromCoroutine(
        open_directory(system.sshd).install(source, IMAGE, sha256, report)
    )
    with pytest.raises(CancelledError):
        await running
    assert names(root) == []
    await until(lambda: system.running_pids() == system.pids[:1])


@pytest_twisted.ensureDeferred
async def test_session_that_dies(
    run_system: RunSystem, open_directory: OpenDirectory, root: Path, large: tuple[Path, str]
) -> None:
    """A broken session ends the others; the delivery resumes at its offset."""
    source, sha256 = large
    system = run_system(SLOW_FIRST)
    reports: list[int] = []
    kills: list[int] = []

    def report(progress: Progress) -> None:
        if progress.stage == "deliver":
            reports.append(progress.done)
        if not kills and progress.done > REACH + (8 << 20) and len(system.running_pids()) > 3:
            kills.append(len(reports))
            os.kill(system.pids[3], signal.SIGKILL)

    def check_part() -> None:
        assert not kills or names(root) == [part_of(root, sha256).name]

    await open_directory(system.sshd, before_connect=check_part).install(
        source, IMAGE, sha256, report
    )
    assert len(system.pids) > MOST_SESSIONS
    assert min(reports[kills[0] :]) >= 8 << 20
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == source.read_bytes()


@pytest_twisted.ensureDeferred
async def test_session_that_stops(
    run_system: RunSystem, open_directory: OpenDirectory, root: Path, large: tuple[Path, str]
) -> None:
    """Sessions get at most the limit ahead of a stalled one, which then fails."""
    source, sha256 = large
    stops = f"[ $n != 3 ] || {slow('0', '1 << 20')}"
    system = run_system(f"{stops}; [ $n -ge {MOST_SESSIONS} ] || {slow('5000000')}; {PLAIN}")
    part = part_of(root, sha256)
    holes: list[int] = []
    directory = open_directory(
        system.sshd,
        idle_seconds=GIVEN_UP,
        before_connect=lambda: holes.extend(hole_of(part, source)),
    )
    await directory.install(source, IMAGE, sha256, ignore)
    assert len(holes) == 1
    assert REACH - (1 << 20) < holes[0] <= REACH
    assert (root / IMAGE).read_bytes() == source.read_bytes()


@pytest_twisted.ensureDeferred
async def test_breaks_with_sessions_of_any_speed(
    run_system: RunSystem, open_directory: OpenDirectory, root: Path, large: tuple[Path, str]
) -> None:
    """Wherever a delivery breaks, holes are within the limit, and the final file is correct.

    Some of the sessions are eight times as fast as others.
    """
    source, sha256 = large
    system = run_system(slow("(1 << n % 4) * 6000000"))
    part = part_of(root, sha256)
    points = sorted(random.Random(2).sample(range(REACH, LARGE - REACH), BREAKS))
    holes: list[int] = []
    breaks = 0

    def report(progress: Progress) -> None:
        nonlocal breaks
        if len(holes) == breaks and points and progress.done >= points[0]:
            points.pop(0)
            breaks += 1
            system.sshd.end_connections()

    directory = open_directory(
        system.sshd, before_connect=lambda: holes.extend(hole_of(part, source))
    )
    await directory.install(source, IMAGE, sha256, report)
    assert points == []
    assert len(holes) == BREAKS
    assert 0 < max(holes) <= REACH
    assert (root / IMAGE).read_bytes() == source.read_bytes()
    assert names(root) == [IMAGE]
