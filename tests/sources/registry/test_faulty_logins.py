"""Registries that refuse, hide or misname what a login is for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted

from shiftergw.errors import (
    ImageNotFound,
    RegistryDenied,
    RetryLater,
)
from shiftergw.sources.registry.admission import Admission
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.quotas import Quotas
from shiftergw.sources.registry.repository import Repository
from shiftergw.sources.registry.shared_breakers import SharedBreakers
from shiftergw.sources.registry.tokens import Tokens
from shiftergw.sources.registry.transport import Transport
from tests.sources.registry.behavior_rows import (
    DENIAL,
    IMAGE,
    LIMIT,
    PATIENCE,
    TOKEN_PULL,
    Row,
    check,
    first_of,
    on,
)
from tests.sources.registry.faulty import (
    ALICE,
    Access,
    FaultySite,
    Reply,
    Request,
    Script,
)
from tests.sources.registry.network import REACTOR, SHORT


def hide_images(status: int, challenge: str) -> Script:
    """Return a script of a registry that hides images, and challenges at its root alone."""

    def script(request: Request) -> Reply | None:
        if request.kind == "manifest" and not request.caller:
            return Reply(status, b'{"errors":[{"message":"no such thing"}]}')
        if request.kind == "/v2/":
            realm = f"http://{request.site.hosts['tokens']}/token"
            fields = {"WWW-Authenticate": challenge.format(realm=realm)} if challenge else {}
            return Reply(401 if challenge else 200, fields=fields)
        return None

    return script


def lead_away(status: int, *kinds: str) -> Script:
    """Return a script of a registry that redirects to another one, unless it has seen the login.

    The other registry refuses, and names a token service, which would get the credential.
    """

    def script(request: Request) -> Reply | None:
        if request.kind not in kinds or request.caller == "alice token":
            return None
        if request.server == "registry":
            target = f"http://{request.site.hosts['store']}{request.path}"
            return Reply(307, fields={"Location": target})
        return Reply(status, b'{"errors":[{"message":"log in here"}]}', request.site.challenge)

    return script


ROOT_CHALLENGES: tuple[tuple[str, Access, str, tuple[str, ...]], ...] = (
    ("Basic", "basic", 'Basic realm="x"', ("GET manifest as alice", "GET blob as alice")),
    (
        "Bearer, with the scope of another repository",
        "login token",
        'Bearer realm="{realm}",scope="repository:user/image:pull"',
        ("GET token as alice", "GET manifest as alice token", "GET blob as alice token"),
    ),
)


LOGIN_ROWS = [
    *(
        Row(
            f"a private image is hidden by {status}, and the root challenges for {scheme}",
            ("GET manifest", "GET manifest", "GET /v2/", *requests),
            hide_images(status, challenge),
            access=access,
            login=ALICE,
            is_private=True,
        )
        for status in (403, 404)
        for scheme, access, challenge, requests in ROOT_CHALLENGES
    ),
    *(
        Row(
            f"an image is refused by {status} without any challenge",
            ("GET manifest", "GET manifest", "GET /v2/"),
            hide_images(status, ""),
            login=ALICE,
            error=error,
            words=(*words, "no such thing"),
            absent=("to your login", "Log in", "log in"),
        )
        for status, error, words in (
            (403, RegistryDenied, ("without asking for your login",)),
            (404, ImageNotFound, ("has no image team/app:latest",)),
        )
    ),
    Row(
        "an image is hidden from users without a login, whose root is not asked",
        ("GET manifest",),
        hide_images(403, 'Basic realm="x"'),
        error=RegistryDenied,
        words=("to a user without a login", "shiftergw login test"),
    ),
    Row(
        "a hidden image, and a login that the token service refuses in its own words",
        ("GET manifest", "GET manifest", "GET /v2/", "GET token as alice"),
        first_of(
            hide_images(404, 'Bearer realm="{realm}"'),
            on("token", Reply(401, DENIAL), caller="alice"),
        ),
        access="login token",
        login=ALICE,
        error=ImageNotFound,
        words=("has no image", "refused your login (use a token, you have 2FA)"),
    ),
    *(
        Row(
            f"a redirect leads to another registry, which answers {status}, as does its root",
            ("GET manifest", "GET stored manifest") * 2 + ("GET /v2/", "GET stored /v2/"),
            lead_away(status, "manifest", "/v2/"),
            access="login token",
            login=ALICE,
            error=RegistryDenied,
            words=(
                "'test' sends the gateway to http://127.0.0.1:",
                f"{status}: log in here",
                "the `url` of the location should be http://127.0.0.1:",
            ),
            absent=("your login",),
        )
        for status in (401, 403)
    ),
    Row(
        "a redirect leads to another registry, and the root of the first asks for the login",
        (
            *("GET manifest", "GET stored manifest") * 2,
            *("GET /v2/", "GET token as alice", "GET manifest as alice token"),
            "GET blob as alice token",
        ),
        first_of(
            lead_away(401, "manifest"),
            hide_images(404, 'Bearer realm="{realm}"'),
        ),
        access="login token",
        login=ALICE,
        is_private=True,
    ),
    Row(
        "anonymous requests are limited before any challenge",
        (
            "GET manifest",
            "GET /v2/",
            "GET manifest as alice",
            "GET blob as alice",
        ),
        on("manifest", LIMIT, caller=""),
        access="basic",
        login=ALICE,
        is_private=True,
    ),
    Row(
        "anonymous tokens are limited",
        (
            *TOKEN_PULL,
            "GET token as alice",
            "GET manifest as alice token",
            "GET blob as alice token",
        ),
        on("manifest", LIMIT, caller="anonymous token"),
        access="login token",
        login=ALICE,
        is_private=True,
    ),
    Row(
        "anonymous requests are limited, and the registry does not challenge",
        ("GET manifest", "GET /v2/"),
        on("manifest", LIMIT),
        login=ALICE,
        error=RetryLater,
        words=("slow down",),
    ),
    Row(
        "anonymous requests are limited, and so is the root",
        ("GET manifest", "GET /v2/"),
        first_of(on("manifest", LIMIT), on("/v2/", LIMIT)),
        login=ALICE,
        error=RetryLater,
        words=("slow down",),
    ),
    Row(
        "anonymous requests are limited for users without a login",
        ("GET manifest",),
        on("manifest", replace(LIMIT, fields={"Retry-After": "900"})),
        error=RetryLater,
        words=("slow down",),
    ),
]


@pytest.mark.parametrize("row", LOGIN_ROWS, ids=lambda row: row.name)
@pytest_twisted.ensureDeferred
async def test_faulty_logins(row: Row) -> None:
    """The login is used where the registry wants it, and nowhere else."""
    await check(row)


@pytest_twisted.ensureDeferred
async def test_the_root_of_an_extension() -> None:
    """An extension has a prefix of its path; the challenge is requested at the registry's root."""
    script = hide_images(404, 'Basic realm="x"')
    site = FaultySite(IMAGE, script=script, access="basic")
    async with site.running() as url:
        admission = Admission("test", SharedBreakers(), PATIENCE, REACTOR, lambda: 0.5)
        transport = Transport(REACTOR, Location("test", url), Proxies({}), SHORT, admission)
        tokens, quotas = Tokens(transport, REACTOR), Quotas("test")
        base = f"{url}/extensions"
        repository = Repository(transport, tokens, base, "team/app", ALICE, admission, quotas)
        response = await repository.ask("GET", "manifests/latest", {})
        transport.discard(response)
        await transport.close()
    manifest = "/extensions/v2/team/app/manifests/latest"
    assert [request.path for request in site.requests] == [manifest, manifest, "/v2/", manifest]
    assert repository.private
