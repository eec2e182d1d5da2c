"""The circuit breaker of a system that does not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.delivery.local import LocalDirectory
from shiftergw.delivery.outage import (
    FIRST_SECONDS,
    PROBE_SECONDS,
    BreakerWaits,
    GuardedDirectory,
    MonitoredSystem,
    SystemBreaker,
)
from shiftergw.errors import DeliveryFailed, NoSpace, RetryLater, Unavailable
from shiftergw.model.postponement import Breaker
from shiftergw.plumbing.channel import SystemUnavailable, UnexplainedExit
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import ImageDirectory
from shiftergw.store.sqlite.store import SqliteStore
from tests.delivery.contract import META, ImageDirectoryContract
from tests.delivery.delta_contract import SharedRangesContract
from tests.installed_reactor import reactor

OUTAGE = SystemUnavailable("The system cannot be reached.", remedy="Mend it.", detail="refused")
WAITS = BreakerWaits(first=16, longest=64, probe=10)
WHY = "the system alpha (its host does not answer)"


class FailingDirectory(LocalDirectory):
    """A directory that fails if the test sets an error."""

    error: Exception | None = None

    def __init__(self, directory: Path, threads: Threads) -> None:
        """Count the calls."""
        super().__init__(directory, threads)
        self.used = 0

    def _use(self) -> None:
        self.used += 1
        if self.error is not None:
            raise self.error

    async def free_space(self) -> int:
        """Count the call; fail if an error is set."""
        self._use()
        return await super().free_space()

    async def probe(self, content: bytes) -> None:
        """Count the call; fail if an error is set."""
        self._use()
        await super().probe(content)


class Site:
    """Two processes that use one directory, with a clock that the test advances."""

    def __init__(self, store: SqliteStore, root: Path, threads: Threads) -> None:
        """Start with a system that answers."""
        self.clock = Clock()
        self.clock.advance(1000)
        self.store = store
        self.directory = FailingDirectory(root, threads)
        self.first, self.second = self.guarded_directory(), self.guarded_directory()

    def guarded_directory(
        self, name: str = "host:/images", machine: str = "here", random: float = 0.5
    ) -> GuardedDirectory:
        """Return the directory as one more process uses it."""
        symptom = "its host does not answer"
        system = MonitoredSystem("alpha", name, machine, symptom)
        breaker = SystemBreaker(system, self.store, self.clock, lambda: random, WAITS)
        return GuardedDirectory(self.directory, breaker)

    async def trip(self) -> None:
        """Open the breaker by a failed call."""
        self.directory.error = OUTAGE
        with pytest.raises(RetryLater):
            await self.first.free_space()

    async def postponement_seconds(self, directory: GuardedDirectory) -> float:
        """Return for how many seconds a pull is postponed."""
        with pytest.raises(RetryLater) as caught:
            await directory.reach()
        assert caught.value.why == WHY
        assert caught.value.system == "alpha"
        return caught.value.at - self.clock.seconds()


@pytest_twisted.async_yield_fixture()
async def site(tmp_path: Path, threads: Threads) -> AsyncIterator[Site]:
    """Give two processes with an empty store and an empty directory."""
    images = tmp_path / "far"
    images.mkdir()
    store = SqliteStore(reactor, tmp_path / "store.sqlite")
    await store.startService()
    try:
        yield Site(store, images, threads)
    finally:
        await store.stopService()


class TestGuardedDirectory(ImageDirectoryContract, SharedRangesContract):
    """A guarded directory keeps the whole contract."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, site: Site) -> ImageDirectory:
        """Give a guarded directory."""
        site.directory = FailingDirectory(root, threads)
        return site.guarded_directory()


@pytest_twisted.ensureDeferred
async def test_a_failure_postpones_the_pull(site: Site) -> None:
    """The error has the time of the next attempt, the reason, and the cause as detail."""
    site.directory.error = OUTAGE
    with pytest.raises(RetryLater) as caught:
        await site.first.free_space()
    postponement = caught.value
    assert (postponement.at, postponement.why, postponement.cause) == (1016, WHY, "system")
    what = "The image could not be delivered to the system alpha: its host does not answer."
    assert postponement.what == what
    assert postponement.remedy == "Mend it."
    assert postponement.detail == "The system cannot be reached. refused"


@pytest_twisted.ensureDeferred
async def test_a_silent_system_has_a_short_limit(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request has a short limit, until a probe shows that the system is slow."""
    site.first._first_seconds = FIRST_SECONDS
    answer: Deferred[int] = Deferred()
    monkeypatch.setattr(site.directory, "free_space", lambda: answer)
    outcome: list[Any] = []
    asking = Deferred.fromCoroutine(site.first.free_space()).addBoth(outcome.append)
    site.clock.advance(FIRST_SECONDS - 1)
    assert outcome == []
    site.clock.advance(1)
    await asking
    assert outcome[0].check(RetryLater)
    site.clock.advance(16)

    async def slow(_: bytes) -> None:
        site.clock.advance(FIRST_SECONDS)

    monkeypatch.setattr(site.directory, "probe", slow)
    await site.first.reach()
    answer = Deferred()
    asking = Deferred.fromCoroutine(site.first.free_space())
    site.clock.advance(2 * FIRST_SECONDS)
    answer.callback(17)
    assert await asking == 17


@pytest_twisted.ensureDeferred
async def test_a_failure_postpones_other_pulls(site: Site) -> None:
    """Other pulls, in all processes, are postponed until the breaker's time is over."""
    await site.trip()
    used = site.directory.used
    assert await site.postponement_seconds(site.second) == 16
    site.clock.advance(15)
    assert await site.postponement_seconds(site.first) == 1
    assert site.directory.used == used


@pytest_twisted.ensureDeferred
async def test_other_directories_and_machines_are_not_affected(site: Site) -> None:
    """Pulls to other systems, and from other machines, are not postponed."""
    await site.trip()
    used = site.directory.used
    await site.guarded_directory("other:/images").reach()
    await site.guarded_directory(machine="there").reach()
    assert site.directory.used == used, "nothing is sent to a system without a known outage"


@pytest_twisted.ensureDeferred
async def test_a_probe_that_succeeds_closes_the_breaker(site: Site) -> None:
    """One pull probes, then no pull is postponed; the probe leaves no file behind."""
    await site.trip()
    site.directory.error = None
    site.clock.advance(16)
    used = site.directory.used
    await site.first.reach()
    await site.second.reach()
    assert site.directory.used == used + 1
    assert await site.second.list() == []
    assert list(site.directory._directory.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_other_pulls_wait_during_a_probe(site: Site) -> None:
    """Other pulls are postponed for a moment, and probe only if the probe does not end."""
    await site.trip()
    site.clock.advance(16)
    key = site.first._breaker._system.breaker_key
    assert await site.store.check_breaker(key, site.clock.seconds(), PROBE_SECONDS)
    assert await site.postponement_seconds(site.second) == 10
    site.clock.advance(PROBE_SECONDS - 1)
    assert await site.postponement_seconds(site.second) == 1
    site.clock.advance(1)
    site.directory.error = None
    await site.second.reach()


@pytest_twisted.ensureDeferred
async def test_a_probe_that_is_cancelled_is_followed_by_the_next(site: Site) -> None:
    """After a cancelled probe the next pull probes at once."""
    await site.trip()
    site.clock.advance(16)
    site.directory.error = CancelledError()
    with pytest.raises(CancelledError):
        await site.first.reach()
    site.directory.error = None
    await site.second.reach()
    await site.first.reach()


@pytest_twisted.ensureDeferred
async def test_waits_grow(site: Site) -> None:
    """Each failed probe doubles the wait, up to a limit; a success resets it."""
    await site.trip()
    waits = []
    for _ in range(4):
        site.clock.advance(64)
        waits.append(await site.postponement_seconds(site.first))
    assert waits == [32, 64, 64, 64]
    site.clock.advance(64)
    site.directory.error = None
    await site.first.reach()
    await site.trip()
    assert await site.postponement_seconds(site.second) == 16


@pytest.mark.parametrize(("random", "seconds"), [(0.0, 8), (1.0, 24)])
@pytest_twisted.ensureDeferred
async def test_waits_are_spread(site: Site, random: float, seconds: float) -> None:
    """The waits are random, so that machines do not all retry at the same time."""
    site.directory.error = OUTAGE
    with pytest.raises(RetryLater) as caught:
        await site.guarded_directory(random=random).free_space()
    assert caught.value.at - site.clock.seconds() == seconds


@pytest.mark.parametrize("error", [NoSpace("Full."), DeliveryFailed("No."), UnexplainedExit("255")])
@pytest_twisted.ensureDeferred
async def test_a_refusal_is_an_answer(site: Site, error: Exception) -> None:
    """A refusal closes the breaker; it fails its pull and opens no breaker."""
    await site.trip()
    site.clock.advance(16)
    site.directory.error = error
    await site.first.reach()
    with pytest.raises(type(error)):
        await site.first.free_space()
    await site.second.reach()


@pytest_twisted.ensureDeferred
async def test_without_a_store_no_pull_is_postponed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pull that failed is postponed as before; other pulls try the system."""

    async def unavailable(*_: object) -> Breaker | None:
        raise Unavailable("The database is away.")

    for name in ("check_breaker", "trip_breaker", "close_breaker", "end_probe"):
        monkeypatch.setattr(site.store, name, unavailable)
    await site.trip()
    await site.second.reach()
    site.directory.error = None
    assert await site.second.exists(META) is None
