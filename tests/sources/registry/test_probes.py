"""Probes of breakers that end without the answer that would close or trip them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import PullError, RegistryUntrusted, RetryLater
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.admission import PROBE_SECONDS
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.retry import Patience
from shiftergw.store.sqlite.store import SqliteStore
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.breaker_sites import ShiftedClock, breakers_of, registry, resolve
from tests.sources.registry.network import REACTOR, open_client

PATIENCE = Patience(first=1, quick=0.5)
LIMITED_FOR = 60
"""Seconds of the `Retry-After` that opens the breaker of each test."""


class Answers:
    """The behavior of a registry: 429 to the first request, then `probe`, then correct answers."""

    def __init__(self, probe: Any, count: int = 1) -> None:
        """Call `probe`, as `FakeRegistry` calls `misbehave`, for `count` requests."""
        self._probe = probe
        self._count = count

    def __call__(self, ask: Ask) -> object:
        """Answer a request."""
        requests = len(ask.registry.requests)
        if requests == 0:
            return ask.answer(429, Retry_After=str(LIMITED_FOR))
        return self._probe(ask) if requests <= self._count else None


def unavailable(ask: Ask) -> object:
    """Answer 503."""
    return ask.answer(503)


def reset_connection(ask: Ask) -> object:
    """Break the connection."""
    return ask.hang_up(reset=True)


def redirect_inside(ask: Ask) -> object:
    """Redirect to an address that is not public."""
    return ask.answer(307, Location="http://169.254.169.254/")


@asynccontextmanager
async def limited_registry(
    store: SqliteStore, answers: Answers
) -> AsyncIterator[tuple[FakeRegistry, ShiftedClock, RegistryClient, RegistryClient]]:
    """Yield a registry, the clock, and the clients of two processes; a probe is due."""
    clock = ShiftedClock()
    async with registry(answers) as server:
        url = f"http://{server.host}"
        async with (
            open_client(url, clock, shared_breakers=breakers_of(store), patience=PATIENCE) as first,
            open_client(
                url, clock, shared_breakers=breakers_of(store), patience=PATIENCE
            ) as second,
        ):
            with pytest.raises(RetryLater):
                await resolve(first)
            clock.shift = LIMITED_FOR + 1
            yield server, clock, first, second


@pytest.mark.parametrize(
    ("probe", "count"),
    [
        (unavailable, 1),
        (reset_connection, 2),
    ],  # Twisted repeats a request at once on a new connection
)
@pytest_twisted.ensureDeferred
async def test_a_probe_without_an_answer(store: SqliteStore, probe: Any, count: int) -> None:
    """The breaker opens again for some seconds; then any process sends the next probe."""
    async with limited_registry(store, Answers(probe, count)) as (server, clock, first, second):
        for client in (first, second):
            with pytest.raises(RetryLater) as caught:
                await resolve(client)
        wait = caught.value.at - clock.seconds()
        assert 1 < wait < PROBE_SECONDS / 4
        assert "rate limit" not in caught.value.why
        assert len(server.requests) == 1 + count, "a probe has one try"
        clock.shift += wait + 0.1
        assert await resolve(second) is False


@pytest_twisted.ensureDeferred
async def test_probes_without_answers_wait_longer(store: SqliteStore) -> None:
    """Each probe without an answer doubles the time until the next probe."""
    clock = ShiftedClock()

    waits = []
    async with (
        registry(Answers(unavailable, 9)) as server,
        open_client(
            f"http://{server.host}", clock, shared_breakers=breakers_of(store), patience=PATIENCE
        ) as client,
    ):
        for _ in range(4):
            with pytest.raises(RetryLater) as caught:
                await resolve(client)
            waits.append(round(caught.value.at - clock.seconds()))
            clock.shift += caught.value.at - clock.seconds() + 0.1
    assert waits == [LIMITED_FOR, 8, 16, 32]


@pytest_twisted.ensureDeferred
async def test_a_probe_that_is_cancelled(store: SqliteStore) -> None:
    """Another process sends the next probe at once."""
    requests: list[Ask] = []

    def hang(ask: Ask) -> object:
        requests.append(ask)
        return True

    async with limited_registry(store, Answers(hang)) as (_, _, first, second):
        probe = Deferred.fromCoroutine(resolve(first))
        while not requests:
            await pause(0.01, REACTOR)
        probe.cancel()
        with pytest.raises((CancelledError, PullError)):
            await probe
        assert await resolve(second) is False


@pytest_twisted.ensureDeferred
async def test_a_probe_that_another_breaker_holds_back(store: SqliteStore) -> None:
    """The next probe follows when the wait of the other breaker is over."""
    async with limited_registry(store, Answers(lambda _: None)) as (server, clock, first, second):
        key = f"unreachable {server.host} {breakers_of(store).machine}"
        await store.trip_breaker(key, clock.seconds() + 20, "away", clock.seconds())
        with pytest.raises(RetryLater):
            await resolve(first)
        clock.shift += 21
        assert await resolve(second) is False


@pytest_twisted.ensureDeferred
async def test_a_probe_with_an_error_that_lasts(store: SqliteStore) -> None:
    """An error that waiting does not mend closes the breaker: each pull has it at once."""
    async with limited_registry(store, Answers(redirect_inside, 9)) as (_, _, first, second):
        for client in (first, second):
            with pytest.raises(RegistryUntrusted):
                await resolve(client)
