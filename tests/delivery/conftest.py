"""What the tests of deliveries share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from shiftergw.plumbing.threads import Threads

reactor: Any = global_reactor


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Give a pool of threads that runs while the test does."""
    pool = Threads(reactor, 4, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Give what is logged of hosts, by level and text."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith("shiftergw.delivery.hosts"):
            lines.append(f"{event['log_level'].name}: {formatEvent(event)}")

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)
