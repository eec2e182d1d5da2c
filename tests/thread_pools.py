"""Pools of threads that run while a test does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shiftergw.plumbing.threads import Threads
from tests.installed_reactor import reactor


@asynccontextmanager
async def running_threads(size: int = 2) -> AsyncIterator[Threads]:
    """Run a pool of threads; stop it at the end, which waits for running calls."""
    pool = Threads(reactor, size, "test")
    pool.startService()
    try:
        yield pool
    finally:
        await pool.stopService()
