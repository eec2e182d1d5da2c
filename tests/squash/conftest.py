"""What the tests of the conversion share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.plumbing.threads import Threads


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Return a pool of three threads that is stopped after the test."""
    anything: Any = reactor
    pool = Threads(anything, 3, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())
