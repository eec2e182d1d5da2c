"""A pull that a source delays occupies no worker: it is postponed, or fails at once."""

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
from shiftergw.model.postponement import PostponeLimits, WaitLimits
from shiftergw.model.records import ImageRecord
from shiftergw.plumbing.timing import pause
from shiftergw.rules.attempts import MAX_ATTEMPTS
from shiftergw.rules.waiting import decide_wait
from shiftergw.states import State
from tests.job.workbench import Bench, running_bench

FAILURE = RegistryUnavailable("The registry 'ghcr.io' cannot be reached.")
LIMITS = WaitLimits(900.0)
NOW = 1000.0


def delay_of(
    seconds: float,
    *,
    registry: str = "",
    is_fixed: bool = True,
    now: float = NOW,
    limit: float | None = None,
) -> RetryLater:
    """Return the error of a source that asks to retry after some seconds."""
    failure = RegistryUnavailable(FAILURE.what, detail="10.0.0.1: refused")
    at = now + seconds
    return RetryLater(
        at, "ghcr.io (rate limit)", failure, registry=registry, is_fixed=is_fixed, limit=limit
    )


def test_a_wait_within_the_limit() -> None:
    """The pull waits until the time that the registry named."""
    wait = decide_wait(0, delay_of(900, registry="ghcr.io"), NOW, LIMITS)
    assert (wait.not_before, wait.why) == (NOW + 900, "ghcr.io (rate limit)")


def test_a_wait_beyond_the_limit() -> None:
    """The pull fails with both times and a remedy; the detail is for the log only."""
    with pytest.raises(RegistryUnavailable) as caught:
        decide_wait(0, delay_of(21600, registry="ghcr.io"), NOW, LIMITS)
    assert caught.value.what == "ghcr.io asks to wait 6 hours; at most 15 minutes are waited."
    assert "RegistryWait" in caught.value.remedy
    assert "shiftergw login ghcr.io" in caught.value.remedy
    assert "10.0.0.1" in caught.value.detail
    assert "10.0.0.1" not in str(caught.value)


def test_earlier_waits_count() -> None:
    """Earlier waits count towards the limit, and the error names them."""
    decide_wait(600, delay_of(300, registry="ghcr.io"), NOW, LIMITS)
    with pytest.raises(RegistryUnavailable, match="and the pull waited 10 minutes before"):
        decide_wait(600, delay_of(301, registry="ghcr.io"), NOW, LIMITS)


def test_a_registry_that_stays_unreachable() -> None:
    """The error keeps the text of the failure, and adds the time waited."""
    with pytest.raises(RegistryUnavailable, match="cannot be reached") as caught:
        decide_wait(870, delay_of(40), NOW, LIMITS)
    assert "waited 14.5 minutes for it, and may wait 15 minutes" in caught.value.remedy


def test_waits_without_a_named_time_grow() -> None:
    """Each wait is as long as all earlier ones, at most five minutes; a named time stays."""
    waits, past_wait = [], 0.0
    while True:
        try:
            delay = delay_of(4, is_fixed=False)
            wait = decide_wait(past_wait, delay, NOW, WaitLimits(2000)).not_before - NOW
        except PullError:
            break
        waits.append(wait)
        past_wait += wait
    assert waits == [4, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]
    assert decide_wait(500, delay_of(4), NOW, LIMITS).not_before == NOW + 4


@pytest.mark.parametrize("seconds", [0, -30])
def test_a_time_that_has_passed(seconds: float) -> None:
    """A wait counts as at least a second, so that a pull reaches its limit."""
    assert decide_wait(0, delay_of(seconds), NOW, LIMITS).not_before == NOW + 1
    decide_wait(899, delay_of(seconds), NOW, LIMITS)
    with pytest.raises(PullError):
        decide_wait(899.5, delay_of(seconds), NOW, LIMITS)
    with pytest.raises(PullError):
        decide_wait(0, delay_of(seconds), NOW, WaitLimits(0))


@pytest.mark.parametrize(
    ("past_wait", "words"),
    [(1790, "The pull waited 29.8 minutes for it, and may wait"), (0, "A pull may wait")],
)
def test_a_system_that_stays_away(past_wait: float, words: str) -> None:
    """Waits for systems have their own limit; the error names it, the time and the system."""
    failure = DeliveryFailed("The image could not be delivered to the system x.", remedy="Wait.")

    def delay(seconds: float) -> RetryLater:
        return RetryLater(NOW + seconds, "the system x", failure, is_fixed=True, system="x")

    assert decide_wait(1000, delay(800), NOW, LIMITS).cause == "system"
    with pytest.raises(DeliveryFailed, match="system x") as caught:
        decide_wait(past_wait, delay(1801 - past_wait), NOW, LIMITS)
    assert caught.value.remedy == (f"{words} 30 minutes (the site can raise `DeliveryWait`). Wait.")


def test_waits_for_other_pulls() -> None:
    """Waits for other pulls have their own limit; the error does not mention `RegistryWait`."""
    decide_wait(1000, delay_of(30, limit=3600), NOW, LIMITS)
    with pytest.raises(RegistryUnavailable) as caught:
        decide_wait(3590, delay_of(30, limit=3600), NOW, LIMITS)
    assert "RegistryWait" not in caught.value.remedy


def test_a_conversion_outside_the_service_waits_itself() -> None:
    """The command prints the time, retries at that time, and fails at the limit of a pull."""
    clock, messages, tries = Clock(), list[str](), list[float]()

    async def work() -> str:
        tries.append(clock.seconds())
        if len(tries) < 3:
            raise delay_of(30, registry="ghcr.io", now=clock.seconds())
        return "built"

    def run(limit: float) -> Deferred[str]:
        return Deferred.fromCoroutine(
            run_with_waits(work, clock, WaitLimits(limit), messages.append)
        )

    running = run(60)
    clock.pump([30, 30])
    assert running.result == "built"
    assert tries == [0, 30, 60]
    assert messages == ["waiting 30 seconds for ghcr.io (rate limit)"] * 2
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
    """Return a worker with an empty store."""
    async with running_bench(tmp_path) as workbench:
        yield workbench


def registry_delay(seconds: float) -> RetryLater:
    """Return the error of a registry that asks to retry after some seconds."""
    clock: Any = reactor
    return delay_of(seconds, registry="ghcr.io", now=clock.seconds())


async def current_record(bench: Bench, key: str) -> ImageRecord:
    """Return the present state of a record."""
    record = await bench.store.get(key)
    assert record is not None
    return record


@pytest_twisted.ensureDeferred
async def test_a_postponed_pull_occupies_no_worker(bench: Bench) -> None:
    """The record has the time and the reason; the worker does other work meanwhile."""
    record = await bench.claim(login="alice:secret")
    bench.source.refuses = registry_delay(300)
    await bench.worker.run(record.key)
    waits = await current_record(bench, record.key)
    assert (waits.status, waits.waits_for) == (State.PENDING, "ghcr.io (rate limit)")
    assert (waits.runner, waits.last_heartbeat) == (None, None)
    assert (waits.status_message or "").startswith("Waits until ")
    assert waits.sealed == record.sealed
    await bench.worker.run(record.key)  # a message that comes too early
    assert await current_record(bench, record.key) == waits
    bench.source.refuses = None
    assert (await bench.pull("lib/app:2")).status is State.READY


@pytest_twisted.ensureDeferred
async def test_a_postponed_pull_resumes_at_its_time(bench: Bench) -> None:
    """The next attempt succeeds, however often the registry delayed earlier ones."""
    record = await bench.claim()
    for _ in range(MAX_ATTEMPTS + 1):
        bench.source.refuses = registry_delay(0.01)
        await bench.worker.run(record.key)
        await pause(0.01, reactor)
    assert (await current_record(bench, record.key)).waited > 0
    bench.source.refuses = None
    await bench.worker.run(record.key)
    record = await current_record(bench, record.key)
    assert (record.status, record.deaths) == (State.READY, 0)


@pytest_twisted.ensureDeferred
async def test_a_wait_beyond_the_limit_ends_the_pull(bench: Bench) -> None:
    """The pull fails at once with the reason, and its login is deleted."""
    bench.source.refuses = registry_delay(21600)
    record = await bench.pull(login="alice:secret")
    assert (record.status, record.sealed, record.retryable) == (State.FAILURE, None, True)
    assert (record.cause or "").startswith("ghcr.io asks to wait 6 hours; at most 15 minutes")
    assert record.status_message == record.cause


@pytest_twisted.ensureDeferred
async def test_too_many_postponed_pulls(bench: Bench) -> None:
    """If a registry has too many postponed pulls, the next one fails and says so."""
    bench.worker._waits = WaitLimits(900, PostponeLimits(1, 1))
    bench.source.refuses = registry_delay(300)
    assert (await bench.pull("lib/app:1", location="ghcr.io")).status is State.PENDING
    record = await bench.pull("lib/app:2", location="ghcr.io")
    assert (record.status, record.cause) == (
        State.FAILURE,
        "1 of your pulls wait for this registry already.",
    )


@pytest_twisted.ensureDeferred
async def test_a_postponed_download_keeps_its_bytes(bench: Bench) -> None:
    """The bytes of the layers stay in the cache for the next attempt."""
    bench.builder.fails = registry_delay(300)
    record = await bench.pull()
    assert record.status is State.PENDING
    assert bench.cache.abandoned_blobs == []
