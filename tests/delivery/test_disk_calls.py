"""Image directories of this machine that hang: the calls end, and their threads are counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.delivery import local_files
from shiftergw.delivery.disk_calls import HANG_SECONDS, MOST_HANGING, DiskCall, DiskCalls
from shiftergw.delivery.local import LocalDirectory
from shiftergw.delivery.outage import BreakerWaits, GuardedDirectory, MonitoredSystem, SystemBreaker
from shiftergw.delivery.placement import Placement
from shiftergw.plumbing.channel import Away
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.states import State
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore, names
from tests.job.workbench import SISTER, running_bench
from tests.parts import HungDisk
from tests.patience import patient, scaled

reactor: Any = global_reactor


class TimedThreads(Threads):
    """Threads beside a clock that the test turns."""

    def __init__(self) -> None:
        """Start with the service."""
        super().__init__(reactor, MOST_HANGING + 2, "test")
        self.time = Clock()

    @property
    def clock(self) -> Any:
        """Return the test's clock."""
        return self.time


@pytest.fixture
def timed() -> Iterator[TimedThreads]:
    """Give a pool of threads with a clock of its own."""
    pool = TimedThreads()
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


@pytest.fixture
def hung(root: Path) -> Iterator[HungDisk]:
    """Give a file system that hangs, mounted on the image directory."""
    disk = HungDisk(root)
    yield disk
    disk.end()


class Outcome:
    """What becomes of some work."""

    def __init__(self, work: Awaitable[Any]) -> None:
        """Begin it."""
        self.values: list[Any] = []
        self.running = Deferred.fromCoroutine(self._note(work))

    async def _note(self, work: Awaitable[Any]) -> None:
        try:
            self.values.append(await work)
        except (Away, CancelledError) as error:
            self.values.append(error)

    @property
    def error(self) -> Any:
        """Return its error, or None while it runs."""
        return self.values[0] if self.values else None


def has_working(threads: TimedThreads, number: int) -> bool:
    """Return whether so many threads have something to do."""
    return len(threads._pool.working) == number


async def until(holds: Callable[[], object]) -> None:
    """Wait until something that another thread does has come about."""
    deadline = reactor.seconds() + patient(20)
    while not holds():
        assert reactor.seconds() < deadline, "it never came to hold"
        await pause(0.01, reactor)


@pytest.mark.parametrize(
    "use",
    [
        lambda d, _: d.free_space(),
        lambda d, _: d.probe(b"test"),
        lambda d, _: d.exists(IMAGE),
        lambda d, source: d.install(source, IMAGE, SHA256, ignore),
        lambda d, _: d.write(b"ENV:", META),
        lambda d, _: d.read(META, 100),
        lambda d, _: d.head(IMAGE, 100),
        lambda d, _: d.remove(META),
        lambda d, _: d.list(),
        lambda d, _: d.digest(IMAGE),
        lambda d, _: d.sweep(0),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_hung_directory_is_away(
    timed: TimedThreads,
    root: Path,
    source: Path,
    hung: HungDisk,
    use: Callable[[LocalDirectory, Path], Awaitable[object]],
) -> None:
    """Each use of it ends after the limit, in words; the thread ends once the kernel lets it."""
    directory = LocalDirectory(root, timed)
    outcome = Outcome(use(directory, source))
    await until(lambda: timed._pool.working)
    timed.time.advance(HANG_SECONDS - 1)
    assert not outcome.values
    timed.time.advance(1)
    assert isinstance(outcome.error, Away)
    assert "does not answer" in outcome.error.what
    assert str(root) not in str(outcome.error)
    assert f"{root}: no sign of life for 30 seconds" in outcome.error.detail
    hung.end()
    await until(lambda: directory._calls._hanging_calls == 0)
    assert await directory.exists(IMAGE) is None


@pytest_twisted.ensureDeferred
async def test_it_takes_a_few_threads_and_no_more(
    timed: TimedThreads, root: Path, tmp_path: Path, hung: HungDisk
) -> None:
    """Beyond those its uses fail at once; other directories have theirs."""
    directory = LocalDirectory(root, timed)
    for number in range(1, MOST_HANGING + 1):
        outcome = Outcome(directory.free_space())
        await until(partial(has_working, timed, number))
        timed.time.advance(HANG_SECONDS)
        assert outcome.error is not None
    refused = Outcome(directory.free_space())
    assert f"{MOST_HANGING} calls hang there already" in refused.error.detail
    assert len(timed._pool.working) == MOST_HANGING
    assert await LocalDirectory(tmp_path, timed).exists(IMAGE) is None
    hung.end()
    await until(lambda: directory._calls._hanging_calls == 0)
    assert await directory.free_space() > 0


@pytest_twisted.ensureDeferred
async def test_a_caller_that_is_cancelled_waits_no_longer(
    timed: TimedThreads, root: Path, hung: HungDisk
) -> None:
    """It waits for its thread, which would change things behind it, but only up to the limit."""
    outcome = Outcome(LocalDirectory(root, timed).write(b"ENV:", META))
    await until(lambda: timed._pool.working)
    outcome.running.cancel()
    assert not outcome.values
    timed.time.advance(HANG_SECONDS)
    assert isinstance(outcome.error, CancelledError)


@pytest_twisted.ensureDeferred
async def test_signs_of_life(timed: TimedThreads) -> None:
    """A call that gets on may take as long as it likes, and one step longer if it says so."""
    begun, steps = [Event() for _ in range(3)], [Event() for _ in range(3)]

    def work(call: DiskCall) -> str:
        for seconds, ready, step in zip((None, 100.0, None), begun, steps, strict=True):
            call.go_on(seconds)
            ready.set()
            step.wait(patient(30))
        return "done"

    outcome = Outcome(DiskCalls("here", timed).run_long(work))
    for number, seconds in enumerate((HANG_SECONDS - 1, 99, HANG_SECONDS - 1)):
        await until(begun[number].is_set)
        timed.time.advance(seconds)
        assert not outcome.values
        steps[number].set()
    await outcome.running
    assert outcome.values == ["done"]


@pytest_twisted.ensureDeferred
async def test_a_call_left_behind_replaces_nothing(
    timed: TimedThreads, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hung in a write goes on to no rename: newer metadata may lie there by then."""
    hangs, ended = Event(), Event()
    create = local_files._create

    def hang(content: bytes, path: Path) -> None:
        create(content, path)
        if content == b"old":
            hangs.wait(patient(30))
            ended.set()

    monkeypatch.setattr(local_files, "_create", hang)
    directory = LocalDirectory(root, timed)
    outcome = Outcome(directory.write(b"old", META))
    await until(lambda: names(root))
    timed.time.advance(HANG_SECONDS)
    assert isinstance(outcome.error, Away)
    await directory.write(b"new", META)
    hangs.set()
    await until(ended.is_set)
    await until(lambda: directory._calls._hanging_calls == 0)
    assert (root / META).read_bytes() == b"new"
    assert names(root) == [META]


@pytest_twisted.ensureDeferred
async def test_an_image_left_behind_is_not_put_in_place(
    timed: TimedThreads, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been removed by then, and nobody would remove it again."""
    hangs = Event()
    link = Placement._link

    def hang(placement: Placement, temporary: Path) -> bool:
        has_link = link(placement, temporary)
        hangs.wait(patient(30))
        return has_link

    monkeypatch.setattr(Placement, "_link", hang)
    converted = tmp_path / "converted"
    converted.write_bytes(CONTENT)
    converted.chmod(0o600)
    directory = LocalDirectory(root, timed)
    outcome = Outcome(directory.install(converted, IMAGE, SHA256, ignore))
    await until(lambda: names(root))
    timed.time.advance(HANG_SECONDS)
    assert isinstance(outcome.error, Away)
    hangs.set()
    await until(lambda: directory._calls._hanging_calls == 0)
    assert names(root) == []


@pytest_twisted.ensureDeferred
async def test_a_pull_waits_for_its_directory(
    threads: Threads, root: Path, tmp_path: Path, hung: HungDisk
) -> None:
    """It is postponed with words; the same worker goes on with others, and ends it afterwards."""
    bench_root = tmp_path / "bench"
    bench_root.mkdir()
    async with running_bench(bench_root) as bench:
        symptom = "its image directory does not answer"
        waits = BreakerWaits(0.1, 0.1, 0.1)
        system = MonitoredSystem("sister", str(root), "here", symptom)
        breaker = SystemBreaker(system, bench.store, reactor, waits=waits)
        directory = GuardedDirectory(LocalDirectory(root, threads, None, scaled(0.5)), breaker)
        target = bench.targets[SISTER]
        bench.targets[SISTER] = replace(target, name="far", directory=directory, systems=(SISTER,))
        record = await bench.pull("lib/app:1", system=SISTER)
        assert (record.status, record.runner) == (State.PENDING, None)
        assert record.waits_for == "the system sister (its image directory does not answer)"
        assert (await bench.pull("lib/app:1")).status is State.READY
        hung.end()
        for _ in range(300):
            if record.status is not State.PENDING:
                break
            await pause(0.1, reactor)
            await bench.worker.run(record.key)
            record = await bench.store.get(record.key) or record
        assert record.status is State.READY
    assert len(names(root)) == 2
