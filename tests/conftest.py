"""Checks around every test: unhandled errors of Deferreds, and calls left on the reactor."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, is_hypothesis_test, settings
from twisted.internet import reactor
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from tests.children import guard
from tests.rabbitmq import RabbitMQ
from tests.reactor_disk import WATCH
from tests.tracing import MEASUREMENT, measure_call, measure_fixtures, trace_first_examples
from tests.watchdog import watch

if TYPE_CHECKING:
    from shiftergw.plumbing.threads import Threads

# Every process that is started from now on ends with this process.
guard()

# The collection of the tests creates millions of objects and frees few: examining them meanwhile
# takes a sixth of its time. `pytest_collection_finish` enables the garbage collector again.
gc.disable()

# A shell that runs this process in the background lets it ignore SIGINT, and nohup SIGHUP. The
# programs that it starts would inherit that, and tests that interrupt them would hang.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# The time that an example takes means nothing on a machine that is busy with other tests.
settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")

MEASUREMENT.start(os.environ.get("PYTEST_XDIST_WORKER"))


COSTLY_FIXTURES = {"broker": 2}
"""Fixtures whose set-up takes seconds of processor time, and the number of processes with them."""

ROOM_SECONDS = {
    "end_to_end": 5.0,
    "work": 1.5,
    "delivery": 0.7,
    "sftp": 0.6,
    "cli": 0.35,
    "ssh": 0.3,
}
"""The average duration of a test in rooms whose tests start programs.

Tests of a file often share a gateway, a registry or a machine.
"""

OTHER_SECONDS = 0.1
COSTLY_SECONDS = 7.0
SLOW_SECONDS = 12.0


def seconds_of(group: Iterable[pytest.Item]) -> float:
    """Return about how long a group of tests takes."""
    return sum(map(_seconds, group))


def _seconds(item: pytest.Item) -> float:
    if item.get_closest_marker("slow") is not None:
        return SLOW_SECONDS
    if costly_fixture(item) is not None:
        return COSTLY_SECONDS
    return ROOM_SECONDS.get(room_of(item), OTHER_SECONDS)


def room_of(item: pytest.Item) -> str:
    """Return the directory below `tests/` in which a test is."""
    return _room_of_file(item.path)


@functools.cache
def _room_of_file(path: Path) -> str:
    return path.relative_to(Path(__file__).parent).parts[0]


def deal(groups: Iterable[Sequence[pytest.Item]], count: int) -> list[list[pytest.Item]]:
    """Return `count` shares of about the same duration; the tests of a group are in one share."""
    shares: list[list[pytest.Item]] = [[] for _ in range(count)]
    durations = [0.0] * count
    weights = [(seconds_of(group), group) for group in groups]
    for seconds, group in sorted(weights, key=lambda weight: weight[0], reverse=True):
        shortest = durations.index(min(durations))
        shares[shortest].extend(group)
        durations[shortest] += seconds
    return shares


def deal_slow_tests(
    groups: Iterable[Sequence[pytest.Item]], rest: Sequence[pytest.Item], processes: int
) -> list[pytest.Item]:
    """Return an order in which the share of each process begins with slow tests.

    The schedule `worksteal` of xdist gives each process a contiguous share of the tests. If all
    slow tests came first, they would be the share of one process. The tests of a group are in the
    same share, one after another.
    """
    shares = deal(groups, processes)
    order: list[pytest.Item] = []
    remaining = list(rest)
    total = sum(map(len, shares)) + len(rest)
    for process, share in enumerate(shares):
        size = (total - len(order)) // (processes - process)
        count = max(0, size - len(share))
        order += share + remaining[:count]
        remaining = remaining[count:]
    return order + remaining


def group_by_fixture(items: Iterable[pytest.Item], count: int) -> list[list[pytest.Item]]:
    """Return `count` groups of about the same length; the tests of a file are in one group."""
    return deal(group_by_file(items), count)


def group_by_file(items: Iterable[pytest.Item]) -> list[list[pytest.Item]]:
    """Return a group for each file."""
    return [list(tests) for _, tests in itertools.groupby(items, key=lambda item: item.path)]


def costly_fixture(item: pytest.Item) -> str | None:
    """Return the first of `COSTLY_FIXTURES` that a test uses, directly or not."""
    names = getattr(item, "fixturenames", ())
    return next((name for name in COSTLY_FIXTURES if name in names), None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, so that the run does not end with a wait for one of them.

    Tests that share a costly fixture run in few processes, each of which sets it up. So do the
    tests of a file that start programs, as long as no other process has run out of tests.
    """
    groups: list[list[pytest.Item]] = []
    for name, count in COSTLY_FIXTURES.items():
        users = [item for item in items if costly_fixture(item) == name]
        groups += group_by_fixture(users, count)
    independent = [item for item in items if costly_fixture(item) is None]
    groups += group_by_file(item for item in independent if room_of(item) in ROOM_SECONDS)
    independent = [item for item in independent if room_of(item) not in ROOM_SECONDS]
    groups += [[item] for item in independent if item.get_closest_marker("slow") is not None]
    rest = [item for item in independent if item.get_closest_marker("slow") is None]
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = deal_slow_tests(groups, rest, processes)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Measure the coverage of few examples of a random test."""
    if isinstance(item, pytest.Function) and is_hypothesis_test(item.obj):
        item.obj = trace_first_examples(item.obj)


pytest_timeout_set_timer = watch


GZIP = b"\x1f\x8b"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name no test after packed bytes: they have the time in them, and each process another one."""
    return argname if isinstance(val, bytes) and val.startswith(GZIP) else None


WHOLE_COLLECTION = 400
"""Tests after which the garbage collector examines all objects again."""

_tests = itertools.count(1)


def pytest_collection_finish() -> None:
    """Exclude the objects of imported modules from the collections after each test.

    They are not examined now: few of them are unreachable, and the first whole collection frees
    these.
    """
    MEASUREMENT.pause()
    gc.freeze()
    gc.enable()


pytest_runtest_setup = pytest_runtest_teardown = measure_fixtures
pytest_runtest_call = measure_call


def collect_garbage() -> None:
    """Free the cycles that a test has left, so that a failed Deferred in them is reported.

    Objects that survive are not examined after the next tests: pytest keeps a report of each of
    thousands of tests, and examining all objects takes 150 ms. Every 400th call frees the cycles
    among them.
    """
    if next(_tests) % WHOLE_COLLECTION == 0:
        gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_unhandled_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a Deferred whose error was not handled."""
    errors: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "Unhandled error in Deferred" in str(event.get("log_format", "")):
            errors.append(str(event.get("log_failure", event)))

    globalLogPublisher.addObserver(observe)
    yield
    collect_garbage()
    globalLogPublisher.removeObserver(observe)
    assert errors == []


@pytest.fixture(autouse=True)
def no_leftover_calls() -> Iterator[None]:
    """Fail a test that leaves delayed calls on the reactor."""
    clock: Any = reactor
    earlier_calls = set(clock.getDelayedCalls())
    yield
    calls = set(clock.getDelayedCalls()) - earlier_calls
    leftover_calls = [call for call in calls if call.active()]
    for call in leftover_calls:
        call.cancel()
    assert leftover_calls == []


@pytest.fixture(autouse=True)
def no_file_work_on_the_reactor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test in which the reactor's thread accesses a disk; see `tests.reactor_disk`."""
    WATCH.begin(tmp_path_factory.getbasetemp())
    yield
    assert WATCH.end() == []


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Return a pool of at most eight threads, which is stopped after the test."""
    # What this file imports is not measured: the measurement of coverage has not begun yet.
    from shiftergw.plumbing.threads import Threads  # noqa: PLC0415

    pool = Threads(reactor, 8, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


@pytest.fixture(scope="session")
def broker() -> Iterator[RabbitMQ]:
    """Return a broker for all tests: it starts in seconds. Each test has its own queues."""
    with RabbitMQ() as broker:
        yield broker
