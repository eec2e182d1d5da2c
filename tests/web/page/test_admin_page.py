"""The page of operators: what it shows of a site, and who gets it at the admin listener."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from shiftergw.errors import Unavailable
from shiftergw.model.postponement import Breaker
from shiftergw.model.records import ImageRecord, WorkerMachine
from shiftergw.model.throughput import Throughput
from shiftergw.ports import QueueTrouble
from shiftergw.service.site_caches import CacheReport
from shiftergw.service.site_report import (
    DiskReport,
    SiteReport,
    SiteReporter,
)
from shiftergw.states import State
from shiftergw.web.admin import AdminApplication, make_admin_site
from shiftergw.web.page import admin_page
from shiftergw.web.page.admin_page import AdminPage
from shiftergw.web.page.documents import FILES
from shiftergw.web.page.site_tables import subject_of
from shiftergw.web.site import Site
from tests.web.fakes import READY, Wire

TOKEN = "0123456789abcdefghij"
NOW = 1_700_000_000.0
EMPTY = SiteReport(NOW, {}, [], [], {}, {}, [], [])
PULL = ImageRecord(
    key="1",
    system="one",
    pulltag="app:<1>",
    status=State.TRANSFER,
    stage="deliver",
    done=1,
    total=4,
)
FULL = SiteReport(
    time=NOW,
    troubles={"one": None, "two": QueueTrouble("No worker is there.", "node7 is silent", NOW)},
    records=[
        PULL,
        replace(PULL, key="2", system="two", status=State.PENDING),
        replace(PULL, key="3", system="two", status=State.FAILURE, cause="It broke."),
    ],
    machines=[
        WorkerMachine("node1", "1.0", ("one",), 4, ("1", "9"), leaving=True, heard=NOW),
        WorkerMachine("node2", "1.0", ("one",), 0, (), leaving=False, heard=NOW),
    ],
    jobs={"1": "app:<1>"},
    registries={"hub": "hub.example.com", "quay.io": "quay.io:443"},
    breakers=[
        Breaker("limit hub 0a1b2c node1", NOW + 60, "too many requests", 1),
        Breaker("slow layers quay.io node1", NOW + 60, "layers come slowly", 1),
        Breaker("unreachable hub.example.com:443 node1", NOW + 60, "no route", 1),
        Breaker("unreachable system login1:/images node1", NOW + 60, "no answer", 1),
    ],
    disks=[DiskReport("Uploads", 1000, 250), DiskReport("Images of one")],
    caches=[CacheReport("Layers", 86400.0, 7, 2000, 8000), CacheReport("Caches", 0)],
    requests_left={"hub": 87},
    spans=[Throughput(NOW - 3600, 12, 3, 28_100_000, 1_000)],
)


class FakeReporter:
    """Returns `site_report`, or raises it; there are `site_images`, after `gate`."""

    def __init__(self, site_report: SiteReport | Exception = FULL) -> None:
        """Answer with a report, or fail."""
        self.site_report = site_report
        self.site_images: Sequence[ImageRecord] = ()
        self.gate: Deferred[None] = succeed(None)

    async def report(self) -> SiteReport:
        """Return the report, or raise."""
        if isinstance(self.site_report, Exception):
            raise self.site_report
        return self.site_report

    async def images(self) -> AsyncIterator[Sequence[ImageRecord]]:
        """Yield all images."""
        await self.gate
        yield self.site_images


def site_of(reporter: FakeReporter, clock: Clock, token: str = "") -> Site:
    """Return an admin site with the page of a reporter."""
    page = AdminPage(cast("SiteReporter", reporter), clock)
    application = AdminApplication({}, clock, page)
    application.token = token.encode() or None
    return make_admin_site(application, clock)


def wire_to(site_report: SiteReport | Exception = FULL, token: str = "") -> Wire:
    """Return a connection to the admin site with the page."""
    return Wire(site_of(FakeReporter(site_report), Clock(), token))


def text_of(site_report: SiteReport) -> str:
    """Return the page that shows a report."""
    return wire_to(site_report).ask("/", headers=("Host: localhost",)).body.decode()


def test_the_state_of_a_site() -> None:
    """Systems, work, failures, workers, registries, disks and throughput, with their troubles."""
    text = text_of(FULL)
    for words in (
        *("No worker is there. node7 is silent", "app:&lt;1&gt;", 'value="0.2500"', "It broke."),
        *("2 of 4", "leaving", "(ending)", "0 of 0", "87", "too many requests", "no route"),
        *("layers come slowly", "Image directory login1:/images", "no answer"),
        *("250 bytes", "1 kB", 'value="0.7500"', "does not answer", "28.1 MB", ">12<"),
        *("2 kB", "8 kB", 'value="0.2500"', "1 day"),
    ):
        assert words in text, words
    assert "0a1b2c" not in text
    assert 'data-events=""' in text


def test_an_empty_site() -> None:
    """Where nothing is, a sentence says so."""
    text = text_of(EMPTY)
    for words in (
        "No pull waits",
        "No machine works",
        "The gateway has no registry.",
        "on the worker machines",
    ):
        assert words in text
    assert "Held back" not in text
    assert "Slots in use" not in text


@pytest.mark.parametrize(
    ("key", "subject"),
    [
        ("limit hub anonymous node1", "Registry hub"),
        ("slow documents hub node1", "Registry hub"),
        ("unreachable mirror.example.com:443 node1", "Host mirror.example.com:443"),
        ("of another version", "Requests"),
    ],
)
def test_what_a_breaker_holds_back(key: str, subject: str) -> None:
    """The words are those of the key, without machine and login."""
    assert subject_of(Breaker(key, NOW, "why", 1)) == subject


def test_the_page_at_a_socket() -> None:
    """Everybody who may connect reads it, with its files, at an address of this machine."""
    wire = wire_to()
    for host in ("127.0.0.1:9190", "localhost:9190", "[::1]", "gateway"):
        reply = wire.ask("/", headers=(f"Host: {host}",))
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
    for name, file in FILES.items():
        assert wire.ask(f"/{name}?abc").body == file.body


def test_a_site_elsewhere_reads_nothing() -> None:
    """A name that suddenly leads to this machine is refused, unless a token protects the page."""
    host = "Host: rebound.example.com"
    assert wire_to().ask("/", headers=(host,)).status == 403
    bearer = f"Authorization: Bearer {TOKEN}"
    assert wire_to(token=TOKEN).ask("/", headers=(host, bearer)).status == 200


def test_a_browser_sends_the_token_as_password() -> None:
    """The browser asks its user for it; any name will do."""
    wire = wire_to(token=TOKEN)
    reply = wire.ask("/", headers=())
    assert (reply.status, reply.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert 'Basic realm="shiftergw admin"' in reply.headers["www-authenticate"]
    for text, status in (
        (f"ann:{TOKEN}", 200),
        (f":{TOKEN}", 200),
        (f"{TOKEN}:", 401),
        (TOKEN, 401),
        (f"ann:{TOKEN}x", 401),
    ):
        credentials = base64.b64encode(text.encode()).decode()
        assert wire.ask("/", headers=(f"Authorization: Basic {credentials}",)).status == status
    assert wire.ask("/", headers=("Authorization: Basic ?",)).status == 401


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Unavailable("The database is away."), 503, "The database is away."),
        (ZeroDivisionError(), 500, "Something went wrong"),
    ],
)
def test_errors_are_documents(error: Any, status: int, words: str) -> None:
    """An operator reads why there is no report."""
    reply = wire_to(error).ask("/", headers=("Host: localhost",))
    assert reply.status == status
    assert words in reply.body.decode()


def test_the_images_of_all_systems() -> None:
    """A search finds them on whatever system, with their readers."""
    reporter = FakeReporter()
    reporter.site_images = [
        replace(READY, system=system, private=True, user_acl=(7,)) for system in ("one", "two")
    ]
    wire = Wire(site_of(reporter, Clock()))
    text = wire.ask("/images?search=UBUNTU", headers=("Host: localhost",)).body.decode()
    assert "2 of 2 images." in text
    assert text.count("user 7") == 2
    assert "<td>two</td>" in text
    assert 'value="UBUNTU"' in text
    text = wire.ask("/images?search=alpine", headers=("Host: localhost",)).body.decode()
    assert "0 of 2 images." in text


def test_searches_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """One runs at a time and for a minute at most, some wait, and further ones are refused."""
    monkeypatch.setattr(admin_page, "MOST_SEARCHES", 1)
    reporter, clock = FakeReporter(), Clock()
    reporter.gate = Deferred()
    site = site_of(reporter, clock)
    search = b"GET /images HTTP/1.1\r\nHost: localhost\r\n\r\n"
    running, waiting, surplus = (Wire(site) for _ in range(3))
    assert running.send(search) == waiting.send(search) == b""
    assert b"Too many searches" in surplus.send(search)
    clock.advance(admin_page.SEARCH_SECONDS)
    assert b"has taken too long" in running.transport.value()
    reporter.gate.callback(None)
    assert waiting.transport.value().startswith(b"HTTP/1.1 200")
