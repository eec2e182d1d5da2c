"""A login may start a new pull after a failure of a moment ago."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor

from shiftergw.model.requests import RegistryLogin
from shiftergw.service.claims import LEAST_FRESH
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.service.gateway_bench import ALICE, BROKEN_PULL, DENIED_PULL, PRIVATE, READY, Bench

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


@pytest_twisted.ensureDeferred
async def test_a_login_under_another_spelling(bench: Bench) -> None:
    """A login belongs to the location that its name means, in any case and with any port."""
    for number, name in enumerate(("Registry.Example.COM", "registry.example.com:443")):
        session = replace(ALICE, logins={name: RegistryLogin("ann", "hush")})
        record = await bench.pull(session, f"app:{number}")
        stored_record = await bench.store.get(record.key)
        assert stored_record is not None
        assert stored_record.sealed is not None
    for number, name in enumerate(("registry.example.com:5000", "docker.io", "example.com")):
        session = replace(ALICE, logins={name: RegistryLogin("ann", "hush")})
        record = await bench.pull(session, f"other:{number}")
        stored_record = await bench.store.get(record.key)
        assert stored_record is not None
        assert stored_record.sealed is None


@pytest_twisted.ensureDeferred
async def test_an_image_is_found_under_any_spelling_of_its_registry(bench: Bench) -> None:
    """A pull and a look-up may write the host in another case, and a pull of both is one."""
    await bench.pull(ALICE, "Registry.Example.com/app:1")
    assert (await bench.pull(ALICE, "registry.example.com/app:1")).status is State.PENDING
    await bench.end(READY)
    for name in ("REGISTRY.example.com/app:1", "registry.example.com/app:1"):
        assert (await bench.gateway.lookup(ALICE, "docker", name)).id == READY.id
        assert (await bench.pull(ALICE, name)).status is State.READY


@pytest_twisted.ensureDeferred
async def test_an_image_that_the_present_policy_has_not_judged(bench: Bench) -> None:
    """The client of the pull sees its result; after that the next pull is new work."""
    bench.is_judged = False
    await bench.pull(ALICE)
    await bench.end(READY)
    assert (await bench.pull(ALICE)).status is State.READY
    bench.clock.advance(LEAST_FRESH + 1)
    assert (await bench.pull(ALICE)).status is State.INIT
    await bench.end(READY)
    bench.is_judged = True
    bench.clock.advance(LEAST_FRESH + 1)
    assert (await bench.pull(ALICE)).status is State.READY
