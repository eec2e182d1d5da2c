"""Checks around every test: unhandled errors of Deferreds, and calls left on the reactor."""

from __future__ import annotations

import gc
import itertools
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, is_hypothesis_test, settings
from twisted.internet import reactor
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from tests.children import guard
from tests.processes import run_in_processes
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

MEASUREMENT.start()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests run in several processes."""
    parser.addoption(
        "--processes", type=int, default=1, help="number of processes that run the tests"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run the tests in several processes if the command line says so."""
    processes = session.config.getoption("processes")
    if processes == 1 or session.config.option.collectonly or session.testsfailed:
        return None
    run_in_processes(session, processes)
    return True


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
