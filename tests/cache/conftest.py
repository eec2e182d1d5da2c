"""Fixtures of the tests of the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.plumbing.threads import Threads
from tests.installed_reactor import reactor


@pytest.fixture
def cache(tmp_path: Path, threads: Threads) -> BlobFiles:
    """Give an empty cache."""
    return BlobFiles(tmp_path / "cache", threads, reactor)
