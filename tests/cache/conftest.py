"""Fixtures of the tests of the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.plumbing.threads import Threads
from tests.installed_reactor import reactor


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Give a pool of threads that runs while the test does."""
    pool = Threads(reactor, 4, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


@pytest.fixture
def cache(tmp_path: Path, threads: Threads) -> BlobFiles:
    """Give an empty cache."""
    return BlobFiles(tmp_path / "cache", threads, reactor)
