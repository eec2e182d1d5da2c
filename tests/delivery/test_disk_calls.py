"""Local image directories that hang: calls end in time, and hanging threads are limited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.delivery import local_files
from shiftergw.delivery.disk_calls import HANG_SECONDS, MOST_HANGING, DiskCall, DiskCalls
from shiftergw.delivery.local import LocalDirectory
from shiftergw.delivery.outage import BreakerWaits, GuardedDirectory, MonitoredSystem, SystemBreaker
from shiftergw.delivery.placement import Placement
from shiftergw.plumbing.channel import SystemUnavailable
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.states import State
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore, names
from tests.installed_reactor import reactor
from tests.job.workbench import SISTER, running_bench
from tests.parts import HungDisk
from tests.patience import patient, stretch


class TimedThreads(Threads):
    """Threads with a clock that the test advances."""

    def __init__(self) -> None:
        """Start the threads with the service."""
        super().__init__(reactor, MOST_HANGING + 2, "test")
        self.time = Clock()

    @property
    def clock(self) -> Any:
        """Return the clock of the test."""
        return self.time


@pytest.fixture
def timed_threads() -> Iterator[TimedThreads]:
    """Give a pool of threads with a clock that the test advances."""
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
    """Run a coroutine and record its result or error."""

    def __init__(self, work: Awaitable[Any]) -> None:
        """Start the coroutine."""
        self.values: list[Any] = []
        self.running = Deferred.fromCoroutine(self._note(work))

    async def _note(self, work: Awaitable[Any]) -> None:
        try:
            self.values.append(await work)
        except (SystemUnavailable, CancelledError) as error:
            self.values.append(error)

    @property
    def error(self) -> Any:
        """Return the result or error, or None while the coroutine runs."""
        return self.values[0] if self.values else None


def has_working(threads: TimedThreads, number: int) -> bool:
    """Return whether this number of threads is working."""
    return len(threads._pool.working) == number


async def until(holds: Callable[[], object]) -> None:
    """Wait until a condition holds that another thread brings about."""
    deadline = reactor.seconds() + patient(20)
    while not holds():
        assert reactor.seconds() < deadline, "the condition never held"
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
async def test_a_hanging_directory_is_unavailable(
    timed_threads: TimedThreads,
    root: Path,
    source: Path,
    hung: HungDisk,
    use: Callable[[LocalDirectory, Path], Awaitable[object]],
) -> None:
    """Each method raises an error after the time limit; its thread ends when the kernel returns."""
    directory = LocalDirectory(root, timed_threads)
    outcome = Outcome(use(directory, source))
    await until(lambda: timed_threads._pool.working)
    timed_threads.time.advance(HANG_SECONDS - 1)
    assert not outcome.values
    timed_threads.time.advance(1)
    assert isinstance(outcome.error, SystemUnavailable)
    assert "does not answer" in outcome.error.what
    assert str(root) not in str(outcome.error)
    assert f"{root}: no sign of life for 30 seconds" in outcome.error.detail
    hung.end()
    await until(lambda: directory._calls._hanging_calls == 0)
    assert await directory.exists(IMAGE) is None


@pytest_twisted.ensureDeferred
async def test_hanging_threads_are_limited(
    timed_threads: TimedThreads, root: Path, tmp_path: Path, hung: HungDisk
) -> None:
    """Beyond the limit calls fail at once; other directories are not affected."""
    directory = LocalDirectory(root, timed_threads)
    for number in range(1, MOST_HANGING + 1):
        outcome = Outcome(directory.free_space())
        await until(partial(has_working, timed_threads, number))
        timed_threads.time.advance(HANG_SECONDS)
        assert outcome.error is not None
    rejected_call = Outcome(directory.free_space())
    assert f"{MOST_HANGING} calls hang there already" in rejected_call.error.detail
    assert len(timed_threads._pool.working) == MOST_HANGING
    assert await LocalDirectory(tmp_path, timed_threads).exists(IMAGE) is None
    hung.end()
    await until(lambda: directory._calls._hanging_calls == 0)
    assert await directory.free_space() > 0


@pytest_twisted.ensureDeferred
async def test_a_caller_that_is_cancelled_waits_no_longer(
    timed_threads: TimedThreads, root: Path, hung: HungDisk
) -> None:
    """A cancelled caller waits for its thread, which may still change files, up to the limit."""
    outcome = Outcome(LocalDirectory(root, timed_threads).write(b"ENV:", META))
    await until(lambda: timed_threads._pool.working)
    outcome.running.cancel()
    assert not outcome.values
    timed_threads.time.advance(HANG_SECONDS)
    assert isinstance(outcome.error, CancelledError)


@pytest_twisted.ensureDeferred
async def test_signs_of_life(timed_threads: TimedThreads) -> None:
    """A call with progress may take any time, and a single step longer if it asks for that."""
    step_begins, steps = [Event() for _ in range(3)], [Event() for _ in range(3)]

    def work(call: DiskCall) -> str:
        for seconds, ready, step in zip((None, 100.0, None), step_begins, steps, strict=True):
            call.note_progress(seconds)
            ready.set()
            step.wait(patient(30))
        return "done"

    outcome = Outcome(DiskCalls("here", timed_threads).run_long(work))
    for number, seconds in enumerate((HANG_SECONDS - 1, 99, HANG_SECONDS - 1)):
        await until(step_begins[number].is_set)
        timed_threads.time.advance(seconds)
        assert not outcome.values
        steps[number].set()
    await outcome.running
    assert outcome.values == ["done"]


@pytest_twisted.ensureDeferred
async def test_an_abandoned_call_replaces_no_file(
    timed_threads: TimedThreads, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abandoned write does not rename its file: there may be newer metadata by then."""
    hangs, call_end = Event(), Event()
    create = local_files._create

    def hang(content: bytes, path: Path) -> None:
        create(content, path)
        if content == b"old":
            hangs.wait(patient(30))
            call_end.set()

    monkeypatch.setattr(local_files, "_create", hang)
    directory = LocalDirectory(root, timed_threads)
    outcome = Outcome(directory.write(b"old", META))
    await until(lambda: names(root))
    timed_threads.time.advance(HANG_SECONDS)
    assert isinstance(outcome.error, SystemUnavailable)
    await directory.write(b"new", META)
    hangs.set()
    await until(call_end.is_set)
    await until(lambda: directory._calls._hanging_calls == 0)
    assert (root / META).read_bytes() == b"new"
    assert names(root) == [META]


@pytest_twisted.ensureDeferred
async def test_an_abandoned_delivery_installs_no_image(
    timed_threads: TimedThreads, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abandoned delivery does not rename its file: the image may have been removed by then."""
    hangs = Event()
    link = Placement._link

    def hang(placement: Placement, temporary: Path) -> bool:
        has_link = link(placement, temporary)
        hangs.wait(patient(30))
        return has_link

    monkeypatch.setattr(Placement, "_link", hang)
    converted_file = tmp_path / "converted"
    converted_file.write_bytes(CONTENT)
    converted_file.chmod(0o600)
    directory = LocalDirectory(root, timed_threads)
    outcome = Outcome(directory.install(converted_file, IMAGE, SHA256, ignore))
    await until(lambda: names(root))
    timed_threads.time.advance(HANG_SECONDS)
    assert isinstance(outcome.error, SystemUnavailable)
    hangs.set()
    await until(lambda: directory._calls._hanging_calls == 0)
    assert names(root) == []


@pytest_twisted.ensureDeferred
async def test_a_pull_waits_for_its_directory(
    threads: Threads, root: Path, tmp_path: Path, hung: HungDisk
) -> None:
    """The pull is postponed with a reason; the worker serves other pulls and ends it later."""
    bench_root = tmp_path / "bench"
    bench_root.mkdir()
    async with running_bench(bench_root) as bench:
        symptom = "its image directory does not answer"
        waits = BreakerWaits(0.1, 0.1, 0.1)
        system = MonitoredSystem("sister", str(root), "here", symptom)
        breaker = SystemBreaker(system, bench.store, reactor, waits=waits)
        directory = GuardedDirectory(LocalDirectory(root, threads, None, stretch(0.5)), breaker)
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
