"""The users of a site share the requests that a registry allows: pulls wait, and none fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from shiftergw.states import State
from tests.job.limited_site import (
    FREE_HOST,
    LIMITED_HOST,
    START,
    SYSTEMS,
    ImageChoice,
    LimitedRegistry,
    limited_site,
)
from tests.tracing import without_tracing

LONG = os.environ.get("SHIFTERGW_LONG") == "1"
USERS = range(40)
MOVING_APPS = range(20 if LONG else 12)
STABLE_APPS = range(20, 40 if LONG else 26)
FAR_USERS = USERS if LONG else range(5)
HOUR = 3600.0
ALLOWANCE = 100
MOST_REFUSALS = 90 if LONG else 36
"""Refused requests at most; a breaker that HEAD closes, too, lets through 372, or 59."""


@pytest.fixture
def root() -> Iterator[Path]:
    """Yield a directory in memory, if there is one: the store syncs a thousand times."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


def choices(location: str, users: range, system: str = SYSTEMS[0]) -> list[ImageChoice]:
    """Return what users pull: each an image of their own."""
    return [ImageChoice(2000 + n, system, f"{location}/team/app:app{n}") for n in users]


@pytest.mark.parametrize("refuses_head", [False, True] if LONG else [False])
@pytest_twisted.ensureDeferred
@without_tracing
async def test_forty_users_share_a_limit(root: Path, refuses_head: bool) -> None:
    """Each manifest is read about once; what exceeds the limit waits, and all else does not."""
    clock = Clock()
    clock.advance(START)
    registry = LimitedRegistry(clock, ALLOWANCE, refuses_head=refuses_head)
    free_registry = LimitedRegistry(clock, None)
    for user in USERS:
        registry.push(f"app{user}", 0)
        free_registry.push(f"app{user}", 0)
    async with limited_site(
        root, clock, {LIMITED_HOST: registry, FREE_HOST: free_registry}, 4
    ) as site:
        # The second system needs nothing that the first has not read.
        morning = choices(LIMITED_HOST, USERS) + choices(LIMITED_HOST, FAR_USERS, SYSTEMS[1])
        results = await site.pull_all(morning, 3 * HOUR)
        assert len(results) == len(morning)
        assert len(registry.reads) == 2 * len(USERS)

        # More tags move than the ten images that the registry still allows.
        for user in MOVING_APPS:
            registry.push(f"app{user}", 1)
        await site.pull_all(choices(LIMITED_HOST, MOVING_APPS), HOUR)
        assert len(registry.reads) == ALLOWANCE
        assert site.waiting_count == len(MOVING_APPS) - 10

        # Meanwhile images that have not changed need only HEAD, and another registry has no limit.
        results = await site.pull_all(choices(FREE_HOST, STABLE_APPS), HOUR / 2)
        assert len(results) == len(STABLE_APPS)
        assert len(free_registry.reads) == 2 * len(STABLE_APPS)
        results = await site.pull_all(choices(LIMITED_HOST, STABLE_APPS), HOUR / 2)
        assert refuses_head or len(results) == len(STABLE_APPS)
        assert not any(result.has_waited for result in site.results)

        await site.run((8 if LONG else 2) * HOUR)
        assert site.waiting_count == 0
        assert site.processes.errors == []
        assert {result.record.status for result in site.results} == {State.READY}
        assert len(registry.reads) <= 2 * (len(USERS) + len(MOVING_APPS)) + 4
        assert registry.refusals <= MOST_REFUSALS
