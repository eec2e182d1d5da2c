"""The HTTP interface: the answer of each route for a record in each state, and each error."""

from __future__ import annotations

import http
import http.client
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest_twisted
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from tests.golden import program
from tests.golden.make_state import ADMIN, ALICE_WITH_LOGIN
from tests.golden.records import check, mask
from tests.golden.registry import PASSWORDS, image_of
from tests.golden.state import DATABASE, restore
from tests.installed_reactor import reactor
from tests.patience import patient
from tests.running_service import ALICE, BOB
from tests.web.fakes import listening

STATE = "0.1.0"
READY_ID = image_of("lib/ready").digest.hex
API = "/api/{}/mycluster/"
READERS = {"allowed_uids": "2001,2002", "allowed_gids": [2300]}

MASKS = {"request_id": "request", "error": "text", "waits_until": "time"}

REQUESTS: Mapping[str, tuple[str, str, str | None, Any]] = {
    "front page": ("GET", "/", None, None),
    "alive": ("GET", "/livez", None, None),
    "ready": ("GET", "/readyz", None, None),
    "list of alice": ("GET", API.format("list"), ALICE, None),
    "list of bob": ("GET", API.format("list"), BOB, None),
    "names of bob": ("GET", API.format("names"), BOB, None),
    "systems": ("GET", API.format("systems"), BOB, None),
    "look-up by id": ("GET", f"/api/lookup/mycluster/id/{READY_ID[:8]}/", BOB, None),
    "head of a list": ("HEAD", API.format("list"), ALICE, None),
    "look-up": ("GET", "lookup lib/ready:1", BOB, None),
    "look-up of a private image": ("GET", "lookup closed/ready:1", ALICE, None),
    "look-up of another's image": ("GET", "lookup closed/ready:1", BOB, None),
    "look-up of no image": ("GET", "lookup lib/none:1", BOB, None),
    "pull: new": ("POST", "pull lib/new:1", ALICE, READERS),
    "pull: again": ("POST", "pull lib/new:1", ALICE, None),
    "pull: new, with a login": ("POST", "pull closed/new:1", ALICE_WITH_LOGIN, None),
    "pull: PENDING": ("POST", "pull lib/waiting:1", BOB, None),
    "pull: PENDING after a death": ("POST", "pull lib/again:1", BOB, None),
    "pull: PENDING for a registry": ("POST", "pull lib/later:1", BOB, None),
    "pull: PULLING": ("POST", "pull lib/pulling:1", BOB, None),
    "pull: EXAMINATION": ("POST", "pull lib/examining:1", BOB, None),
    "pull: CONVERSION": ("POST", "pull lib/converting:1", BOB, None),
    "pull: TRANSFER": ("POST", "pull lib/delivering:1", BOB, None),
    "pull: READY": ("POST", "pull lib/ready:1", BOB, None),
    "pull: FAILURE": ("POST", "pull missing/app:1", ALICE, None),
    "pull: EXPIRING": ("POST", "pull lib/removed:1", BOB, None),
    "pull: EXPIRED": ("POST", "pull lib/gone:1", BOB, None),
    "queue of bob": ("GET", API.format("queue"), BOB, None),
    "queue of an admin": ("GET", API.format("queue"), ADMIN, None),
    "metrics": ("GET", API.format("metrics") + "?limit=1", ADMIN, None),
    "metrics of all": ("GET", API.format("metrics"), ADMIN, None),
    "workers": ("GET", API.format("workers"), ADMIN, None),
    "registries": ("GET", API.format("registries"), BOB, None),
    "explain": ("POST", "explain lib/ready:1", ALICE, None),
    "import": ("POST", "doimport app:1", ALICE, {"filepath": "/a", "format": "squashfs"}),
    "take down": ("POST", API.format("takedown") + "f" * 64, ADMIN, None),
    "allow": ("POST", API.format("allow") + "f" * 64, ADMIN, None),
    "allow again": ("POST", API.format("allow") + "f" * 64, ADMIN, None),
    "pin": ("POST", f"/api/pin/mycluster/id/{READY_ID[:8]}/", ADMIN, None),
    "remove a pinned image": ("POST", "remove lib/ready:1", ADMIN, None),
    "unpin": ("POST", "unpin lib/ready:1", ADMIN, None),
    "pin by a user": ("POST", "pin lib/ready:1", ALICE, None),
    "remove another's image": ("POST", "remove lib/ready:1", BOB, None),
    "inspect": ("GET", "inspect lib/ready:1", BOB, None),
    "inspect another's image": ("GET", "inspect closed/ready:1", BOB, None),
    "expire": ("GET", "expire lib/ready:1", ADMIN, None),
    "expire again": ("GET", "expire lib/ready:1", ADMIN, None),
    "autoexpire": ("GET", API.format("autoexpire"), ADMIN, None),
    "no credential": ("GET", API.format("list"), None, None),
    "a bad credential": ("GET", API.format("list"), "bad", None),
    "metrics of a user": ("GET", API.format("metrics"), ALICE, None),
    "expiry by another user": ("GET", "expire lib/waiting:1", BOB, None),
    "no such system": ("GET", "/api/list/elsewhere/", ALICE, None),
    "no such route": ("GET", "/api/what/mycluster/", ALICE, None),
    "no such type": ("POST", "/api/pull/mycluster/id/app:1/", ALICE, None),
    "no image": ("POST", API.format("pull"), ALICE, None),
    "not a reference": ("POST", "pull APP:1", ALICE, None),
    "not an image id": ("POST", API.format("takedown") + "x", ADMIN, None),
    "not a limit": ("GET", API.format("metrics") + "?limit=x", ADMIN, None),
    "not JSON": ("POST", "pull app:1", ALICE, b"{"),
    "not ids": ("POST", "pull app:1", ALICE, {"allowed_uids": "x"}),
    "too many ids": ("POST", "pull app:1", ALICE, {"allowed_uids": list(range(1001))}),
    "a body too large": ("POST", "pull app:1", ALICE, b" " * 65537),
    "another method": ("PUT", "pull app:1", ALICE, None),
}
"""Name → method, path (or route and image), credential, body (JSON unless it is bytes)."""


def _ask(port: int, method: str, target: str, credential: str | None, body: Any) -> Any:
    """Return status, headers and body of an answer, with masks for values that vary."""
    route, _, image = target.partition(" ")
    path = f"{API.format(route)}docker/{quote(image, safe='')}/" if image else target
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {} if credential is None else {"authentication": credential}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patient(20))
    try:
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    fields = dict(sorted(answer.headers.items()))
    del fields["Date"]
    assert fields.pop("Content-Length") == str(len(text)) or method == "HEAD"
    if "X-Request-Id" in fields:
        fields["X-Request-Id"] = "<request>"
    return {"status": answer.status, "headers": fields, "body": _body_of(answer.headers, text)}


def _body_of(headers: Any, text: str) -> Any:
    if headers["Content-Type"] != "application/json" or not text:
        return text
    # Python 3.13 has another name for status 413.
    text = text.replace("Content Too Large", "Request Entity Too Large")
    return mask(json.loads(text), MASKS)


@pytest_twisted.ensureDeferred
async def test_answers(tmp_path: Path) -> None:
    """Each request has the recorded answer, with its members in the recorded order."""
    clock = Clock()
    clock.advance(restore(STATE, tmp_path))
    answers = {}
    async with program.sqlite_store(reactor, tmp_path / DATABASE) as store:
        changes = {"Metrics": True, "ENABLE_LABELS": True, "FailureHold": 10_000}
        key_file = tmp_path / "state" / "secret.key"
        site = program.gateway_site(store, clock, reactor, key_file, **changes)
        async with listening(site) as port:
            for name, request in REQUESTS.items():
                answers[name] = await deferToThread(_ask, port, *request)
                clock.advance(1)  # records of the same time have no order
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        query = "SELECT claim, json_extract(document, '$.sealed') FROM images WHERE pulltag = ?"
        ((claim, login),) = db.execute(query, ("closed/new:1",)).fetchall()
    assert program.seal_of(key_file).open(login, claim) == f"alice:{PASSWORDS['alice']}"
    check("http", answers)


def test_refusals() -> None:
    """Each class of errors has the recorded code, HTTP status, exit code, and retry flag."""
    kinds: dict[str, Any] = {}
    for error in program.errors():
        reply = program.refusal(error)
        kinds[error.code] = {
            "status": reply.status,
            "Retry-After": reply.headers.get("retry-after"),
            "WWW-Authenticate": reply.headers.get("www-authenticate"),
            "members": list(reply.json),
            "retryable": error.retryable,
            "exit code": program.code_of(error),
        }
        assert (reply.json["status"], reply.json["code"]) == (reply.status, error.code)
        if reply.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
            ready = program.refusal(error, "/readyz")
            kinds[error.code]["/readyz"] = f"{ready.status} {ready.body.decode()}"
    check("errors", dict(sorted(kinds.items())))
