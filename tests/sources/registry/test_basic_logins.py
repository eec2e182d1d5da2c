"""Registries that take a login without a token service, and those that hide what they refuse."""

from __future__ import annotations

import pytest
import pytest_twisted

from shiftergw.errors import (
    GatewayError,
    ImageNotFound,
    RegistryDenied,
)
from shiftergw.model.requests import RegistryLogin
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import serving
from tests.sources.registry.token_sites import ALICE, IMAGE, SECRETS, TokenRegistry, fetch, resolve

pytestmark = pytest.mark.usefixtures("nothing_is_shown")


# Basic, and hidden repositories


def basic(ask: Ask) -> object:
    """Refuse requests without Alice's login."""
    if ask.header("Authorization") == f"Basic {SECRETS[1]}":
        return None
    return ask.answer(401, WWW_Authenticate='Negotiate, Basic realm="x", charset="UTF-8"')


@pytest_twisted.ensureDeferred
async def test_basic() -> None:
    """A login with colons and letters of any language is sent as UTF-8."""
    registry = FakeRegistry(IMAGE, misbehave=basic)
    async with serving(registry) as client:
        image = await resolve(client, ALICE)
        assert image.private
        await fetch(client, image, ALICE)
        with pytest.raises(RegistryDenied):
            await resolve(client)
        with pytest.raises(RegistryDenied):
            await resolve(client, RegistryLogin("alice", "wrong"))


@pytest.mark.parametrize("challenge", ["", "Negotiate", 'Digest realm="x"', '"'])
@pytest_twisted.ensureDeferred
async def test_unknown_schemes(challenge: str) -> None:
    """A challenge with an unknown scheme counts as a refusal."""
    registry = FakeRegistry(misbehave=lambda ask: ask.answer(401, WWW_Authenticate=challenge))
    async with serving(registry) as client:
        with pytest.raises(RegistryDenied):
            await resolve(client, ALICE)
    assert len(registry.requests) == 2


@pytest.mark.parametrize("status", [403, 404])
@pytest_twisted.ensureDeferred
async def test_repositories_that_are_hidden_from_anonymous_users(status: int) -> None:
    """If anonymous requests get 403 or 404 and then a challenge, the login is tried, too."""
    registry = TokenRegistry(public=False)
    challenge = registry.misbehave

    def hide(ask: Ask) -> object:
        if ask.header("Authorization") == "Bearer token-1":
            return ask.answer(status, b'{"errors":[{"message":"hidden"}]}')
        return challenge(ask)

    registry.misbehave = hide
    async with serving(registry) as client:
        assert (await resolve(client, ALICE)).private


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (404, 404, ImageNotFound),
        (404, 401, ImageNotFound),
        (404, 403, ImageNotFound),
        (401, 404, ImageNotFound),
        (401, 403, RegistryDenied),
        (403, 403, RegistryDenied),
    ],
)
@pytest_twisted.ensureDeferred
async def test_refused_twice(first: int, second: int, expected: type[GatewayError]) -> None:
    """If the request with the login is refused, too, both answers decide on the error."""
    fields = {"WWW_Authenticate": 'Basic realm="x"'}

    def misbehave(ask: Ask) -> object:
        status = first if len(ask.registry.requests) == 0 else second
        return ask.answer(status, b'{"errors":[{"message":"no entry"}]}', **fields)

    async with serving(FakeRegistry(misbehave=misbehave)) as client:
        with pytest.raises(expected) as caught:
            await resolve(client, ALICE)
    assert caught.type is expected
