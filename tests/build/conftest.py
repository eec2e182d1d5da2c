"""Fixtures of the tests of the conversion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.plumbing.threads import Threads
from tests.build.site import Site
from tests.installed_reactor import reactor


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Return a pool of three threads that is stopped after the test."""
    pool = Threads(reactor, 3, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


@pytest.fixture
def site(tmp_path: Path, threads: Threads) -> Site:
    """Return a site with the real `mksquashfs`."""
    return Site(tmp_path, threads)
