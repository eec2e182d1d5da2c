"""Logins are tried at the root of a registry, and nothing of them is kept."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from shiftergw.errors import PullError, RegistryDenied, RegistryUnavailable
from shiftergw.model.requests import RegistryLogin
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import open_client, serving
from tests.sources.registry.test_basic_logins import basic
from tests.sources.registry.token_sites import ALICE, TokenRegistry

pytestmark = pytest.mark.usefixtures("nothing_is_shown")

WRONG = RegistryLogin("alice", "wrong")


def with_root(registry: FakeRegistry) -> FakeRegistry:
    """Have a registry answer requests for its root that it admits."""
    admit = registry.misbehave

    def misbehave(ask: Ask) -> object:
        return admit(ask) or (ask.answer(200, b"{}") if ask.path == "/v2/" else None)

    registry.misbehave = misbehave
    return registry


@pytest_twisted.ensureDeferred
async def test_a_token_service() -> None:
    """The token has no scope; a wrong login is refused, and a good one is asked for each time."""
    registry = TokenRegistry(public=False)
    registry.scope = ""
    async with serving(with_root(registry)) as client:
        for _ in range(2):
            assert await client.check_login("test", ALICE)
        with pytest.raises(RegistryDenied, match="refused the login") as denial:
            await client.check_login("test", WRONG)
    assert "access token" in denial.value.remedy
    assert [query.get("account") for query in registry.queries] == [["alice"]] * 3
    assert not any("scope" in query for query in registry.queries)
    assert {ask.path.partition("?")[0] for ask in registry.requests} == {"/v2/", "/token"}


@pytest_twisted.ensureDeferred
async def test_a_registry_with_passwords() -> None:
    """The login is sent only after a challenge."""
    registry = with_root(FakeRegistry(misbehave=basic))
    async with serving(registry) as client:
        assert await client.check_login("test", ALICE)
        with pytest.raises(RegistryDenied):
            await client.check_login("test", WRONG)
    sent_logins = [ask.header("Authorization") is not None for ask in registry.requests]
    assert sent_logins == [False, True, False, True]


@pytest_twisted.ensureDeferred
async def test_a_registry_that_asks_for_no_login() -> None:
    """Nothing is sent to it, and nothing is known of the login."""
    registry = with_root(FakeRegistry())
    async with serving(registry) as client:
        assert not await client.check_login("test", ALICE)
    assert [ask.header("Authorization") for ask in registry.requests] == [None]


@pytest.mark.parametrize(
    "answer",
    [
        lambda ask: ask.answer(401, WWW_Authenticate="Negotiate"),
        lambda ask: ask.answer(204),
        lambda ask: ask.answer(500),
        lambda ask: ask.answer(429),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_registry_that_cannot_say(answer: Any) -> None:
    """Any other answer is no refusal of the login."""
    async with serving(FakeRegistry(misbehave=answer)) as client:
        with pytest.raises(PullError) as error:
            await client.check_login("test", ALICE)
    assert not isinstance(error.value, RegistryDenied)


@pytest_twisted.ensureDeferred
async def test_a_registry_that_is_away() -> None:
    """Nothing listens there."""
    async with open_client("http://127.0.0.1:9") as client:
        with pytest.raises(RegistryUnavailable):
            await client.check_login("test", ALICE)
