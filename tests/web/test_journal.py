"""Which requests get a line in the log, and how the others are counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from shiftergw.app.metric_counts import MetricCounts
from shiftergw.errors import Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.service.gateway import Gateway
from shiftergw.states import State
from shiftergw.web import journal
from shiftergw.web.api import make_site
from shiftergw.web.journal import NEWS_SECONDS, PERIOD, SLOW
from tests.web.fakes import READY, FakeAuthenticator, FakeGateway, Wire, in_no_thread, site_of

PULL = "/api/pull/mycluster/docker/ubuntu%3A24.04/"
LOOKUP = "/api/lookup/mycluster/docker/ubuntu%3A24.04/"


def record_in(state: State) -> ImageRecord:
    """Return a record in this state."""
    return replace(READY, status=state, id=READY.id if state is State.READY else None)


WAITS, READY_NOW = record_in(State.PENDING), record_in(State.READY)


class Site:
    """A site, its clock, and its log."""

    def __init__(self, events: list[LogEvent]) -> None:
        self.gateway = FakeGateway(pulls=[WAITS])
        self.clock = Clock()
        self._site = site_of(self.gateway, self.clock)
        self.events = events

    def ask(self, path: str, method: str = "GET", user: str = "ann", status: int = 200) -> None:
        """Send a request over a new connection, as clients do."""
        reply = Wire(self._site).ask(path, method, headers=(f"authentication:good:{user}",))
        assert reply.status == status

    def pull(self, record: ImageRecord, user: str = "ann", path: str = PULL) -> None:
        """Send a pull that the gateway answers with `record`."""
        self.gateway.pulls = [record]
        self.ask(path, "POST", user)

    def close(self) -> None:
        """Close the last listener."""
        self._site.stopFactory()

    def lines(self, level: LogLevel = LogLevel.info) -> list[str]:
        """Return the lines of this level since the last call."""
        lines = [formatEvent(event) for event in self.events if event["log_level"] is level]
        self.events.clear()
        return lines


@pytest.fixture
def site() -> Iterator[Site]:
    """Yield a site whose journal is observed."""
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if str(event.get("log_namespace", "")).startswith("shiftergw.web.journal"):
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield Site(events)
    globalLogPublisher.removeObserver(observe)


def test_fields(site: Site) -> None:
    """The line of a request has its parts as fields, for logs in JSON."""
    site.ask("/api/pull/elsewhere/docker/ubuntu/", "POST", status=404)
    (event,) = site.events
    fields = event["fields"]
    assert formatEvent(event).startswith(f"{fields['request']} ")
    assert (fields["method"], fields["path"]) == ("POST", "/api/pull/elsewhere/docker/ubuntu/")
    assert (fields["status"], fields["state"]) == (404, None)
    assert "no system" in fields["cause"]


@pytest.mark.parametrize("end", [State.READY, State.FAILURE])
def test_a_pull_has_two_lines(site: Site, end: State) -> None:
    """The first answer and the final one get a line; polls in between do not."""
    for state in (State.INIT, State.PENDING, State.PULLING, State.CONVERSION, State.TRANSFER):
        for _ in range(10):
            site.pull(record_in(state))
    (first,) = site.lines()
    assert " 200 INIT " in first
    site.pull(record_in(end))
    site.pull(record_in(end))
    (final,) = site.lines()
    assert f" 200 {end} " in final


def test_each_user_and_image_has_a_line(site: Site) -> None:
    """A pull by another user or of another image gets its own line."""
    site.pull(WAITS)
    site.pull(WAITS, user="bob")
    site.pull(WAITS, path=PULL.replace("ubuntu", "other"))
    assert len(site.lines()) == 3


def test_new_work_is_news(site: Site) -> None:
    """A pull that begins soon after the last one of the same image gets its own line."""
    for key in ("1", "1", "2", "2"):
        site.pull(replace(WAITS, key=key))
    assert len(site.lines()) == 2


def test_a_repeated_pull_is_news_after_a_while(site: Site) -> None:
    """After `NEWS_SECONDS`, a pull gets a line even if its answer is the same."""
    site.pull(READY_NOW)
    site.clock.advance(NEWS_SECONDS - 1)
    site.pull(READY_NOW)
    site.clock.advance(NEWS_SECONDS + 1)
    site.pull(READY_NOW)
    assert len([line for line in site.lines() if "/api/pull/" in line]) == 2


def test_reading_is_counted(site: Site) -> None:
    """Look-ups, lists and polls are counted each minute; their lines are at level debug."""
    for _ in range(3):
        site.ask(LOOKUP)
        site.pull(READY_NOW)
    site.ask("/api/list/mycluster/")
    assert len(site.lines()) == 1
    site.clock.advance(PERIOD)
    (line,) = site.lines()
    assert line.startswith("requests of the last 60 s that brought nothing new:")
    assert "lookup 3, pull 2, list 1;" in line
    site.clock.advance(PERIOD)
    assert site.lines() == []
    site.ask("/api/list/mycluster/")
    assert "/api/list/mycluster/" in site.lines(LogLevel.debug)[0]


def test_the_last_minute_is_not_lost(site: Site) -> None:
    """The counts are logged when the gateway stops listening, and only once."""
    site.ask("/api/list/mycluster/")
    site.clock.advance(20)
    site.close()
    assert "requests of the last 20 s" in site.lines()[0]
    site.clock.advance(PERIOD)
    site.close()
    assert site.lines() == []


def test_changes_and_refusals_have_lines(site: Site) -> None:
    """A request that changes something or fails always gets a line."""
    site.ask("/api/autoexpire/mycluster/")
    site.ask("/api/lookup/nowhere/docker/x/", status=404)
    site.gateway.raises = Unavailable("The store is away.")
    site.ask("/api/list/mycluster/", status=503)
    site.ask(PULL, "POST", status=503)
    assert len(site.lines()) == 4
    site.close()
    assert site.lines() == []


def test_a_client_in_a_loop_does_not_fill_the_log(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some refusals of a user in a minute, only their number is logged."""
    monkeypatch.setattr(journal, "MOST_REFUSALS", 3)
    for _ in range(5):
        site.ask("/api/metrics/mycluster/?limit=x", user="bob", status=400)
        site.ask("/api/list/nowhere/", status=404)
    lines = site.lines()
    assert [sum(f" {user} " in line for line in lines) for user in ("bob(1001)", "-")] == [3, 3]
    site.ask("/api/metrics/mycluster/?limit=x", status=400)
    assert "ann(1000)" in site.lines()[0]
    site.clock.advance(PERIOD)
    (line,) = site.lines()
    assert "refused to bob(1001) 2" in line
    assert "refused to anybody 2" in line
    site.ask("/api/list/nowhere/", status=404)
    assert len(site.lines()) == 1
    site.clock.advance(PERIOD)
    assert site.lines() == []


def test_a_slow_answer_has_a_line(site: Site) -> None:
    """A slow request gets a line, since something keeps the gateway busy."""
    tick = site.clock.seconds

    def slow_clock() -> float:
        site.clock.rightNow += SLOW
        return tick()

    site.clock.seconds = slow_clock  # type: ignore[method-assign]
    site.ask("/api/list/mycluster/")
    assert "/api/list/mycluster/" in site.lines()[0]


def test_the_oldest_pulls_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who pulls ever more images does not fill the memory of the gateway."""
    monkeypatch.setattr(journal, "MOST_KEPT", 3)
    pulls = journal.Journal(Clock())
    session = Session("mycluster", "ann", 2001, "users", 2100)
    for number in range(4):
        assert pulls.is_news(session, "docker", f"x:{number}", WAITS)
    assert not pulls.is_news(session, "docker", "x:1", WAITS)
    assert pulls.is_news(session, "docker", "x:0", WAITS)


def test_requests_are_measured() -> None:
    """Each request counts by its route and the class of its status, whatever its path says."""
    counts = MetricCounts()
    clock = Clock()
    site = make_site(
        cast("Gateway", FakeGateway()),
        {"mycluster": FakeAuthenticator()},
        clock,
        in_no_thread,
        metrics=counts,
    )
    wire = Wire(site)
    for path in ("/livez", "/nosuch/1", "/api/nosuch/2", "/api/list/mycluster/"):
        wire.ask(path)
    wire.ask("/api/list/mycluster/", headers=[])
    labels = {tuple(labels): numbers[0] for _, labels, numbers in counts.entries()}
    assert labels == {
        ("none", "2xx"): 1,
        ("none", "4xx"): 2,
        ("list", "2xx"): 1,
        ("list", "4xx"): 1,
    }
