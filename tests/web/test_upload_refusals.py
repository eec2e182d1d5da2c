"""Uploads, declarations and pulls that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from shiftergw.errors import NotAllowed
from shiftergw.model.uploads import CHUNK_LIMIT, ImageFile
from tests.web.fakes import READY
from tests.web.upload_site import DECLARATION, SHA256, SIZE, Place, only_answer, request


@pytest_twisted.ensureDeferred
async def test_unauthenticated_clients_send_no_body(place: Place) -> None:
    """A bad credential, another user and an unknown id are refused before the body is read."""
    upload = await place.declare(size=CHUNK_LIMIT)
    path = f"/api/upload/mycluster/{upload['upload']}?offset=0"
    body = bytes(2 << 20)
    assert (await place.ask("PUT", path, body, user="")).status == 401
    assert (await place.ask("PUT", path, body, user="bob")).status == 404
    unknown = f"/api/upload/mycluster/{'0' * 32}?offset=0"
    assert (await place.ask("PUT", unknown, body)).status == 404
    assert place.content(upload["upload"]) == b""


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/api/upload/mycluster/{}?offset=x", b"x", 400),
        ("PUT", "/api/upload/mycluster/{}?offset=0&offset=1", b"x", 400),
        ("PUT", "/api/upload/mycluster/{}?offset=-1", b"x", 400),
        ("PUT", "/api/upload/mycluster/{}", b"x", 400),
        ("PUT", "/api/upload/mycluster/{}?offset=0", b"", 400),
        ("PUT", "/api/upload/mycluster/{}?offset=0", None, 400),
        ("PUT", "/api/upload/mycluster/{}?offset=0", bytes(SIZE + 1), 413),
        ("PUT", "/api/upload/mycluster/..%2F..%2Fx?offset=0", b"x", 404),
        ("PUT", "/api/upload/other/{}?offset=0", b"x", 404),
        ("PUT", "/api/upload/mycluster/", b"x", 405),
        ("POST", "/api/upload/mycluster/{}", b"{}", 405),
        ("DELETE", "/api/upload/mycluster/", None, 405),
        ("GET", "/api/upload/mycluster/../x", None, 404),
        ("DELETE", "/api/upload/mycluster/x", None, 404),
    ],
)
@pytest_twisted.ensureDeferred
async def test_requests_that_are_wrong(
    place: Place, method: str, path: str, body: bytes | None, status: int
) -> None:
    """Invalid requests are refused in JSON, and the upload stays unchanged."""
    upload = await place.declare()
    reply = await place.ask(method, path.format(upload["upload"]), body)
    assert (reply.status, reply.json["status"]) == (status, status)
    assert place.content(upload["upload"]) == b""


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": -1},
        {"size": "5"},
        {"size": True},
        {"size": 1 << 70},
        {"sha256": "x"},
        {"sha256": None},
        {"sha256": "AB" * 32},
        {"kind": "exe"},
        {"kind": 1},
        {"filename": ["x"]},
    ],
)
@pytest_twisted.ensureDeferred
async def test_declarations_that_are_wrong(place: Place, change: dict[str, Any]) -> None:
    """A declaration without a valid size, digest or kind creates no upload."""
    body = json.dumps(DECLARATION | change).encode()
    reply = await place.ask("POST", "/api/upload/mycluster/", body)
    assert (reply.status, reply.json["code"]) == (400, "bad-request")
    assert await place.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_the_name_of_the_image(place: Place) -> None:
    """A declaration may have it; without a digest it is checked, and nothing is declared."""
    checks = [{"name": "mine:1"}, {"name": "mine:1", "size": 10**8}]
    for members in checks:
        reply = await place.ask("POST", "/api/upload/mycluster/", json.dumps(members).encode())
        assert (reply.status, reply.json) == (200, {"status": True, "limit": 10**8})
    assert await place.spool.list() == []
    assert (await place.declare(name="mine:1"))["offset"] == 0
    calls = [(call[0], call[-1]) for call in place.gateway.calls]
    assert calls == [("check_new_image", "mine:1")] * 3
    place.gateway.raises = NotAllowed("This name belongs to an image of another user.")
    for body in (checks[0], DECLARATION | {"name": "mine:1", "sha256": "cd" * 32}):
        reply = await place.ask("POST", "/api/upload/mycluster/", json.dumps(body).encode())
        assert (reply.status, reply.json["code"]) == (403, "not-allowed")
        assert "another user" in reply.json["error"]
    assert len(await place.spool.list()) == 1


@pytest.mark.parametrize("public", [True, False])
@pytest_twisted.ensureDeferred
async def test_an_image_that_is_ready(place: Place, *, public: bool) -> None:
    """A declaration with name and selector is answered with its record; nothing is declared."""
    readers = {"public": True} if public else {"allowed_uids": "5,6", "allowed_gids": [7]}
    members = {"name": "mine:1", "selector": "a", **readers}
    assert (await place.declare(**members))["offset"] == 0
    place.gateway.image_of_content = READY
    answer = await place.declare(**members)
    assert (answer["status"], answer["id"]) == ("READY", READY.id)
    file = ImageFile("", "sif", SIZE, SHA256, "a", public)
    users, groups = ((), ()) if public else ((5, 6), (7,))
    assert [(call[0], *call[2:]) for call in place.gateway.calls] == [
        ("find_image_of_content", "mine:1", users, groups, file)
    ] * 2
    assert len(await place.spool.list()) == 1
    # An earlier version of the client sends no selector, and understands no record.
    assert (await place.declare(name="mine:1"))["offset"] == 0


@pytest.mark.parametrize(
    ("members", "status"),
    [
        ({"name": 5}, 400),
        ({"name": None}, 400),
        ({"name": "mine", "size": 0}, 400),
        ({"name": "mine", "size": "5"}, 400),
        ({"name": "mine", "size": 10**8 + 1}, 413),
        ({"size": 5}, 400),
        (DECLARATION | {"name": None}, 400),
        (DECLARATION | {"name": "mine", "selector": None}, 400),
        (DECLARATION | {"name": "mine", "selector": "a\nb"}, 400),
        (DECLARATION | {"name": "mine", "selector": "", "public": 1}, 400),
        (DECLARATION | {"name": "mine", "selector": "", "allowed_uids": "x"}, 400),
    ],
)
@pytest_twisted.ensureDeferred
async def test_checks_that_are_wrong(place: Place, members: dict[str, Any], status: int) -> None:
    """A check without a proper name or size is refused, and so is a size beyond the limit."""
    reply = await place.ask("POST", "/api/upload/mycluster/", json.dumps(members).encode())
    assert reply.status == status
    assert await place.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_a_body_without_a_length(place: Place) -> None:
    """A chunk in the chunked coding is refused: its size must be known first."""
    upload = await place.declare()
    head = request("PUT", f"/api/upload/mycluster/{upload['upload']}?offset=0", None)
    data = head[:-2] + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    reply = await deferToThread(only_answer, place.port, data)
    assert (reply.status, reply.json["code"]) == (400, "bad-request")


@pytest.mark.parametrize(
    "members",
    [
        {"upload": "x"},
        {"upload": 5},
        {"upload": "ab" * 16, "public": "yes"},
        {"upload": "ab" * 16, "selector": 1},
        {"upload": "ab" * 16, "selector": "a\nb"},
        {"upload": "ab" * 16, "selector": "a" * 600},
        {"public": True},
        {"selector": "app:1"},
    ],
)
@pytest_twisted.ensureDeferred
async def test_pulls_that_are_wrong(place: Place, members: dict[str, Any]) -> None:
    """Wrong members of the body are refused."""
    body = json.dumps(members).encode()
    reply = await place.ask("POST", "/api/pull/mycluster/custom/a:1", body)
    assert (reply.status, reply.json["code"]) == (400, "bad-request")
