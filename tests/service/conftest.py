"""Fixtures of the tests of the gateway's rules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from shiftergw.cache.upload_spool import UploadFiles
from shiftergw.plumbing.threads import Threads
from shiftergw.service import upload_space
from shiftergw.store.sqlite.store import SqliteStore
from tests.service.custom_bench import CustomBench
from tests.service.gateway_bench import Bench
from tests.service.upload_bench import UploadBench


@pytest.fixture
def bench(store: SqliteStore) -> Bench:
    """Return a gateway on an empty store."""
    return Bench(store)


@pytest_twisted.async_yield_fixture()
async def spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Threads
) -> AsyncIterator[UploadFiles]:
    """Yield a spool."""
    monkeypatch.setattr(upload_space, "DISK_RESERVE", 0)
    files = UploadFiles(tmp_path / "uploads", threads, reactor)
    await files.startService()
    yield files


@pytest_twisted.async_yield_fixture()
async def custom_bench(tmp_path: Path, spool: UploadFiles) -> AsyncIterator[CustomBench]:
    """Yield a gateway on an empty store."""
    store = SqliteStore(reactor, tmp_path / "store.sqlite")
    await store.startService()
    yield CustomBench(store, spool, ImportUsers="all")
    await store.stopService()


@pytest_twisted.async_yield_fixture()
async def upload_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Threads
) -> AsyncIterator[UploadBench]:
    """Yield uploads in a new spool."""
    monkeypatch.setattr(upload_space, "DISK_RESERVE", 0)
    store = SqliteStore(reactor, tmp_path / "store.sqlite")
    await store.startService()
    spool = UploadFiles(tmp_path / "uploads", threads, reactor)
    await spool.startService()
    yield UploadBench(store, spool, tmp_path / "uploads")
    await store.stopService()


@pytest.fixture
def clock() -> Clock:
    """Return a clock at a time of day."""
    clock = Clock()
    clock.advance(1_000_000)
    return clock


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return a running store."""
    store = SqliteStore(reactor, tmp_path / "images.sqlite")
    pytest_twisted.blockon(store.startService())
    yield store
    if store.running:
        pytest_twisted.blockon(store.stopService())
