"""The routes, through the whole HTTP server, in memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from shiftergw.errors import BadRequest, NotAllowed, TooMany, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import ANONYMOUS
from shiftergw.service.imports import ImportChoice
from shiftergw.states import State
from tests.web.fakes import IMAGE_ID, READY, FakeGateway, Wire, hang_up


def test_the_front_page(wire: Wire) -> None:
    """The root answers with the text of the original gateway."""
    reply = wire.ask("/", headers=())
    assert (reply.status, reply.body) == (200, b"{lookup,pull,expire,list}")
    assert reply.headers["content-type"] == "text/plain"


def test_every_answer_has_the_headers_that_clients_need(wire: Wire) -> None:
    """The exact content type, the exact length, an id, and no version of any program."""
    reply = wire.ask("/api/list/mycluster/")
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["content-length"] == str(len(reply.body))
    assert reply.headers["server"] == "shiftergw"
    assert len(reply.headers["x-request-id"]) == 8
    assert "transfer-encoding" not in reply.headers


def test_list(wire: Wire, gateway: FakeGateway) -> None:
    """The member `list` has the images that the user of the credential may see."""
    reply = wire.ask("/api/list/mycluster")
    assert [image["id"] for image in reply.json["list"]] == [IMAGE_ID]
    name, session = gateway.calls[0]
    assert (name, session.user, session.system) == ("list", "ann", "mycluster")


@pytest.mark.parametrize("image", ["ubuntu:24.04", "ubuntu%3A24.04", "ubuntu%3a24.04/"])
def test_lookup(wire: Wire, image: str) -> None:
    """A name may be percent-encoded in any way."""
    reply = wire.ask(f"/api/lookup/mycluster/docker/{image}")
    assert (reply.status, reply.json["id"]) == (200, IMAGE_ID)


def test_lookup_of_an_unknown_image(wire: Wire) -> None:
    """An unknown image is a 404 that names the path."""
    reply = wire.ask("/api/lookup/mycluster/docker/no/such:1/")
    assert (reply.status, reply.json["code"]) == (404, "not-found")
    assert reply.json["message"] == "Not Found: /api/lookup/mycluster/docker/no/such:1/"


def test_pull_starts_and_is_polled(wire: Wire, gateway: FakeGateway) -> None:
    """A pull answers INIT, then its progress, then READY."""
    gateway.pulls = [
        ImageRecord(system="mycluster", status=State.INIT, user_acl=(), group_acl=()),
        ImageRecord(system="mycluster", status=State.PULLING, stage="fetch", done=1, total=2),
        READY,
    ]
    path = "/api/pull/mycluster/docker/quay.io%2Fa%2Fb%3A1/"
    first, second, third = (wire.ask(path, "POST", b"").json for _ in range(3))
    assert (first["status"], first["id"], first["tag"]) == ("INIT", "MISSING", [])
    assert (second["status"], second["done"], second["total"]) == ("PULLING", 1, 2)
    assert (third["status"], third["id"]) == ("READY", IMAGE_ID)
    assert gateway.calls[0][3] == "quay.io/a/b:1"


def test_pull_passes_the_access_list_on(wire: Wire, gateway: FakeGateway) -> None:
    """The gateway receives the ids of the body and the id of the request."""
    body = b'{"allowed_uids":"2001,2002","allowed_gids":"2300"}'
    reply = wire.ask("/api/pull/mycluster/docker/x:1/", "POST", body)
    *_, users, groups, request_id = gateway.calls[0]
    assert (users, groups) == ((2001, 2002), (2300,))
    assert request_id == reply.headers["x-request-id"]


def test_pull_with_a_bad_body_starts_nothing(wire: Wire, gateway: FakeGateway) -> None:
    """An invalid body is a 400, and the gateway is not called."""
    reply = wire.ask("/api/pull/mycluster/docker/x:1/", "POST", b'{"allowed_uids":7}')
    assert (reply.status, reply.json["code"]) == (400, "bad-request")
    assert gateway.calls == []


def test_queue(wire: Wire, gateway: FakeGateway) -> None:
    """The queue lists states and tags."""
    gateway.waiting = [ImageRecord(status=State.PENDING, pulltag="x:1")]
    reply = wire.ask("/api/queue/mycluster/")
    assert reply.json == {"list": [{"status": "PENDING", "image": "x:1", "type": "docker"}]}


def test_expire(wire: Wire, gateway: FakeGateway) -> None:
    """GET expires an image, as existing clients send it; the answer is the original one."""
    reply = wire.ask("/api/expire/mycluster/docker/quay.io%2Fx%2Fy%3A1/")
    assert (reply.status, reply.json) == (200, {"status": True})
    assert gateway.calls[-1][0] == "expire"
    assert gateway.calls[-1][2:] == ("docker", "quay.io/x/y:1")
    assert wire.ask("/api/autoexpire/mycluster/").json == {"status": [IMAGE_ID]}


def test_requests_of_owners(wire: Wire, gateway: FakeGateway) -> None:
    """An image is removed or pinned by POST; the answer has its id."""
    for route, members in (
        ("remove", {"removed": ["docker:ubuntu:24.04"]}),
        ("pin", {"pinned": True}),
        ("unpin", {"pinned": False}),
    ):
        reply = wire.ask(f"/api/{route}/mycluster/id/abab/", "POST")
        assert reply.json == {"status": True, "id": IMAGE_ID, **members}
        assert (gateway.calls[-1][0], *gateway.calls[-1][2:]) == (route, "id", "abab")
        assert wire.ask(f"/api/{route}/mycluster/id/abab/").status == 405


def test_pins_are_listed(wire: Wire, gateway: FakeGateway) -> None:
    """A row of the list says that the image is pinned; other rows say nothing of it."""
    gateway.images = [READY, replace(READY, pinned_by=7)]
    rows = wire.ask("/api/list/mycluster/").json["list"]
    assert ["pinned" in row for row in rows] == [False, True]
    assert rows[1]["pinned"] is True


def test_names(wire: Wire, gateway: FakeGateway) -> None:
    """Lists of names have nothing else."""
    gateway.systems = ("other", "mycluster")
    row = {"id": IMAGE_ID, "itype": "docker", "tag": ["ubuntu:24.04"]}
    assert wire.ask("/api/names/mycluster/").json == {"list": [row]}
    names = [{"system": "mycluster"}, {"system": "other"}]
    assert wire.ask("/api/systems/mycluster/").json == {"list": names}


def test_an_unknown_system(wire: Wire, gateway: FakeGateway) -> None:
    """The error has systems with a similar name, three at most."""
    reply = wire.ask("/api/list/myclutser/")
    assert (reply.status, reply.json["code"]) == (404, "not-found")
    assert "'myclutser'. Do you mean mycluster? Check" in reply.json["error"]
    assert "mean" not in wire.ask(f"/api/list/{'z' * 5000}/").json["error"]
    gateway.systems = tuple(f"mycluster{number}" for number in range(9))
    assert wire.ask("/api/list/mycluster/").json["error"].count(" or ") == 2


def test_head_changes_nothing(wire: Wire, gateway: FakeGateway) -> None:
    """HEAD of a path whose GET changes something is a 405."""
    for path in ("/api/expire/mycluster/docker/x/", "/api/autoexpire/mycluster/"):
        assert wire.ask(path, "HEAD").status == 405
    assert gateway.calls == []


def test_take_down_and_allow(wire: Wire, gateway: FakeGateway) -> None:
    """Only an image id names the image, or its first digits; the answer has the whole id."""
    reply = wire.ask(f"/api/takedown/mycluster/{IMAGE_ID[:4]}/", "POST")
    assert reply.json == {"status": True, "removed": ["docker:ubuntu:24.04"], "id": IMAGE_ID}
    reply = wire.ask(f"/api/allow/mycluster/{IMAGE_ID}", "POST")
    assert reply.json == {"status": True, "id": IMAGE_ID}
    calls = [(call[0], call[2]) for call in gateway.calls]
    assert calls == [("take_down", IMAGE_ID[:4]), ("allow", IMAGE_ID)]
    assert wire.ask("/api/takedown/mycluster/docker/x/", "POST").status == 404


@pytest.mark.parametrize(
    ("query", "limit"),
    [("", 10), ("?limit=3", 3), ("?limit=0", 0), ("?limit=-4", -4), ("?limit=99999", 10_000),
     ("?other=1", 10), ("?limit=1&limit=2", 2)],
)  # fmt: skip
def test_metrics(wire: Wire, gateway: FakeGateway, query: str, limit: int) -> None:
    """The answer is a bare array: of ten rows by default, of ten thousand at most."""
    reply = wire.ask(f"/api/metrics/mycluster/{query}")
    assert (reply.status, reply.json) == (200, [{"user": "ann", "uid": 1000, "time": 1.5}])
    assert gateway.calls[-1][2] == limit


@pytest.mark.parametrize("query", ["limit=x", "limit=1.5", "limit=%d9%a3", "limit=1e3"])
def test_metrics_with_a_bad_limit(wire: Wire, gateway: FakeGateway, query: str) -> None:
    """A limit that is not an integer is a 400."""
    reply = wire.ask(f"/api/metrics/mycluster/?{query}")
    assert (reply.status, gateway.calls) == (400, [])


def test_an_import(wire: Wire, gateway: FakeGateway) -> None:
    """The members of the body reach the rules; the answer is that of a pull."""
    body = b'{"filepath": "/data/x", "format": "squashfs", "allowed_uids": "5", "public": false}'
    reply = wire.ask("/api/doimport/mycluster/custom/x%3A1/", "POST", body)
    assert (reply.status, reply.json["status"]) == (200, "READY")
    ((method, session, *rest),) = gateway.calls
    assert (method, session.user) == ("import_file", "ann")
    choice = ImportChoice("/data/x", "squashfs")
    assert rest == ["custom", "x:1", (5,), (), reply.headers["x-request-id"], choice]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b'{"filepath": "/x"}',
        b'{"format": "squashfs"}',
        b'{"filepath": 1, "format": "squashfs"}',
        b'{"filepath": "/x", "format": "squashfs", "public": 1}',
    ],
)
def test_imports_that_are_wrong(wire: Wire, gateway: FakeGateway, body: bytes) -> None:
    """Without a path and a format nothing is imported."""
    reply = wire.ask("/api/doimport/mycluster/custom/x%3A1/", "POST", body)
    assert (reply.status, reply.json["code"]) == (400, "bad-request")
    assert gateway.calls == []


def test_anonymous_requests_where_the_site_allows_them(wire: Wire, gateway: FakeGateway) -> None:
    """A missing or empty credential is anonymous; an invalid one is still refused."""
    gateway.allows_anonymous = True
    assert wire.ask("/api/list/mycluster/", headers=()).status == 200
    assert gateway.calls[-1][1].uid == ANONYMOUS
    assert wire.ask("/api/list/mycluster/", headers=("authentication:",)).status == 200
    assert wire.ask("/api/list/mycluster/", headers=("authentication:(null)",)).status == 401
    assert wire.ask("/api/list/mycluster/", headers=("authentication:bad:ann",)).status == 401


def test_an_expiry_continues_after_a_hang_up(wire: Wire, gateway: FakeGateway) -> None:
    """A hang-up does not cancel a change, even if the method was GET."""
    gateway.gate = Deferred()
    done: list[bool] = []
    gateway.gate.addCallback(lambda _: done.append(True))
    wire.send(b"GET /api/expire/mycluster/docker/x/ HTTP/1.1\r\nauthentication:good:ann\r\n\r\n")
    hang_up(wire)
    gateway.gate.callback(None)
    assert done == [True]


def test_live_and_ready(wire: Wire, gateway: FakeGateway) -> None:
    """Both answer one word without a credential; a gateway that cannot work answers 503."""
    assert wire.ask("/livez", headers=()).body == b"alive"
    assert wire.ask("/readyz", headers=()).body == b"ready"
    gateway.raises = Unavailable("The store is away.")
    reply = wire.ask("/readyz/", headers=())
    assert (reply.status, reply.body) == (503, b"unavailable")
    assert reply.headers["retry-after"] == "5"
    assert wire.ask("/livez", headers=()).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/api/nothing/mycluster/",
        "/api/list/mycluster/docker/x/",
        "/api/lookup/mycluster/",
        "/api/lookup/mycluster/docker/",
        f"/api/takedown/mycluster/docker/{IMAGE_ID}/",
        "/api/pull/mycluster/",
        "/api/list/mycluster//",
        "//api/list/mycluster/",
        "/api/list//",
        "*",
    ],
)
def test_unknown_paths(wire: Wire, path: str) -> None:
    """A path that is not a route is a 404 in JSON, whatever the method."""
    for method in ("GET", "POST", "OPTIONS"):
        reply = wire.ask(path, method)
        assert (reply.status, reply.json["code"]) == (404, "not-found")


def test_an_unknown_system_comes_before_the_credential(wire: Wire, gateway: FakeGateway) -> None:
    """A request for an unknown system is a 404 before its credential is checked."""
    for gateway.allows_anonymous in (False, True):
        for path, method in (("list/elsewhere", "GET"), ("pull/elsewhere/docker/x", "POST")):
            reply = wire.ask(f"/api/{path}/", method, headers=())
            assert (reply.status, reply.json["code"]) == (404, "not-found")
    assert gateway.calls == []


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("authentication:",),
        ("authentication:(null)",),
        ("authentication:bad:ann",),
        ("authentication:good:ann", "Authentication: good:bob"),
    ],
)
def test_without_one_good_credential(
    wire: Wire, gateway: FakeGateway, headers: tuple[str, ...]
) -> None:
    """No, an empty, an invalid and a repeated credential are 401 on every route."""
    for path, method in (
        ("/api/list/mycluster/", "GET"),
        ("/api/queue/mycluster/", "GET"),
        ("/api/lookup/mycluster/docker/x/", "GET"),
        ("/api/pull/mycluster/docker/x/", "POST"),
    ):
        reply = wire.ask(path, method, headers=headers)
        assert (reply.status, reply.json["code"]) == (401, "not-authenticated")
    assert gateway.calls == []


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        ("/api/list/mycluster/", "POST", "GET, HEAD"),
        ("/api/pull/mycluster/docker/x/", "GET", "POST"),
        ("/api/pull/mycluster/docker/x/", "HEAD", "POST"),
        ("/", "DELETE", "GET, HEAD"),
        ("/livez", "BREW", "GET, HEAD"),
    ],
)
def test_another_method(wire: Wire, path: str, method: str, allow: str) -> None:
    """A wrong method is a 405 that names the right ones."""
    reply = wire.ask(path, method)
    assert (reply.status, reply.headers["allow"]) == (405, allow)
    assert reply.headers["content-type"] == "application/json"


def test_head_is_get_without_its_body(wire: Wire) -> None:
    """The answer to HEAD has the length of the answer to GET."""
    full = wire.ask("/api/list/mycluster/")
    reply = wire.ask("/api/list/mycluster/", "HEAD")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["content-length"] == full.headers["content-length"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(BadRequest("Odd."), 400), (NotAllowed("No."), 403), (TooMany("Full."), 429)],
)
def test_errors_of_the_gateway(
    wire: Wire, gateway: FakeGateway, error: Exception, status: int
) -> None:
    """An error of the gateway determines the status and the text of the answer."""
    gateway.raises = error
    reply = wire.ask("/api/list/mycluster/")
    assert (reply.status, reply.json["status"]) == (status, status)
    assert reply.json["error"] == str(error)


def test_a_bug_is_answered_with_the_request_id(
    wire: Wire, gateway: FakeGateway, events: list[LogEvent]
) -> None:
    """An unexpected exception is a 500 without details, and one traceback in the log."""
    gateway.raises = RuntimeError("secret detail")
    reply = wire.ask("/api/list/mycluster/")
    assert (reply.status, reply.json["code"]) == (500, "internal")
    assert b"secret" not in reply.body
    assert reply.headers["x-request-id"] in reply.json["error"]
    assert len([event for event in events if "log_failure" in event]) == 1


def test_workers(wire: Wire, gateway: FakeGateway) -> None:
    """Each machine has a row with the images of its jobs."""
    reply = wire.ask("/api/workers/mycluster/")
    assert reply.status == 200
    assert json.loads(reply.body)["list"] == [
        {
            "name": "node1",
            "version": "1.0",
            "systems": ["mycluster"],
            "slots": 2,
            "jobs": ["app:1"],
            "leaving": False,
            "heard": 1.5,
        }
    ]


def test_registries(wire: Wire, gateway: FakeGateway) -> None:
    """Each location has a row with its host."""
    gateway.hosts = {"hub": "registry-1.docker.io", "here": "reg.example:5000"}
    reply = wire.ask("/api/registries/mycluster/")
    assert json.loads(reply.body)["list"] == [
        {"location": "hub", "host": "registry-1.docker.io"},
        {"location": "here", "host": "reg.example:5000"},
    ]
