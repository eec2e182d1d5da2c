"""The page of users: entry, documents, and the end of a session, through the whole HTTP server."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from shiftergw.errors import Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.ports import QueueTrouble
from shiftergw.service.page_sessions import SESSION_SECONDS
from shiftergw.states import State
from shiftergw.web.page.documents import FILES
from tests.web.fakes import READY, FakeGateway, Reply, Wire, hang_up, site_of

HOST = "Host: 127.0.0.1:5000"
PULLING = ImageRecord(
    key="7",
    system="mycluster",
    pulltag="quay.io/lab/tool:<2>",
    status=State.PULLING,
    status_message="Pulling layers",
    stage="fetch",
    done=250,
    total=1000,
    requested_by=1000,
)
FAILURE = ImageRecord(
    key="8",
    system="mycluster",
    pulltag="broken:1",
    status=State.FAILURE,
    cause="The registry has no such image.",
    remedy="Check the spelling.",
    retryable=False,
    request_id="1a2b3c4d",
    last_pull=1_700_000_000.0,
    requested_by=1001,
)


@pytest.fixture
def wire(gateway: FakeGateway) -> Wire:
    """Return a connection of a browser on the gateway's machine."""
    return Wire(site_of(gateway, gateway.clock), peer="127.0.0.1")


def entry_of(wire: Wire, user: str = "ann") -> str:
    """Return the address of an entry that a user has requested."""
    reply = wire.ask("/api/page/mycluster/", "POST", b"", (f"authentication: good:{user}", HOST))
    assert reply.status == 200
    return f"/{reply.json['path']}"


def enter(wire: Wire, user: str = "ann") -> str:
    """Return the header with the cookie of a new session."""
    reply = wire.ask(entry_of(wire, user), headers=(HOST,))
    assert reply.status == 200
    return f"Cookie: {reply.headers['set-cookie'].partition(';')[0]}"


def open_page(wire: Wire, cookie: str, path: str = "/page/", method: str = "GET") -> Reply:
    """Return a document of a session."""
    return wire.ask(path, method, headers=(HOST, cookie))


def test_an_entry_opens_the_page_once(wire: Wire) -> None:
    """The browser gets a cookie and goes on; the same address is refused to everybody else."""
    entry = entry_of(wire)
    reply = wire.ask(entry, headers=(HOST,))
    assert reply.status == 200
    assert '<meta content="0; url=./" http-equiv="refresh" />' in reply.body.decode()
    cookie = reply.headers["set-cookie"]
    assert cookie.startswith("shiftergw-5000=")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    second_reply = wire.ask(entry, headers=(HOST,))
    assert (second_reply.status, "set-cookie" in second_reply.headers) == (401, False)
    assert "shiftergw page" in second_reply.body.decode()


def test_a_program_that_only_looks_at_a_link_uses_no_entry_up(wire: Wire) -> None:
    """HEAD is answered without a cookie, and the entry works afterwards."""
    entry = entry_of(wire)
    assert "set-cookie" not in wire.ask(entry, "HEAD", headers=(HOST,)).headers
    assert "set-cookie" in wire.ask(entry, headers=(HOST,)).headers


def test_the_queue(wire: Wire, gateway: FakeGateway) -> None:
    """Work has a bar and its message, a failure its cause and remedy; foreign text is escaped."""
    gateway.waiting = [PULLING, FAILURE, replace(PULLING, key="9", status=State.PENDING)]
    reply = open_page(wire, enter(wire))
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    text = reply.body.decode()
    assert text.startswith("<!DOCTYPE html>")
    assert "quay.io/lab/tool:&lt;2&gt;" in text
    assert 'value="0.2500"' in text
    assert "Pulling 250 of 1,000 bytes" in text
    assert "The registry has no such image." in text
    assert "Check the spelling." in text
    assert "Trying again does not help. Request 1a2b3c4d." in text
    assert '<time datetime="2023-11-14T22:13:20Z">2023-11-14 22:13 UTC</time>' in text
    assert text.count("yours") == 2
    assert "ann on mycluster" in text
    assert gateway.calls[-1][:1] == ("queue",)


def test_the_content_is_restricted(wire: Wire) -> None:
    """Nothing foreign, nothing inline, no frame, no copy in a cache, no address passed on."""
    reply = open_page(wire, enter(wire))
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["x-content-type-options"] == "nosniff"
    text = reply.body.decode()
    assert re.search(r"<script[^>]*>[^<]", text) is None
    assert re.search(r"\son\w+=|\sstyle=|<style", text) is None
    assert re.findall(r'(?:src|href|action)="([^"]*)"', text)
    assert not re.search(r'(?:src|href|action)="(?:/|[a-z]+:)', text)


def test_files_need_no_session(wire: Wire) -> None:
    """Each file that a document names is there, and may be kept as its address has a digest."""
    text = open_page(wire, enter(wire)).body.decode()
    for name in FILES:
        (address,) = re.findall(rf'"({re.escape(name)}\?[0-9a-f]{{12}})"', text)
        reply = wire.ask(f"/page/{address}", headers=())
        assert (reply.status, reply.body) == (200, FILES[name].body)
        assert "immutable" in reply.headers["cache-control"]


def test_search_of_images(wire: Wire, gateway: FakeGateway) -> None:
    """The document has the images that fit, and keeps the text of the search."""
    custom = replace(READY, key="2", itype="custom", tags=("tool:1",), id="cd" * 32, size=1_500_000)
    gateway.images = [READY, custom]
    cookie = enter(wire)
    text = open_page(wire, cookie, "/page/images").body.decode()
    assert "2 images." in text
    text = open_page(wire, cookie, "/page/images?search=TOOL%22").body.decode()
    assert "0 of 2 images." in text
    assert 'value="TOOL&quot;"' in text
    assert "<table" not in text
    text = open_page(wire, cookie, "/page/images?search=Custom%3At").body.decode()
    assert ("custom:tool:1" in text, "ubuntu" in text, "1.5 MB" in text) == (True, False, True)
    assert open_page(wire, cookie, "/page/images?%FF&a=&search").status == 200


def test_signing_out(wire: Wire) -> None:
    """The browser forgets the cookie, and a copy of it opens nothing."""
    cookie = enter(wire)
    reply = open_page(wire, cookie, "/page/leave", "POST")
    assert reply.headers["set-cookie"].startswith("shiftergw-5000=; Max-Age=0;")
    assert open_page(wire, cookie).status == 401
    assert open_page(wire, cookie, "/page/leave", "POST").status == 401


def test_a_session_ends_by_itself(wire: Wire, gateway: FakeGateway) -> None:
    """After four hours the user needs a new entry, for documents and for events."""
    cookie = enter(wire)
    gateway.clock.advance(SESSION_SECONDS)
    reply = open_page(Wire(site_of(gateway, gateway.clock), peer="127.0.0.1"), cookie)
    assert reply.status == 401
    assert "shiftergw page" in reply.body.decode()


@pytest.mark.parametrize("path", ["/page/", "/page", "/page/images", "/page/events"])
def test_without_a_session_nothing_is_shown(wire: Wire, gateway: FakeGateway, path: str) -> None:
    """A browser without a cookie reads how to get one; a munge credential is of no use here."""
    reply = wire.ask(path, headers=(HOST, "authentication: good:ann"))
    assert (reply.status, reply.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert gateway.calls == []


def test_the_cookie_opens_nothing_but_the_page(wire: Wire, gateway: FakeGateway) -> None:
    """The API, where GET changes things, needs a credential for each request."""
    cookie = enter(wire)
    for path in ("/api/list/mycluster/", "/api/expire/mycluster/docker/ubuntu:24.04/"):
        assert open_page(wire, cookie, path).status == 401
    assert gateway.calls == []


def test_plain_http_from_other_machines_is_refused(gateway: FakeGateway) -> None:
    """Neither an entry nor a session is given or taken where others could read along."""
    near_wire, far_wire = (
        Wire(site_of(gateway, gateway.clock), peer=peer) for peer in ("127.0.0.1", "192.0.2.7")
    )
    entry, cookie = entry_of(near_wire), enter(near_wire)
    reply = far_wire.ask("/api/page/mycluster/", "POST", b"", ("authentication: good:ann", HOST))
    assert (reply.status, reply.json["code"]) == (403, "not-allowed")
    assert far_wire.ask(entry, headers=(HOST,)).status == 403
    assert open_page(far_wire, cookie).status == 403
    assert open_page(near_wire, cookie).status == 200
    assert near_wire.ask(entry, headers=(HOST,)).status == 200


def test_other_paths_and_methods(wire: Wire) -> None:
    """An unknown path is a 404, a wrong method a 405, both for people."""
    cookie = enter(wire)
    assert open_page(wire, cookie, "/page/nosuch").status == 404
    assert open_page(wire, cookie, "/page/images/x").status == 404
    assert open_page(wire, cookie, "/pagex").headers["content-type"] == "application/json"
    for path, method, methods in (
        ("/page/", "POST", "GET, HEAD"),
        ("/page/leave", "GET", "POST"),
        ("/page/style.css", "PUT", "GET, HEAD"),
    ):
        reply = open_page(wire, cookie, path, method)
        assert (reply.status, reply.headers["allow"]) == (405, methods)
    reply = open_page(wire, cookie, "/page")
    assert 'url=page/"' in reply.body.decode()


def test_a_system_that_is_no_longer_configured(gateway: FakeGateway) -> None:
    """A session of another gateway, or of an earlier configuration, is refused."""
    cookie = enter(Wire(site_of(gateway, gateway.clock), peer="127.0.0.1"))
    gateway.systems = ["newcluster"]
    wire = Wire(site_of(gateway, gateway.clock), peer="127.0.0.1")
    assert open_page(wire, cookie).status == 401


def test_troubles_are_shown(wire: Wire, gateway: FakeGateway) -> None:
    """The health of the system says what is wrong; a database that is away is a 503."""
    cookie = enter(wire)
    gateway.queue_trouble = QueueTrouble("No worker is there.", "secret detail", 0.0)
    text = open_page(wire, cookie).body.decode()
    assert ("No worker is there." in text, "secret" in text) == (True, False)
    gateway.raises = Unavailable("The database is away.", detail="10.0.0.1")
    reply = open_page(wire, cookie)
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    text = reply.body.decode()
    assert ("The database is away." in text, "10.0.0.1" in text) == (True, False)


def test_a_fault_is_a_document_too(wire: Wire, gateway: FakeGateway) -> None:
    """The user reads which request to name to the site's support."""
    cookie = enter(wire)
    gateway.raises = ZeroDivisionError()
    reply = open_page(wire, cookie)
    assert reply.status == 500
    assert reply.headers["x-request-id"] in reply.body.decode()


def test_events_are_those_of_the_user(wire: Wire, gateway: FakeGateway) -> None:
    """The stream begins with the work that the user may see."""
    secret_work = replace(PULLING, key="x", pulltag="secret:1", requested_by=1, sealed="s")
    gateway.work.records = [PULLING, secret_work]
    data = f"GET /page/events HTTP/1.1\r\n{HOST}\r\n{enter(wire)}\r\n\r\n".encode()
    wire.transport.clear()
    head, _, body = wire.send(data).partition(b"\r\n\r\n")
    assert b"text/event-stream" in head
    assert b"quay.io/lab/tool" in body
    assert b"event: current" in body
    assert b"secret" not in body


def test_the_log_has_no_entry_and_no_token(wire: Wire, events: list[LogEvent]) -> None:
    """Entering and signing out have a line with the user; documents are only counted."""
    cookie = enter(wire)
    open_page(wire, cookie)
    open_page(wire, cookie, "/page/leave", "POST")
    lines = [
        event["text"] for event in events if "text" in event and event["log_level"].name == "info"
    ]
    assert [line.split()[3:5] for line in lines] == [
        ["POST", "/api/page/mycluster/"],
        ["GET", "/page/enter"],
        ["POST", "/page/leave"],
    ]
    assert all("ann(1000)" in line for line in lines)
    assert not any(cookie.partition("=")[2] in str(event) for event in events)
    assert not any("entry=" in str(event) for event in events)


def test_a_reader_who_has_gone_stops_the_work(wire: Wire, gateway: FakeGateway) -> None:
    """The list of a document is built for nobody else; the next reader gets a turn."""
    cookie = enter(wire)
    ends: list[str] = []
    gateway.gate = Deferred(lambda _: ends.append("cancelled"))
    other_wire = Wire(site_of(gateway, gateway.clock), peer="127.0.0.1")
    other_wire.send(f"GET /page/ HTTP/1.1\r\n{HOST}\r\n{cookie}\r\n\r\n".encode())
    hang_up(other_wire)
    assert ends == ["cancelled"]
