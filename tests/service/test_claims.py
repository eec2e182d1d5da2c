"""Logins and the failures of a moment ago."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor

from shiftergw.model import RegistryLogin
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.service.test_gateway import ALICE, BROKEN_PULL, DENIED_PULL, PRIVATE, Bench

LOGGED_IN = replace(ALICE, logins={"default": RegistryLogin("ann", "hush")})
LOGGED_IN_ELSEWHERE = replace(ALICE, logins={"other": RegistryLogin("ann", "hush")})


@pytest_twisted.async_yield_fixture()
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Yield a gateway on an empty store."""
    store = SqliteStore(reactor, tmp_path / "store.sqlite")
    await store.startService()
    yield Bench(store)
    await store.stopService()


@pytest_twisted.ensureDeferred
async def test_a_login_overrides_an_earlier_refusal(bench: Bench) -> None:
    """After a refusal without a login, the user logs in, and a new pull is tried."""
    await bench.pull(ALICE)
    await bench.end(DENIED_PULL)
    assert (await bench.pull(LOGGED_IN_ELSEWHERE)).status is State.FAILURE
    assert (await bench.pull(LOGGED_IN)).status is State.INIT
    assert (await bench.pull(LOGGED_IN)).status is State.PENDING
    await bench.end(PRIVATE)
    ready = await bench.pull(LOGGED_IN)
    assert (ready.status, ready.with_login) == (State.READY, None)


@pytest_twisted.ensureDeferred
async def test_a_refused_login_is_answered_with_the_failure(bench: Bench) -> None:
    """Polls with this login see the failure and start no new pull."""
    await bench.pull(ALICE)
    await bench.end(DENIED_PULL)
    await bench.pull(LOGGED_IN)
    await bench.end(DENIED_PULL)
    for _ in range(3):
        assert (await bench.pull(LOGGED_IN)).status is State.FAILURE
    assert bench.wakes == 2


@pytest_twisted.ensureDeferred
async def test_a_login_does_not_override_every_failure(bench: Bench) -> None:
    """A failure that does not depend on logins counts as before."""
    await bench.pull(ALICE)
    await bench.end(BROKEN_PULL)
    assert (await bench.pull(LOGGED_IN)).status is State.FAILURE
