"""Fixtures of the tests of sources."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import pytest_twisted

from shiftergw.plumbing.threads import Threads
from tests.installed_reactor import reactor

REACTOR = reactor


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Yield a pool of threads that runs during the test."""
    pool = Threads(REACTOR, 4, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())
