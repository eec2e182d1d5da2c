"""Token services whose answers are late, wrong or missing."""

from __future__ import annotations

import gzip
import json
from urllib.parse import quote_plus

import pytest
import pytest_twisted

from shiftergw.errors import (
    RegistryDenied,
    RegistryUnavailable,
    RegistryUntrusted,
    RetryLater,
)
from tests.sources.registry.behavior_rows import (
    DENIAL,
    PAGE,
    TOKEN_PULL,
    Row,
    as_served,
    check,
    encode,
    first_of,
    on,
)
from tests.sources.registry.faulty import (
    ALICE,
    HANG_UP,
    Reply,
    Request,
    Script,
)


def bearer_and_basic(token: Reply) -> Script:
    """Return a script of a registry that takes both schemes, with this reply of its tokens."""

    def script(request: Request) -> Reply | None:
        if request.server == "tokens":
            return token
        if request.caller != "alice":
            realm = f"http://{request.site.hosts['tokens']}/token"
            return Reply(
                401, fields={"WWW-Authenticate": f'Bearer realm="{realm}", Basic realm="x"'}
            )
        return None

    return script


TOKEN_ROWS = [
    *(
        Row(
            f"the token service says {body!r}",
            ("GET manifest", "GET token", "GET token as alice"),
            on("token", Reply(status, body)),
            access="login token",
            login=ALICE,
            error=RegistryDenied,
            words=("to your login", words),
            absent=(ALICE.password,),
        )
        for status, body, words in (
            (401, DENIAL, "(use a token, you have 2FA)"),
            (403, b'{"errors":[{"code":"DENIED","message":"blocked"}]}', "(blocked)"),
            (400, b'{"error":"invalid_grant","error_description":"bad login"}', "(bad login)"),
            (401, b'{"message":"a\\u001b[31mb\\nc"}', r"(a\x1b[31mb c)"),
            (
                401,
                json.dumps({"message": f"{ALICE.password} is wrong"}).encode(),
                "(*** is wrong)",
            ),
            (
                401,
                json.dumps({"message": f"?password={quote_plus(ALICE.password)}&a=b"}).encode(),
                "(?password=***&a=b)",
            ),
            (
                401,
                json.dumps({"message": "-" * 290 + ALICE.password}).encode(),
                "(" + "-" * 290 + "***)",
            ),
        )
    ),
    Row(
        "the token service is down, and says so",
        ("GET manifest", "GET token") * 3,
        on("token", Reply(503, b'{"message":"maintenance"}')),
        access="token",
        error=RetryLater,
        words=("The token service of the registry 'test' answered with status 503: maintenance",),
    ),
    Row(
        "the registry repeats the token that it refuses",
        (*TOKEN_PULL, "GET token as alice", "GET manifest as alice token"),
        on("manifest", Reply(403, b'{"message":"alice-token is bad"}'), caller="alice token"),
        access="login token",
        login=ALICE,
        error=RegistryDenied,
        words=("to your login (*** is bad)",),
    ),
    Row(
        "the token service is down for the login, and repeats it",
        ("GET manifest", "GET token", "GET token as alice") * 3,
        first_of(
            on("token", Reply(401), caller=""),
            on("token", Reply(503, json.dumps({"message": ALICE.password}).encode())),
        ),
        access="login token",
        login=ALICE,
        error=RetryLater,
        words=("answered with status 503: ***",),
        absent=(ALICE.password,),
    ),
    Row(
        "the token service makes no sense",
        ("GET manifest", "GET token"),
        on("token", Reply(599, b'{"message":"what?"}')),
        access="token",
        error=RegistryUnavailable,
        words=("The token service of the registry 'test' answered with status 599: what?",),
    ),
    Row(
        "the token service sends a log-in page",
        ("GET manifest", "GET token") * 3,
        on("token", Reply(200, PAGE)),
        access="token",
        error=RegistryUnavailable,
        words=("The token service of the registry 'test' sent a web page", "of a token"),
    ),
    Row(
        "tokens are compressed",
        (*TOKEN_PULL, "GET blob as anonymous token"),
        as_served("token", encode("gzip", gzip.compress)),
        access="token",
    ),
    *(
        Row(
            f"Basic is offered, too, and the token service {name}",
            ("GET manifest", *anonymous, *own, "GET manifest as alice", "GET blob as alice"),
            bearer_and_basic(reply),
            login=ALICE,
            is_private=True,
        )
        for name, reply, anonymous, own in (
            ("is down", Reply(502), ("GET token",), ("GET token as alice",)),
            ("sends a page", Reply(200, PAGE), ("GET token",), ("GET token as alice",)),
            (
                "does not exist",
                Reply(404),
                ("GET token",),
                ("GET token as alice", "POST token as alice"),
            ),
            (
                "drops connections",
                HANG_UP,
                ("GET token",),
                ("GET token as alice",),
            ),
        )
    ),
    Row(
        "Basic is offered, too, and the user without a login learns that tokens are down",
        ("GET manifest", "GET token") * 3,
        bearer_and_basic(Reply(500, DENIAL)),
        error=RetryLater,
        words=("token service", "status 500"),
        absent=("refused",),
    ),
    Row(
        "Basic is offered, too, and the token service refuses the login: once is enough",
        ("GET manifest", "GET token", "GET token as alice"),
        bearer_and_basic(Reply(401, DENIAL)),
        login=ALICE,
        error=RegistryDenied,
        words=("to your login (use a token, you have 2FA)",),
    ),
    Row(
        "the token service has another http port that the configuration does not list",
        ("GET manifest",),
        access="token",
        trusted_hosts=(),
        error=RegistryUntrusted,
        words=("another place without TLS", "`trustedHosts`"),
    ),
    Row(
        "the store has another http port that the configuration does not list",
        ("GET manifest", "GET blob"),
        trusted_hosts=(),
        prepare=lambda site: setattr(site, "uses_store", True),
        error=RegistryUntrusted,
        words=("another place without TLS", "`trustedHosts`"),
    ),
    Row(
        "the store has another http port that the configuration lists",
        ("GET manifest", "GET manifest as alice", "GET blob as alice", "GET stored blob"),
        prepare=lambda site: setattr(site, "uses_store", True),
        access="basic",
        login=ALICE,
        is_private=True,
    ),
]


@pytest.mark.parametrize("row", TOKEN_ROWS, ids=lambda row: row.name)
@pytest_twisted.ensureDeferred
async def test_faulty_token_services(row: Row) -> None:
    """A pull gets a token that works, or the words of the token service."""
    await check(row)
