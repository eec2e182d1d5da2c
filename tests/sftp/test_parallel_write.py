"""One file by several SFTP sessions: how many, how they end, and what a break leaves."""

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
from shiftergw.model import Progress
from shiftergw.plumbing.channel import Connection
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import Verification
from shiftergw.sftp import parallel_write
from shiftergw.sftp.outgoing_file import REACH
from shiftergw.sftp.parallel_write import MOST_SESSIONS
from shiftergw.ssh.connection import connect
from tests.delivery.contract import IMAGE, ignore, names
from tests.delivery.far import FIRST_PAUSE, account_on, connection, reactor, sftp_server
from tests.delivery.native import account
from tests.delivery.numbered import PLAIN, SLOW_FIRST, NumberedSystem, slow
from tests.patience import scaled
from tests.sshd import Sshd
from tests.work.waiting import until

IDLE_SECONDS = 20.0
GIVEN_UP = 3.0
UNREACHABLE = 1e15
"""A rate for which as many sessions are opened as may be."""

LARGE = 48 << 20
WINDOW = 2 << 20
BREAKS = 3

Fars = Callable[..., NumberedSystem]
Opens = Callable[..., RemoteDirectory]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Give a converted file that is worth many sessions, and its digest."""
    path = tmp_path_factory.mktemp("large") / "converted"
    content = random.Random(1).randbytes(LARGE)
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Fars]:
    """Give what runs systems until the test ends."""
    with ExitStack() as stack:

        def run(body: str = PLAIN, *settings: str) -> NumberedSystem:
            far = NumberedSystem(tmp_path / "far", body, settings)
            stack.enter_context(far.sshd)
            return far

        yield run


@pytest.fixture
def opens(threads: Threads, root: Path) -> Iterator[Opens]:
    """Give what makes adapters that open as many sessions as they may, closed afterwards."""
    made: list[RemoteDirectory] = []

    def far(
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

        made.append(
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
        return made[-1]

    yield far
    for directory in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


def part_of(root: Path, sha256: str) -> Path:
    """Return where the temporary of the image lies."""
    return root / f"{IMAGE}.partial.{sha256[:16]}"


def first_hole(part: Path, source: Path) -> int:
    """Return how many bytes of a part are those of the source."""
    with part.open("rb") as there, source.open("rb") as whole:
        at = 0
        while piece := there.read(1 << 16):
            wanted = whole.read(len(piece))
            if piece != wanted:
                pairs = enumerate(zip(piece, wanted, strict=True))
                return at + next(n for n, (one, other) in pairs if one != other)
            at += len(piece)
    return at


def hole_of(part: Path, source: Path) -> Iterator[int]:
    """Yield how far before the end of a part its first hole lies, if there is a part."""
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
def test_how_many(round_trip: float, window: int, size: int, sessions: int) -> None:
    """A long way takes several sessions, if the server has small windows and the file is large."""
    assert parallel_write.session_count(round_trip, window, size) == sessions


@given(
    st.floats(0, 1e6),
    st.integers(0, 1 << 32),
    st.integers(0, 1 << 60),
    st.floats(0, 1e15),
)
def test_never_too_many(round_trip: float, window: int, size: int, rate: float) -> None:
    """Whatever is measured and told, there is a session, and no more than a server bears."""
    assert 1 <= parallel_write.session_count(round_trip, window, size, rate) <= MOST_SESSIONS


@pytest_twisted.ensureDeferred
async def test_several_sessions(
    runs: Fars, opens: Opens, root: Path, large: tuple[Path, str]
) -> None:
    """A file that went by many sessions is right; then there is one session again."""
    source, sha256 = large
    far = runs(SLOW_FIRST)
    directory = opens(far.sshd)
    heard: list[Progress] = []
    await directory.install(source, IMAGE, sha256, heard.append)
    assert len(far.pids) == MOST_SESSIONS
    assert far.running_pids() == far.pids[:1]
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == source.read_bytes()
    assert (root / IMAGE).stat().st_mode & 0o7777 == 0o600
    done = [one.done for one in heard]
    assert done == sorted(done)
    assert done[-1] == LARGE
    await directory.install(source, IMAGE, sha256, ignore)
    assert len(far.pids) == 2 * MOST_SESSIONS - 1


@pytest.mark.parametrize(
    ("transport", "rate"), [("conch", parallel_write.RATE), ("openssh", UNREACHABLE)]
)
@pytest_twisted.ensureDeferred
async def test_one_session(
    runs: Fars, opens: Opens, large: tuple[Path, str], transport: str, rate: float
) -> None:
    """On a short way one session does; so it must where each would be a login of its own."""
    source, sha256 = large
    far = runs()
    await opens(far.sshd, transport=transport, rate=rate).install(source, IMAGE, sha256, ignore)
    assert len(far.pids) == 1


@pytest.mark.parametrize("limit", [1, 2, 4])
@pytest_twisted.ensureDeferred
async def test_server_that_opens_few(
    runs: Fars, opens: Opens, root: Path, large: tuple[Path, str], limit: int
) -> None:
    """A server that refuses further sessions is no error; commands find their place afterwards."""
    source, sha256 = large
    far = runs(SLOW_FIRST, f"MaxSessions {limit}")
    with capturedLogs() as events:
        await opens(far.sshd).install(source, IMAGE, sha256, ignore)
    assert len(far.pids) == limit
    assert (root / IMAGE).read_bytes() == source.read_bytes()
    said = [event["log_format"] for event in events if event["log_format"]]
    assert not any("samples only" in text for text in said)
    assert sum("no further session" in text for text in said) == MOST_SESSIONS - limit


@pytest_twisted.ensureDeferred
async def test_server_without_extensions(
    runs: Fars, opens: Opens, root: Path, large: tuple[Path, str]
) -> None:
    """A server that can no more than the protocol of old is written to by several sessions too."""
    source, sha256 = large
    old = "limits,fsync,posix-rename,statvfs,fstatvfs"
    far = runs(f"server='{sftp_server()} -P {old}'; {SLOW_FIRST}")
    await opens(far.sshd).install(source, IMAGE, sha256, ignore)
    assert len(far.pids) == MOST_SESSIONS
    assert (root / IMAGE).read_bytes() == source.read_bytes()


@pytest_twisted.ensureDeferred
async def test_sessions_that_may_not_write(
    runs: Fars, opens: Opens, root: Path, large: tuple[Path, str]
) -> None:
    """Sessions that cannot open the file are done without."""
    source, sha256 = large
    far = runs(f"[ $n = 0 ] || exec $server -R; {SLOW_FIRST}")
    await opens(far.sshd).install(source, IMAGE, sha256, ignore)
    assert len(far.pids) == MOST_SESSIONS
    assert (root / IMAGE).read_bytes() == source.read_bytes()


@pytest_twisted.ensureDeferred
async def test_sessions_that_never_begin(
    runs: Fars, opens: Opens, root: Path, large: tuple[Path, str]
) -> None:
    """Once there is nothing left to send nobody waits for sessions that are not open yet."""
    source, sha256 = large
    far = runs(f"[ $n = 0 ] || {{ cat > /dev/null; exit; }}; {PLAIN}")
    began = time.monotonic()
    limit = scaled(IDLE_SECONDS)
    await opens(far.sshd, idle_seconds=limit).install(source, IMAGE, sha256, ignore)
    assert time.monotonic() - began < limit / 2
    assert (root / IMAGE).read_bytes() == source.read_bytes()
    await until(lambda: far.running_pids() == far.pids[:1])


@pytest_twisted.ensureDeferred
async def test_two_deliveries_at_once(
    runs: Fars, opens: Opens, root: Path, large: tuple[Path, str]
) -> None:
    """Deliveries over one connection share the sessions that it may have."""
    source, sha256 = large
    far = runs(SLOW_FIRST)
    directory = opens(far.sshd)
    others = [f"{digit * 64}.squashfs" for digit in "ab"]
    await gather_or_cancel(directory.install(source, name, sha256, ignore) for name in others)
    assert names(root) == others
    assert len(far.pids) == MOST_SESSIONS


@pytest_twisted.ensureDeferred
async def test_refused_write_of_one(
    runs: Fars, opens: Opens, root: Path, large: tuple[Path, str]
) -> None:
    """A write that one session is refused ends the delivery, with nothing left of it."""
    source, sha256 = large
    far = runs(f"[ $n != 2 ] || {{ trap '' XFSZ; ulimit -f 1; }}; {SLOW_FIRST}")
    directory = opens(far.sshd)
    with pytest.raises(DeliveryFailed) as caught:
        await directory.install(source, IMAGE, sha256, ignore)
    assert "status 4" in caught.value.detail
    assert names(root) == []
    await until(lambda: far.running_pids() == far.pids[:1])
    await directory.install(source, IMAGE, sha256, ignore)
    assert names(root) == [IMAGE]


@pytest_twisted.ensureDeferred
async def test_cancelled(runs: Fars, opens: Opens, root: Path, large: tuple[Path, str]) -> None:
    """A delivery that is cancelled ends every session but the first, and leaves nothing."""
    source, sha256 = large
    far = runs(SLOW_FIRST)
    running: Deferred[Verification] = Deferred()

    def report(progress: Progress) -> None:
        if len(far.pids) == MOST_SESSIONS:
            running.cancel()

    running = Deferred.fromCoroutine(opens(far.sshd).install(source, IMAGE, sha256, report))
    with pytest.raises(CancelledError):
        await running
    assert names(root) == []
    await until(lambda: far.running_pids() == far.pids[:1])


@pytest_twisted.ensureDeferred
async def test_session_that_dies(
    runs: Fars, opens: Opens, root: Path, large: tuple[Path, str]
) -> None:
    """A session that breaks takes the others with it; the delivery goes on where it was."""
    source, sha256 = large
    far = runs(SLOW_FIRST)
    heard: list[int] = []
    killed: list[int] = []

    def report(progress: Progress) -> None:
        heard.append(progress.done)
        if not killed and progress.done > REACH + (8 << 20) and len(far.running_pids()) > 3:
            killed.append(len(heard))
            os.kill(far.pids[3], signal.SIGKILL)

    def second() -> None:
        assert not killed or names(root) == [part_of(root, sha256).name]

    await opens(far.sshd, before_connect=second).install(source, IMAGE, sha256, report)
    assert len(far.pids) > MOST_SESSIONS
    assert min(heard[killed[0] :]) >= 8 << 20
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == source.read_bytes()


@pytest_twisted.ensureDeferred
async def test_session_that_stops(
    runs: Fars, opens: Opens, root: Path, large: tuple[Path, str]
) -> None:
    """The others get as far ahead of one that stopped as the reach, and then it is given up."""
    source, sha256 = large
    stops = f"[ $n != 3 ] || {slow('0', '1 << 20')}"
    far = runs(f"{stops}; [ $n -ge {MOST_SESSIONS} ] || {slow('5000000')}; {PLAIN}")
    part = part_of(root, sha256)
    holes: list[int] = []
    directory = opens(
        far.sshd,
        idle_seconds=GIVEN_UP,
        before_connect=lambda: holes.extend(hole_of(part, source)),
    )
    await directory.install(source, IMAGE, sha256, ignore)
    assert len(holes) == 1
    assert REACH - (1 << 20) < holes[0] <= REACH
    assert (root / IMAGE).read_bytes() == source.read_bytes()


@pytest_twisted.ensureDeferred
async def test_breaks_with_sessions_of_any_speed(
    runs: Fars, opens: Opens, root: Path, large: tuple[Path, str]
) -> None:
    """Wherever a delivery breaks, its holes lie within the reach, and it ends with the right file.

    Some of the sessions are eight times as fast as others.
    """
    source, sha256 = large
    far = runs(slow("(1 << n % 4) * 6000000"))
    part = part_of(root, sha256)
    points = sorted(random.Random(2).sample(range(REACH, LARGE - REACH), BREAKS))
    holes: list[int] = []
    ended = 0

    def report(progress: Progress) -> None:
        nonlocal ended
        if len(holes) == ended and points and progress.done >= points[0]:
            points.pop(0)
            ended += 1
            far.sshd.end_connections()

    directory = opens(far.sshd, before_connect=lambda: holes.extend(hole_of(part, source)))
    await directory.install(source, IMAGE, sha256, report)
    assert points == []
    assert len(holes) == BREAKS
    assert 0 < max(holes) <= REACH
    assert (root / IMAGE).read_bytes() == source.read_bytes()
    assert names(root) == [IMAGE]
