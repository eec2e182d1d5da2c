"""What every test is held to: no Deferred fails unheard, nothing is left on the reactor."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import Iterator
from typing import Any

import coverage
import pytest
from hypothesis import HealthCheck, settings
from twisted.internet import reactor
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from tests.children import guard
from tests.rabbitmq import RabbitMQ
from tests.reactor_disk import WATCH

# Whatever is started from now on ends with this process.
guard()

# A shell that runs us in the background has SIGINT ignored, and so would the programs that we
# start: those that are interrupted on purpose would not hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing on a machine that is busy with other tests.
settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")

# A process of xdist measures what it covers, if it is told to; the programs that it starts do not:
# it would make them slow.
if "PYTEST_XDIST_WORKER" in os.environ:
    coverage.process_startup()
    os.environ.pop("COVERAGE_PROCESS_START", None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests: at the end, one process would wait for one of them alone."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


WHOLE_COLLECTION = 100
"""Tests after which the garbage collector looks at all objects again."""

_tests = itertools.count(1)


def pytest_collection_finish() -> None:
    """Keep what is imported by now out of the collections after each test."""
    gc.collect()
    gc.freeze()


def collect_garbage() -> None:
    """Free the cycles that a test has left, so that a failed Deferred among them is reported.

    What survives is not looked at again by the next tests: a run of thousands keeps a report of
    each, and to go through all of them takes 30 ms. Cycles of objects that have survived are freed
    by every 100th call.
    """
    if next(_tests) % WHOLE_COLLECTION == 0:
        gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_unheard_failures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a Deferred whose error nobody handled."""
    unheard: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "Unhandled error in Deferred" in str(event.get("log_format", "")):
            unheard.append(str(event.get("log_failure", event)))

    globalLogPublisher.addObserver(observe)
    yield
    collect_garbage()
    globalLogPublisher.removeObserver(observe)
    assert unheard == []


@pytest.fixture(autouse=True)
def no_leftover_calls() -> Iterator[None]:
    """Fail a test that leaves delayed calls behind: somebody waits for what nobody awaits."""
    anything: Any = reactor
    before = set(anything.getDelayedCalls())
    yield
    left = [call for call in anything.getDelayedCalls() if call not in before and call.active()]
    for call in left:
        call.cancel()
    assert left == []


@pytest.fixture(autouse=True)
def no_file_work_on_the_reactor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test in which the reactor's thread touches a disk; see `tests.reactor_disk`."""
    WATCH.begin(tmp_path_factory.getbasetemp())
    yield
    assert WATCH.end() == []


@pytest.fixture(scope="session")
def broker() -> Iterator[RabbitMQ]:
    """Return a running broker, which takes seconds to start; each test has queues of its own."""
    with RabbitMQ() as running:
        yield running
