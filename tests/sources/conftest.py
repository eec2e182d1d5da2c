"""Fixtures of the tests of sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor

from shiftergw.plumbing.threads import Threads

REACTOR: Any = installed_reactor


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Give a pool of threads that runs during the test."""
    pool = Threads(REACTOR, 4, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())
