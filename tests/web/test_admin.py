"""The admin site answers those who may read it, and nothing else."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from shiftergw.errors import Unavailable
from shiftergw.service.gateway import Gateway
from shiftergw.web import render
from shiftergw.web.admin import (
    CHALLENGES,
    CONNECTIONS,
    REFUSAL_SECONDS,
    AdminApplication,
    health_pages,
    make_admin_site,
)
from shiftergw.web.render import Answer
from shiftergw.web.site import Site
from tests.web.fakes import FakeGateway, Wire, hang_up

TOKEN = "0123456789abcdefghij"


def site_with(pages: dict[str, Any], clock: Clock, token: str | None = None) -> Site:
    """Return an admin site with these pages."""
    application = AdminApplication(pages, clock)
    application.token = None if token is None else token.encode()
    return make_admin_site(application, clock)


def wire_to(gateway: FakeGateway, token: str | None = None) -> Wire:
    """Return a connection to the admin site of a gateway."""
    return Wire(site_with(health_pages(cast("Gateway", gateway)), Clock(), token))


def test_health_is_that_of_the_public_site() -> None:
    """Both pages about health answer as they do at the public site."""
    gateway = FakeGateway()
    wire = wire_to(gateway)
    assert [(wire.ask(p).status, wire.ask(p).body) for p in ("/livez", "/readyz")] == [
        (200, b"alive"),
        (200, b"ready"),
    ]
    assert wire.ask("/readyz", "HEAD").body == b""
    gateway.raises = Unavailable("The database is away.")
    assert wire.ask("/readyz").status == 503


def test_no_other_page_and_no_other_method() -> None:
    """The API is not at the admin listener, and nothing can be changed there."""
    wire = wire_to(FakeGateway())
    assert wire.ask("/api/list/mycluster/").status == 404
    assert wire.ask("/").status == 404
    reply = wire.ask("/livez", "POST", b"x")
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
    assert wire.ask("/livez", "PUT", b"x").status == 405


@pytest.mark.parametrize(
    "header",
    [
        "X: y",
        "Authorization: Bearer",
        f"Authorization: Bearer {TOKEN}x",
        f"Authorization: Bearer {TOKEN[:-1]}",
        f"Authorization: Basic {TOKEN}",
        f"Authorization: {TOKEN}",
        f"authentication: Bearer {TOKEN}",
    ],
)
def test_each_request_needs_the_token(header: str) -> None:
    """Without the token no page is shown, not even which pages there are."""
    wire = wire_to(FakeGateway(), TOKEN)
    for path in ("/livez", "/nosuch"):
        reply = wire.ask(path, headers=[header])
        assert (reply.status, reply.headers["www-authenticate"]) == (401, CHALLENGES)
        assert TOKEN.encode() not in reply.body


def test_the_token_opens_the_pages() -> None:
    """A scheme in any case, and the token, are enough."""
    wire = wire_to(FakeGateway(), TOKEN)
    assert wire.ask("/livez", headers=[f"Authorization: bearer {TOKEN}"]).status == 200


def test_refusals_do_not_fill_the_log(events: list[LogEvent]) -> None:
    """A client in a loop causes one line a minute, which does not contain what it sent."""
    clock = Clock()
    site = site_with({}, clock, TOKEN)
    wire = Wire(site)
    for _ in range(5):
        wire.ask("/metrics", headers=["Authorization: Bearer wrong-secret"])
    lines = [event for event in events if "lacks the token" in event["log_format"]]
    assert len(lines) == 1
    assert "wrong-secret" not in str(lines)
    clock.advance(REFUSAL_SECONDS)
    assert Wire(site).ask("/metrics", headers=[]).status == 401
    assert len([event for event in events if "lacks the token" in event["log_format"]]) == 2


def test_no_host_keeps_all_others_out() -> None:
    """A host has a quarter of the connections."""
    limits = site_with({}, Clock()).limits
    assert (limits.total, limits.per_peer) == (CONNECTIONS, CONNECTIONS // 4)


def test_a_fault_becomes_an_answer() -> None:
    """A page that fails unexpectedly is a 500, and the next request is answered."""

    async def fail() -> Answer:
        raise ZeroDivisionError

    async def text() -> Answer:
        return render.text("x")

    wire = Wire(site_with({"/fault": fail, "/text": text}, Clock()))
    assert wire.ask("/fault").json["status"] == 500
    assert wire.ask("/text").body == b"x"


def test_a_page_ends_when_its_reader_hangs_up() -> None:
    """The work for a reader who has gone away is cancelled."""
    ends: list[str] = []
    waiting: Deferred[None] = Deferred(lambda _: ends.append("cancelled"))

    async def wait() -> Answer:
        await waiting
        return render.text("late")

    wire = Wire(site_with({"/wait": wait}, Clock()))
    wire.send(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n")
    hang_up(wire)
    assert ends == ["cancelled"]
