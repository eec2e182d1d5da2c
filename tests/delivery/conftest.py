"""What the tests of deliveries share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor

from shiftergw.plumbing.threads import Threads

reactor: Any = global_reactor


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Give a pool of threads that runs while the test does."""
    pool = Threads(reactor, 4, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())
