"""Anonymous requests come first, then the login; tokens are cached, renewed, and never output."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.web.http_headers import Headers
from zope.interface import implementer

from shiftergw.errors import (
    GatewayError,
    ImageNotFound,
    RegistryDenied,
    RegistryUnavailable,
    RegistryUntrusted,
)
from shiftergw.model.images import Digest, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.oci.challenge import Challenge
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.tokens import RepositoryAccess, Tokens
from shiftergw.sources.registry.transport import Transport
from tests.certificates import Authority
from tests.images import make_image, tar_of
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import PUBLIC, REACTOR, Network, Sink, a_client, quiet, serving

IMAGE = make_image([tar_of({"a": b"a"}), tar_of({"b": b"b"})])
ALICE = RegistryLogin("alice", "pä:ss wörd")
REFERENCE = ImageReference.parse("team/app")
SECRETS = ("wörd", base64.b64encode("alice:pä:ss wörd".encode()).decode(), "token-")


class TokenRegistry(FakeRegistry):
    """A registry with a token service at `/token`.

    `public` says whether anonymous tokens are accepted. `queries` has those of all tokens; a
    token is valid until `revoke`. `service` answers in place of the token service.
    """

    def __init__(self, *, public: bool) -> None:
        """Start without tokens."""
        super().__init__(IMAGE, misbehave=self._misbehave)
        self.public = public
        self.queries: list[dict[str, list[str]]] = []
        self.good: set[str] = set()
        self.realm = ""
        self.scope = ',scope="repository:team/app:pull"'
        self.answer: dict[str, Any] = {}
        self.member = "token"
        self.service: Any = lambda _: None

    def revoke(self) -> None:
        """Invalidate all tokens."""
        self.good.clear()

    def _misbehave(self, ask: Ask) -> object:
        if ask.path.startswith("/token"):
            return self.service(ask) or self._token(ask)
        authorization = ask.header("Authorization") or ""
        if authorization.removeprefix("Bearer ") in self.good:
            return None
        realm = self.realm or f"http://{self.host}/token?x=1"
        challenge = f'Bearer realm="{realm}",service="the registry"{self.scope}'
        return ask.answer(401, b'{"errors":[]}', WWW_Authenticate=challenge)

    def _token(self, ask: Ask) -> object:
        query = parse_qs(urlsplit(ask.path).query)
        self.queries.append(query)
        login = ask.header("Authorization")
        if login is not None and login != f"Basic {SECRETS[1]}":
            return ask.answer(401)
        token = f"token-{len(self.queries)}"
        if login is not None or self.public:
            self.good.add(token)
        body = json.dumps({self.member: token, **self.answer}).encode()
        return ask.answer(200, body, Content_Type="application/json; charset=utf-8")

    def paths(self) -> list[str]:
        """Return the last path segments of all requests, without queries."""
        return [ask.path.partition("?")[0].rpartition("/")[2] for ask in self.requests]


async def resolve(client: RegistryClient, login: RegistryLogin | None = None) -> ResolvedImage:
    """Resolve the image."""
    return (await client.resolve(REFERENCE, Platform(), login, quiet))[0]


async def fetch(
    client: RegistryClient, image: ResolvedImage, login: RegistryLogin | None = None, layer: int = 0
) -> None:
    """Download one layer."""
    sink = Sink()
    await client.blob(image, image.layers[layer], login, quiet, 0, sink)
    assert Digest.of(bytes(sink.content)) == image.layers[layer].digest


@pytest.fixture(autouse=True)
def nothing_is_shown(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which a secret gets into the log."""
    caplog.set_level(logging.DEBUG)
    events: list[str] = []

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        events.append(str({key: str(value) for key, value in event.items()}))

    globalLogPublisher.addObserver(observe)
    yield
    globalLogPublisher.removeObserver(observe)
    output = "".join(events) + caplog.text
    assert not [secret for secret in SECRETS if secret in output]


def all_of(error: BaseException | None) -> str:
    """Return all texts that an error and its causes could show."""
    text = ""
    while error is not None:
        text += f"{error!r} {error} {vars(error)}"
        error = error.__cause__
    return text


# Bearer


@pytest_twisted.ensureDeferred
async def test_nobodys_token() -> None:
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
async def test_what_token_services_answer(answer: dict[str, Any], member: str, scope: str) -> None:
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
async def test_what_is_no_token(body: bytes, expected: str) -> None:
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
        async with a_client(url, network, cacert=authority.pem) as client:
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
async def test_hidden_from_nobody(status: int) -> None:
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
