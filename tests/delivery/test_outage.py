"""Pulls wait for a system that does not answer: the breaker, and real servers that hang."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
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
from shiftergw.model import Breaker
from shiftergw.plumbing.channel import Away, UnexplainedExit
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import ImageDirectory
from shiftergw.store.sqlite.store import SqliteStore
from tests.delivery.contract import META, ImageDirectoryContract

reactor: Any = global_reactor

AWAY = Away("The system cannot be reached.", remedy="Mend it.", detail="refused")
WAITS = BreakerWaits(first=16, longest=64, probe=10)
WHY = "the system alpha (its host does not answer)"


class Far(LocalDirectory):
    """A directory whose system can be made to fail."""

    error: Exception | None = None

    def __init__(self, directory: Path, threads: Threads) -> None:
        """Count how often it is used."""
        super().__init__(directory, threads)
        self.used = 0

    def _use(self) -> None:
        self.used += 1
        if self.error is not None:
            raise self.error

    async def free_space(self) -> int:
        """Fail, or look."""
        self._use()
        return await super().free_space()

    async def probe(self, content: bytes) -> None:
        """Fail, or write."""
        self._use()
        await super().probe(content)


class Site:
    """Two processes that use one directory, at a time that the test sets."""

    def __init__(self, store: SqliteStore, root: Path, threads: Threads) -> None:
        """Begin with a system that answers."""
        self.clock = Clock()
        self.clock.advance(1000)
        self.store = store
        self.far = Far(root, threads)
        self.first, self.second = self.guarded(), self.guarded()

    def guarded(
        self, name: str = "host:/images", machine: str = "here", random: float = 0.5
    ) -> GuardedDirectory:
        """Return the directory as another process sees it."""
        symptom = "its host does not answer"
        system = MonitoredSystem("alpha", name, machine, symptom)
        breaker = SystemBreaker(system, self.store, self.clock, lambda: random, WAITS)
        return GuardedDirectory(self.far, breaker)

    async def trip(self) -> None:
        """Have a use fail."""
        self.far.error = AWAY
        with pytest.raises(RetryLater):
            await self.first.free_space()

    async def postponed(self, directory: GuardedDirectory) -> float:
        """Return for how many seconds a pull has to wait."""
        with pytest.raises(RetryLater) as caught:
            await directory.reach()
        assert caught.value.why == WHY
        assert caught.value.system == "alpha"
        return caught.value.at - self.clock.seconds()


@pytest_twisted.async_yield_fixture()
async def site(tmp_path: Path, threads: Threads) -> AsyncIterator[Site]:
    """Give two processes, an empty store and an empty directory."""
    images = tmp_path / "far"
    images.mkdir()
    store = SqliteStore(reactor, tmp_path / "store.sqlite")
    await store.startService()
    try:
        yield Site(store, images, threads)
    finally:
        await store.stopService()


class TestGuardedDirectory(ImageDirectoryContract):
    """A guarded directory keeps the whole contract."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, site: Site) -> ImageDirectory:
        """Give a guarded directory."""
        site.far = Far(root, threads)
        return site.guarded()


@pytest_twisted.ensureDeferred
async def test_a_failure_is_a_wait(site: Site) -> None:
    """Whoever finds the system away learns until when to wait, and for what; the log the cause."""
    site.far.error = AWAY
    with pytest.raises(RetryLater) as caught:
        await site.first.free_space()
    later = caught.value
    assert (later.at, later.why, later.cause) == (1016, WHY, "system")
    what = "The image could not be delivered to the system alpha: its host does not answer."
    assert later.what == what
    assert later.remedy == "Mend it."
    assert later.detail == "The system cannot be reached. refused"


@pytest_twisted.ensureDeferred
async def test_a_silent_system_is_given_up_soon(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first request has a short limit, until a probe shows that the system is only slow."""
    site.first._first_seconds = FIRST_SECONDS
    answer: Deferred[int] = Deferred()
    monkeypatch.setattr(site.far, "free_space", lambda: answer)
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

    monkeypatch.setattr(site.far, "probe", slow)
    await site.first.reach()
    answer = Deferred()
    asking = Deferred.fromCoroutine(site.first.free_space())
    site.clock.advance(2 * FIRST_SECONDS)
    answer.callback(17)
    assert await asking == 17


@pytest_twisted.ensureDeferred
async def test_a_failure_holds_back_the_others(site: Site) -> None:
    """Other pulls, in whichever process, do not try the system until the time has come."""
    await site.trip()
    used = site.far.used
    assert await site.postponed(site.second) == 16
    site.clock.advance(15)
    assert await site.postponed(site.first) == 1
    assert site.far.used == used


@pytest_twisted.ensureDeferred
async def test_another_directory_or_machine_is_not_held_back(site: Site) -> None:
    """Other systems go on, and machines that may reach this one."""
    await site.trip()
    used = site.far.used
    await site.guarded("other:/images").reach()
    await site.guarded(machine="there").reach()
    assert site.far.used == used, "nothing is sent to a system that is not known to be away"


@pytest_twisted.ensureDeferred
async def test_a_probe_that_succeeds_closes_the_breaker(site: Site) -> None:
    """One pull tries, then all go on; nothing of the trial is left."""
    await site.trip()
    site.far.error = None
    site.clock.advance(16)
    used = site.far.used
    await site.first.reach()
    await site.second.reach()
    assert site.far.used == used + 1
    assert await site.second.list() == []
    assert list(site.far._directory.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_others_wait_while_a_probe_is_under_way(site: Site) -> None:
    """They wait for a moment, and probe themselves only if the probe does not end."""
    await site.trip()
    site.clock.advance(16)
    key = site.first._breaker._system.breaker_key
    assert await site.store.check_breaker(key, site.clock.seconds(), PROBE_SECONDS)
    assert await site.postponed(site.second) == 10
    site.clock.advance(PROBE_SECONDS - 1)
    assert await site.postponed(site.second) == 1
    site.clock.advance(1)
    site.far.error = None
    await site.second.reach()


@pytest_twisted.ensureDeferred
async def test_a_probe_that_is_cancelled_is_followed_by_the_next(site: Site) -> None:
    """A pull that is stopped in the middle of its probe holds nobody back."""
    await site.trip()
    site.clock.advance(16)
    site.far.error = CancelledError()
    with pytest.raises(CancelledError):
        await site.first.reach()
    site.far.error = None
    await site.second.reach()
    await site.first.reach()


@pytest_twisted.ensureDeferred
async def test_waits_grow(site: Site) -> None:
    """Each probe that fails doubles the wait, up to a limit; success begins anew."""
    await site.trip()
    waits = []
    for _ in range(4):
        site.clock.advance(64)
        waits.append(await site.postponed(site.first))
    assert waits == [32, 64, 64, 64]
    site.clock.advance(64)
    site.far.error = None
    await site.first.reach()
    await site.trip()
    assert await site.postponed(site.second) == 16


@pytest.mark.parametrize(("random", "seconds"), [(0.0, 8), (1.0, 24)])
@pytest_twisted.ensureDeferred
async def test_waits_are_spread(site: Site, random: float, seconds: float) -> None:
    """Machines that have found a system away together do not all come back together."""
    site.far.error = AWAY
    with pytest.raises(RetryLater) as caught:
        await site.guarded(random=random).free_space()
    assert caught.value.at - site.clock.seconds() == seconds


@pytest.mark.parametrize("error", [NoSpace("Full."), DeliveryFailed("No."), UnexplainedExit("255")])
@pytest_twisted.ensureDeferred
async def test_a_refusal_is_an_answer(site: Site, error: Exception) -> None:
    """It ends the pull that meets it, closes the breaker, and trips none."""
    await site.trip()
    site.clock.advance(16)
    site.far.error = error
    await site.first.reach()
    with pytest.raises(type(error)):
        await site.first.free_space()
    await site.second.reach()


@pytest_twisted.ensureDeferred
async def test_without_a_store_nothing_is_held_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pull that failed waits as long as before; the others try themselves."""

    async def unavailable(*_: object) -> Breaker | None:
        raise Unavailable("The database is away.")

    for name in ("check_breaker", "trip_breaker", "close_breaker", "end_probe"):
        monkeypatch.setattr(site.store, name, unavailable)
    await site.trip()
    await site.second.reach()
    site.far.error = None
    assert await site.second.exists(META) is None
