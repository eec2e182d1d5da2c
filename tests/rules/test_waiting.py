"""A pull whose source says "later" holds no worker: it waits for its time, or fails at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.app.waiting import run_with_waits
from shiftergw.errors import DeliveryFailed, PullError, RegistryUnavailable, RetryLater
from shiftergw.model import ImageRecord, PostponeLimits, WaitLimits
from shiftergw.plumbing.timing import pause
from shiftergw.rules.attempts import MAX_ATTEMPTS
from shiftergw.rules.waiting import decide_wait
from shiftergw.states import State
from tests.job.workbench import Bench, running_bench

FAILURE = RegistryUnavailable("The registry 'ghcr.io' cannot be reached.")
LIMITS = WaitLimits(900.0)
NOW = 1000.0


def later(
    seconds: float,
    *,
    registry: str = "",
    is_fixed: bool = True,
    now: float = NOW,
    limit: float | None = None,
) -> RetryLater:
    """Return what a source says that wants to be asked again in so many seconds."""
    failure = RegistryUnavailable(FAILURE.what, detail="10.0.0.1: refused")
    at = now + seconds
    return RetryLater(
        at, "ghcr.io (rate limit)", failure, registry=registry, is_fixed=is_fixed, limit=limit
    )


def test_a_wait_within_the_limit() -> None:
    """The pull waits until the time that was named."""
    wait = decide_wait(0, later(900, registry="ghcr.io"), NOW, LIMITS)
    assert (wait.not_before, wait.why) == (NOW + 900, "ghcr.io (rate limit)")


def test_a_wait_beyond_the_limit() -> None:
    """The pull fails with both times in words, and with what helps; the log learns the rest."""
    with pytest.raises(RegistryUnavailable) as caught:
        decide_wait(0, later(21600, registry="ghcr.io"), NOW, LIMITS)
    assert caught.value.what == "ghcr.io asks to wait 6 hours; at most 15 minutes are waited."
    assert "RegistryWait" in caught.value.remedy
    assert "shiftergw login ghcr.io" in caught.value.remedy
    assert "10.0.0.1" in caught.value.detail
    assert "10.0.0.1" not in str(caught.value)


def test_all_waits_count() -> None:
    """What was waited before is told, and counts."""
    decide_wait(600, later(300, registry="ghcr.io"), NOW, LIMITS)
    with pytest.raises(RegistryUnavailable, match="and the pull waited 10 minutes before"):
        decide_wait(600, later(301, registry="ghcr.io"), NOW, LIMITS)


def test_what_stays_away() -> None:
    """The failure's own words remain, with how long it was waited."""
    with pytest.raises(RegistryUnavailable, match="cannot be reached") as caught:
        decide_wait(870, later(40), NOW, LIMITS)
    assert "waited 14.5 minutes for it, and may wait 15 minutes" in caught.value.remedy


def test_waits_that_nobody_named_grow() -> None:
    """Each is as long as all before together, up to five minutes; named ones stay as named."""
    waits, waited = [], 0.0
    while True:
        try:
            wait = (
                decide_wait(waited, later(4, is_fixed=False), NOW, WaitLimits(2000)).not_before
                - NOW
            )
        except PullError:
            break
        waits.append(wait)
        waited += wait
    assert waits == [4, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]
    assert decide_wait(500, later(4), NOW, LIMITS).not_before == NOW + 4


@pytest.mark.parametrize("seconds", [0, -30])
def test_a_time_that_has_passed(seconds: float) -> None:
    """A wait counts for a second at least, so that a pull reaches its limit some day."""
    assert decide_wait(0, later(seconds), NOW, LIMITS).not_before == NOW + 1
    decide_wait(899, later(seconds), NOW, LIMITS)
    with pytest.raises(PullError):
        decide_wait(899.5, later(seconds), NOW, LIMITS)
    with pytest.raises(PullError):
        decide_wait(0, later(seconds), NOW, WaitLimits(0))


@pytest.mark.parametrize(
    ("waited", "words"),
    [(1790, "The pull waited 29.8 minutes for it, and may wait"), (0, "A pull may wait")],
)
def test_a_system_that_stays_away(waited: float, words: str) -> None:
    """Waits for systems have a limit of their own; the words name it, the time and the system."""
    failure = DeliveryFailed("The image could not be delivered to the system x.", remedy="Wait.")

    def of(seconds: float) -> RetryLater:
        return RetryLater(NOW + seconds, "the system x", failure, is_fixed=True, system="x")

    assert decide_wait(1000, of(800), NOW, LIMITS).cause == "system"
    with pytest.raises(DeliveryFailed, match="system x") as caught:
        decide_wait(waited, of(1801 - waited), NOW, LIMITS)
    assert caught.value.remedy == (f"{words} 30 minutes (the site can raise `DeliveryWait`). Wait.")


def test_a_limit_of_its_own() -> None:
    """What waits for something else than a registry has a limit of its own, and its own words."""
    decide_wait(1000, later(30, limit=3600), NOW, LIMITS)
    with pytest.raises(RegistryUnavailable) as caught:
        decide_wait(3590, later(30, limit=3600), NOW, LIMITS)
    assert "RegistryWait" not in caught.value.remedy


def test_a_conversion_outside_the_service_waits_itself() -> None:
    """It says how long, tries again at that time, and gives up as a pull does."""
    clock, said, tries = Clock(), list[str](), list[float]()

    async def work() -> str:
        tries.append(clock.seconds())
        if len(tries) < 3:
            raise later(30, registry="ghcr.io", now=clock.seconds())
        return "built"

    def run(limit: float) -> Deferred[str]:
        return Deferred.fromCoroutine(run_with_waits(work, clock, WaitLimits(limit), said.append))

    running = run(60)
    clock.pump([30, 30])
    assert running.result == "built"
    assert tries == [0, 30, 60]
    assert said == ["waiting 30 seconds for ghcr.io (rate limit)"] * 2
    tries.clear()
    running = run(59)
    clock.pump([30, 30])
    words: list[str] = []
    running.addErrback(lambda failure: words.append(str(failure.value)))
    assert words[0].startswith("ghcr.io asks")
    assert len(tries) == 2


# In the worker.


@pytest_twisted.async_yield_fixture()
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Return a worker on an empty store."""
    async with running_bench(tmp_path) as opened:
        yield opened


def soon(seconds: float) -> RetryLater:
    """Return what a registry says that wants to be asked again in so many seconds."""
    clock: Any = reactor
    return later(seconds, registry="ghcr.io", now=clock.seconds())


async def stored(bench: Bench, key: str) -> ImageRecord:
    """Return a record as it is now."""
    record = await bench.store.get(key)
    assert record is not None
    return record


@pytest_twisted.ensureDeferred
async def test_a_pull_that_waits_holds_no_worker(bench: Bench) -> None:
    """Its record says until when and for what; the same worker does others' work meanwhile."""
    record = await bench.claim(login="alice:secret")
    bench.source.refuses = soon(300)
    await bench.worker.run(record.key)
    waits = await stored(bench, record.key)
    assert (waits.status, waits.waits_for) == (State.PENDING, "ghcr.io (rate limit)")
    assert (waits.runner, waits.last_heartbeat) == (None, None)
    assert (waits.status_message or "").startswith("Waits until ")
    assert waits.sealed == record.sealed
    await bench.worker.run(record.key)  # a message that comes too early
    assert await stored(bench, record.key) == waits
    bench.source.refuses = None
    assert (await bench.pull("lib/app:2")).status is State.READY


@pytest_twisted.ensureDeferred
async def test_it_goes_on_at_its_time(bench: Bench) -> None:
    """The next attempt ends well, however often the registry asked to wait before."""
    record = await bench.claim()
    for _ in range(MAX_ATTEMPTS + 1):
        bench.source.refuses = soon(0.01)
        await bench.worker.run(record.key)
        await pause(0.01, reactor)
    assert (await stored(bench, record.key)).waited > 0
    bench.source.refuses = None
    await bench.worker.run(record.key)
    ended = await stored(bench, record.key)
    assert (ended.status, ended.deaths) == (State.READY, 0)


@pytest_twisted.ensureDeferred
async def test_a_wait_that_is_too_long_ends_the_pull(bench: Bench) -> None:
    """At once, with the words; the login is gone then."""
    bench.source.refuses = soon(21600)
    record = await bench.pull(login="alice:secret")
    assert (record.status, record.sealed, record.retryable) == (State.FAILURE, None, True)
    assert (record.cause or "").startswith("ghcr.io asks to wait 6 hours; at most 15 minutes")
    assert record.status_message == record.cause


@pytest_twisted.ensureDeferred
async def test_too_many_wait(bench: Bench) -> None:
    """Beyond what may be postponed of a registry a pull fails, and says so."""
    bench.worker._waits = WaitLimits(900, PostponeLimits(1, 1))
    bench.source.refuses = soon(300)
    assert (await bench.pull("lib/app:1", location="ghcr.io")).status is State.PENDING
    record = await bench.pull("lib/app:2", location="ghcr.io")
    assert (record.status, record.cause) == (
        State.FAILURE,
        "1 of your pulls wait for this registry already.",
    )


@pytest_twisted.ensureDeferred
async def test_a_download_that_waits_keeps_what_it_has(bench: Bench) -> None:
    """What has arrived of the layers is there for the next attempt."""
    bench.builder.fails = soon(300)
    record = await bench.pull()
    assert record.status is State.PENDING
    assert bench.cache.abandoned_blobs == []
