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
from tests.service.test_gateway import ALICE, BROKEN, DENIED, PRIVATE, Bench

LOGGED_IN = replace(ALICE, logins={"default": RegistryLogin("ann", "hush")})
ELSEWHERE = replace(ALICE, logins={"other": RegistryLogin("ann", "hush")})


@pytest_twisted.async_yield_fixture()
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Give a gateway on an empty store."""
    store = SqliteStore(reactor, tmp_path / "store.sqlite")
    await store.startService()
    yield Bench(store)
    await store.stopService()


@pytest_twisted.ensureDeferred
async def test_who_logs_in_is_not_told_the_old_refusal(bench: Bench) -> None:
    """Refused without a login, he logs in as he was told to and pulls again: that is tried."""
    await bench.pull(ALICE)
    await bench.end(DENIED)
    assert (await bench.pull(ELSEWHERE)).status is State.FAILURE
    assert (await bench.pull(LOGGED_IN)).status is State.INIT
    assert (await bench.pull(LOGGED_IN)).status is State.PENDING
    await bench.end(PRIVATE)
    ready = await bench.pull(LOGGED_IN)
    assert (ready.status, ready.with_login) == (State.READY, None)


@pytest_twisted.ensureDeferred
async def test_a_login_that_is_refused_is_told_to_its_client(bench: Bench) -> None:
    """Whoever polls with his login hears how the pull with it ended, and starts no other."""
    await bench.pull(ALICE)
    await bench.end(DENIED)
    await bench.pull(LOGGED_IN)
    await bench.end(DENIED)
    for _ in range(3):
        assert (await bench.pull(LOGGED_IN)).status is State.FAILURE
    assert bench.woken == 2


@pytest_twisted.ensureDeferred
async def test_a_login_does_not_help_against_everything(bench: Bench) -> None:
    """A failure that has nothing to do with logins counts as before."""
    await bench.pull(ALICE)
    await bench.end(BROKEN)
    assert (await bench.pull(LOGGED_IN)).status is State.FAILURE
