"""What the tests of the conversion share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.plumbing.threads import Threads
from tests.build.site import Site


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Return a pool of three threads that is stopped after the test."""
    anything: Any = reactor
    pool = Threads(anything, 3, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


@pytest.fixture
def site(tmp_path: Path, threads: Threads) -> Site:
    """Return a site with the real `mksquashfs`."""
    return Site(tmp_path, threads)
