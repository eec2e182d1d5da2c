"""Anonymous requests come first, then the login; tokens are cached, renewed, and never output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import pytest_twisted

from shiftergw.errors import (
    RegistryDenied,
    RegistryUnavailable,
    RegistryUntrusted,
)
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.gather import gather_or_cancel
from tests.certificates import Authority
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import PUBLIC, Network, open_client, serving
from tests.sources.registry.token_sites import ALICE, IMAGE, SECRETS, TokenRegistry, fetch, resolve

pytestmark = pytest.mark.usefixtures("nothing_is_shown")


def all_of(error: BaseException | None) -> str:
    """Return all texts that an error and its causes could show."""
    text = ""
    while error is not None:
        text += f"{error!r} {error} {vars(error)}"
        error = error.__cause__
    return text


# Bearer


@pytest_twisted.ensureDeferred
async def test_an_anonymous_token() -> None:
    """A public image is read with one anonymous token for all its parts."""
    registry = TokenRegistry(public=True)
    async with serving(registry) as client:
        image = await resolve(client, ALICE)
        await fetch(client, image)
    assert not image.private
    assert registry.queries == [
        {
            "x": ["1"],
            "client_id": ["shiftergw"],
            "service": ["the registry"],
            "scope": ["repository:team/app:pull"],
        }
    ]
    assert registry.paths()[:3] == ["latest", "token", "latest"]
    assert registry.requests[1].header("Authorization") is None


@pytest_twisted.ensureDeferred
async def test_a_token_for_the_login() -> None:
    """If the anonymous token is refused, a token for the login is used; the image is private."""
    registry = TokenRegistry(public=False)
    async with serving(registry) as client:
        image = await resolve(client, ALICE)
        count = len(registry.requests)
        await fetch(client, image, ALICE)
    assert image.private
    assert [query.get("account") for query in registry.queries] == [None, ["alice"]]
    # The blob of a private image is asked for with the login's token from the start.
    assert len(registry.requests) == count + 1


@pytest_twisted.ensureDeferred
async def test_denied() -> None:
    """Without a login, or with a wrong one, the error has a remedy."""
    registry = TokenRegistry(public=False)
    async with serving(registry) as client:
        with pytest.raises(RegistryDenied, match="team/app") as without:
            await resolve(client)
        wrong = RegistryLogin("alice", "wörd")
        with pytest.raises(RegistryDenied) as denial:
            await resolve(client, wrong)
    assert "`shifterimg login test`" in without.value.remedy
    assert "log in anew" in denial.value.remedy
    assert not [secret for secret in SECRETS if secret in all_of(denial.value)]
    assert len(registry.requests) <= 9


@pytest_twisted.ensureDeferred
async def test_401_for_ever() -> None:
    """A registry that refuses its own tokens gets a few requests, not an endless number."""
    registry = TokenRegistry(public=False)
    registry.good = _EmptySet()
    async with serving(registry) as client:
        with pytest.raises(RegistryDenied):
            await resolve(client, ALICE)
    assert registry.paths() == ["latest", *["token", "latest"] * 2]


class _EmptySet(set[str]):
    """A set that stays empty."""

    def add(self, element: str) -> None:
        """Add no element."""


@pytest_twisted.ensureDeferred
async def test_renewal_in_the_middle_of_a_pull() -> None:
    """A token that becomes invalid between two layers is renewed once."""
    registry = TokenRegistry(public=True)
    async with serving(registry) as client:
        image = await resolve(client)
        registry.revoke()
        await fetch(client, image)
        await fetch(client, image, layer=1)
    assert len(registry.queries) == 2


@pytest_twisted.ensureDeferred
async def test_one_renewal_for_all() -> None:
    """Six blobs whose token becomes invalid at the same moment get one new token."""
    registry = TokenRegistry(public=True)
    async with serving(registry) as client:
        image = await resolve(client)
        registry.revoke()
        await gather_or_cancel(fetch(client, image, layer=n % 2) for n in range(6))
    assert len(registry.queries) == 2


@pytest_twisted.ensureDeferred
async def test_tokens_belong_to_a_login() -> None:
    """Another user's token is never used, nor is one for another repository."""
    registry = TokenRegistry(public=False)
    async with serving(registry) as client:
        image = await resolve(client, ALICE)
        with pytest.raises(RegistryDenied):
            await fetch(client, image, RegistryLogin("bob", "other"))
        with pytest.raises(RegistryDenied):
            await fetch(client, image)


@pytest.mark.parametrize(
    ("answer", "member", "scope"),
    [
        ({}, "access_token", ""),
        ({"expires_in": 300, "issued_at": "2024-01-01T00:00:00Z"}, "token", ""),
        ({"expires_in": None, "access_token": "other"}, "token", ',scope=""'),
        ({"expires_in": "soon"}, "token", ""),
        ({"expires_in": -5}, "token", ""),
        ({"expires_in": True}, "token", ""),
        ({"expires_in": 10**400}, "token", ""),
    ],
)
@pytest_twisted.ensureDeferred
async def test_forms_of_tokens(answer: dict[str, Any], member: str, scope: str) -> None:
    """`token`, `access_token`, any lifetime, and a challenge without a scope are accepted."""
    registry = TokenRegistry(public=True)
    registry.answer, registry.member, registry.scope = answer, member, scope
    async with serving(registry) as client:
        await fetch(client, await resolve(client))
    assert [query["scope"] for query in registry.queries] == [["repository:team/app:pull"]]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"\xff", "not a JSON object"),
        (b"{}", "no token"),
        (b'{"token": 5}', "no token"),
        (b'{"token": "a\\r\\nX: y"}', "no token"),
        (b'{"token": "' + b"x" * 300_000 + b'"}', "not a JSON object"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_answers_without_a_token(body: bytes, expected: str) -> None:
    """An answer without a token that fits into a header is an error."""
    registry = TokenRegistry(public=True)
    registry.service = lambda ask: ask.answer(200, body)
    async with serving(registry) as client:
        with pytest.raises(RegistryUnavailable, match=expected):
            await resolve(client)


@pytest_twisted.ensureDeferred
async def test_a_token_service_in_trouble() -> None:
    """A request is repeated after a 503; an unexpected status is an error."""
    registry = TokenRegistry(public=True)
    registry.service = lambda ask: ask.nth == 1 and ask.answer(503)
    async with serving(registry) as client:
        await resolve(client)
        registry.revoke()
        registry.service = lambda ask: ask.answer(599)
        with pytest.raises(RegistryUnavailable, match="599"):
            await resolve(client)


@pytest.mark.parametrize("status", [404, 405])
@pytest_twisted.ensureDeferred
async def test_oauth2(status: int) -> None:
    """A token service without GET gets a POST with the password in its body."""
    registry = TokenRegistry(public=False)
    forms: list[dict[str, list[str]]] = []

    def service(ask: Ask) -> object:
        if ask.method == "GET":
            return ask.answer(status)
        assert ask.request.content is not None
        forms.append(parse_qs(ask.request.content.read().decode()))
        registry.good.add("token-x")
        return ask.answer(200, b'{"access_token": "token-x", "refresh_token": "r"}')

    registry.service = service
    async with serving(registry) as client:
        image = await resolve(client, ALICE)
    assert image.private
    assert forms == [
        {
            "grant_type": ["password"],
            "client_id": ["shiftergw"],
            "username": ["alice"],
            "password": ["pä:ss wörd"],
            "service": ["the registry"],
            "scope": ["repository:team/app:pull"],
        }
    ]


IDENTITY = RegistryLogin.parse("<token>:re:fresh wörd")


@pytest_twisted.ensureDeferred
async def test_an_identity_token() -> None:
    """An identity token is sent by POST, to the token service alone, for each new token."""
    registry = TokenRegistry(public=False)
    forms: list[dict[str, list[str]]] = []
    logins: list[str | None] = []

    def service(ask: Ask) -> object:
        logins.append(ask.header("Authorization"))
        if ask.method == "GET":
            return None
        assert ask.request.content is not None
        forms.append(parse_qs(ask.request.content.read().decode()))
        token = f"token-x{len(forms)}"
        registry.good.add(token)
        body = {"access_token": token, "refresh_token": "re:fresh wörd", "expires_in": 900}
        return ask.answer(200, json.dumps(body).encode())

    registry.service = service
    async with serving(registry) as client:
        image = await resolve(client, IDENTITY)
        assert image.private
        registry.revoke()
        await fetch(client, image, IDENTITY)
    assert len(forms) == 2
    assert forms[0] == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["re:fresh wörd"],
        "client_id": ["shiftergw"],
        "service": ["the registry"],
        "scope": ["repository:team/app:pull"],
    }
    assert set(logins) == {None}


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, b'{"error": "invalid_grant", "error_description": "it has expired"}', "has expired"),
        (401, b'{"details": "re:fresh w\xc3\xb6rd is unknown"}', r"\*\*\* is unknown"),
        (404, b"", "no identity token"),
        (405, b"", "no identity token"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_identity_token_that_is_refused(status: int, body: bytes, words: str) -> None:
    """The words of the token service are shown without the token; no password is tried."""
    registry = TokenRegistry(public=False)
    registry.service = lambda ask: (
        None if ask.method == "GET" else ask.answer(status, body, Content_Type="application/json")
    )
    async with serving(registry) as client:
        with pytest.raises(RegistryDenied, match=words):
            await resolve(client, IDENTITY)


@pytest_twisted.ensureDeferred
async def test_an_identity_token_is_no_password() -> None:
    """A registry without a token service does not get an identity token; the error says so."""
    registry = FakeRegistry(
        IMAGE, misbehave=lambda ask: ask.answer(401, WWW_Authenticate='Basic realm="x"')
    )
    async with serving(registry) as client:
        with pytest.raises(RegistryDenied, match="no identity token"):
            await resolve(client, IDENTITY)
    assert {ask.header("Authorization") for ask in registry.requests} == {None}


@pytest_twisted.ensureDeferred
async def test_a_redirected_password() -> None:
    """A POST that holds the password is never redirected."""
    registry = TokenRegistry(public=False)
    registry.service = lambda ask: ask.answer(
        *((404,) if ask.method == "GET" else (307,)), Location="/elsewhere"
    )
    async with serving(registry) as client:
        with pytest.raises(RegistryUntrusted):
            await resolve(client, ALICE)
    assert "elsewhere" not in registry.paths()


@pytest.mark.parametrize(
    ("realm", "expected"),
    [
        ("http://127.0.0.1:1/token", "without TLS"),
        ("http://auth.example/token", "without TLS"),
        ("https://10.0.0.1/token", "not public"),
        ("https://[::ffff:169.254.169.254]/token", "not public"),
        ("token", "not a URL"),
        ("file:///etc/passwd", "not a URL"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_realms_that_are_refused(realm: str, expected: str) -> None:
    """A token service needs https and an address outside of private networks."""
    registry = TokenRegistry(public=False)
    registry.realm = realm
    async with serving(registry) as client:
        with pytest.raises(RegistryUntrusted, match=expected):
            await resolve(client, ALICE)


@pytest_twisted.ensureDeferred
async def test_a_token_service_elsewhere(tmp_path: Path) -> None:
    """A login is sent by TLS to the token service that the registry names, and to no other host."""
    authority = Authority(tmp_path)
    names = ["registry.example", "auth.example", "spy.example"]
    network = Network({name: [PUBLIC] for name in names})
    registry, service, spy = (
        TokenRegistry(public=False),
        TokenRegistry(public=False),
        FakeRegistry(misbehave=lambda ask: ask.answer(200, b'{"token": "token-spy"}')),
    )
    try:
        for server in (registry, service, spy):
            await server.start(authority.options(*names))
        ports = [server.host.rpartition(":")[2] for server in (registry, service, spy)]
        registry.realm = f"https://auth.example:{ports[1]}/token"
        registry.good = service.good
        url = f"https://registry.example:{ports[0]}"
        async with open_client(url, network, cacert=authority.pem) as client:
            assert (await resolve(client, ALICE)).private
            service.service = lambda ask: ask.answer(
                307, Location=f"https://spy.example:{ports[2]}/token"
            )
            registry.revoke()
            with pytest.raises(RegistryDenied):
                await resolve(client, ALICE)
    finally:
        for server in (registry, service, spy):
            await server.stop()
    assert spy.requests
    assert {ask.header("Authorization") for ask in spy.requests} == {None}
