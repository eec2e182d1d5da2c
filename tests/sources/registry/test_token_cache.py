"""How long tokens are used, and what the texts of logins and grants show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from shiftergw.oci.challenge import Challenge
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.tokens import RepositoryAccess, Tokens
from shiftergw.sources.registry.transport import Transport
from tests.sources.registry.network import REACTOR
from tests.sources.registry.token_sites import ALICE

# The cache itself


def tokens_with(clock: Clock, life: float | None) -> tuple[Tokens, list[str]]:
    """Return a cache whose token service gives `token-N` for `life` seconds."""
    names: list[str] = []

    class Service(Transport):
        async def request(self, *args: Any, **kwargs: Any) -> Any:
            names.append(f"token-{len(names)}")
            return _Ok()

        async def read(self, *_: Any) -> bytes:
            return json.dumps({"token": names[-1], "expires_in": life}).encode()

    location = Location("test", "https://registry.example")
    transport = Service(REACTOR, location, Proxies({}), Limits())
    return Tokens(transport, clock), names


class _Ok:
    """A response."""

    code = 200
    headers = Headers()


CHALLENGE = Challenge("bearer", {"realm": "https://auth.example/"})


def obtain(tokens: Tokens, access: RepositoryAccess, bad: str | None = None) -> str | None:
    """Return an authorization, which is available at once."""
    results: list[str | None] = []
    Deferred.fromCoroutine(tokens.obtain([CHALLENGE], access, bad)).addCallback(results.append)
    return results[0]


@pytest.mark.parametrize(("life", "used"), [(300, 290), (None, 50), (8, 4), (10**6, 3590)])
def test_tokens_are_used_until_shortly_before_their_end(life: float | None, used: float) -> None:
    """Tokens without a lifetime are valid for a minute; no token is used longer than an hour."""
    clock = Clock()
    tokens, _ = tokens_with(clock, life)
    access = RepositoryAccess("team/app")
    assert tokens.authorization_for(access) is None
    assert obtain(tokens, access) == "Bearer token-0"
    clock.advance(used - 0.1)
    assert tokens.authorization_for(access) == "Bearer token-0"
    assert obtain(tokens, access) == "Bearer token-0"
    clock.advance(0.2)
    assert tokens.authorization_for(access) is None
    assert obtain(tokens, access) == "Bearer token-1"


def test_old_tokens_are_forgotten() -> None:
    """Old tokens are dropped from the memory of a worker."""
    clock = Clock()
    tokens, _ = tokens_with(clock, 60)
    for number in range(100):
        obtain(tokens, RepositoryAccess(f"team/{number}", ALICE))
        clock.advance(60)
    assert len(tokens._grants) == 1


def test_nothing_shows_a_secret() -> None:
    """The texts of logins and grants do not contain their secrets."""
    tokens, names = tokens_with(Clock(), 60)
    access = RepositoryAccess("team/app", ALICE)
    obtain(tokens, access)
    output = f"{access!r} {tokens._grants!r} {tokens!r}"
    assert "team/app" in output
    assert names[0] not in output
    assert "wörd" not in output
