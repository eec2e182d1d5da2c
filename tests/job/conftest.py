"""Fixtures of the tests of jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_twisted

from shiftergw.plumbing.threads import Threads
from tests.job.pipeline_bench import PipelineBench
from tests.job.workbench import Bench, running_bench


@pytest_twisted.async_yield_fixture()
async def pipeline_bench(tmp_path: Path, threads: Threads) -> AsyncIterator[PipelineBench]:
    """Yield a pipeline whose builder runs the real `mksquashfs`."""
    yield PipelineBench(tmp_path, threads)


@pytest_twisted.async_yield_fixture()
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Yield a worker on an empty store."""
    async with running_bench(tmp_path) as running:
        yield running
