"""What the log says of requests: which have a line, and that the others are counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from shiftergw.errors import Unavailable
from shiftergw.model import ImageRecord, Session
from shiftergw.states import State
from shiftergw.web import journal
from shiftergw.web.journal import NEWS_SECONDS, PERIOD, SLOW
from tests.web.fakes import READY, FakeGateway, Wire, site_of

PULL = "/api/pull/mycluster/docker/ubuntu%3A24.04/"
LOOKUP = "/api/lookup/mycluster/docker/ubuntu%3A24.04/"


def at(state: State) -> ImageRecord:
    """Return a record in this state."""
    return replace(READY, status=state, id=READY.id if state is State.READY else None)


WAITS, READY_NOW = at(State.PENDING), at(State.READY)


class Site:
    """A site, its clock, and what its log says at info."""

    def __init__(self, events: list[LogEvent]) -> None:
        """Have nothing asked yet."""
        self.gateway = FakeGateway(pulls=[WAITS])
        self.clock = Clock()
        self._site = site_of(self.gateway, self.clock)
        self._events = events

    def ask(self, path: str, method: str = "GET", user: str = "ann", status: int = 200) -> None:
        """Ask once over a connection of its own, as the clients do."""
        reply = Wire(self._site).ask(path, method, headers=(f"authentication:good:{user}",))
        assert reply.status == status

    def pull(self, record: ImageRecord, user: str = "ann", path: str = PULL) -> None:
        """Have a pull answered with a record."""
        self.gateway.pulls = [record]
        self.ask(path, "POST", user)

    def close(self) -> None:
        """Close the last listener."""
        self._site.stopFactory()

    def lines(self, level: LogLevel = LogLevel.info) -> list[str]:
        """Return the lines of this level since the last time."""
        found = [formatEvent(one) for one in self._events if one["log_level"] is level]
        self._events.clear()
        return found


@pytest.fixture
def site() -> Iterator[Site]:
    """Give a site whose events of the web are seen."""
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if str(event.get("log_namespace", "")).startswith("shiftergw.web.journal"):
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield Site(events)
    globalLogPublisher.removeObserver(observe)


@pytest.mark.parametrize("end", [State.READY, State.FAILURE])
def test_a_pull_has_two_lines(site: Site, end: State) -> None:
    """One when its client begins, one when it hears the end, however often it asks meanwhile."""
    for state in (State.INIT, State.PENDING, State.PULLING, State.CONVERSION, State.TRANSFER):
        for _ in range(10):
            site.pull(at(state))
    (begun,) = site.lines()
    assert " 200 INIT " in begun
    site.pull(at(end))
    site.pull(at(end))
    (ended,) = site.lines()
    assert f" 200 {end} " in ended


def test_everybody_has_his_own_lines(site: Site) -> None:
    """Who asks for the same image, or for another one, is told of as well."""
    site.pull(WAITS)
    site.pull(WAITS, user="bob")
    site.pull(WAITS, path=PULL.replace("ubuntu", "other"))
    assert len(site.lines()) == 3


def test_what_was_told_long_ago_is_news(site: Site) -> None:
    """A pull of the next hour has its line, even if its answer is the same."""
    site.pull(READY_NOW)
    site.clock.advance(NEWS_SECONDS - 1)
    site.pull(READY_NOW)
    site.clock.advance(NEWS_SECONDS + 1)
    site.pull(READY_NOW)
    assert len([line for line in site.lines() if "/api/pull/" in line]) == 2


def test_reading_is_counted(site: Site) -> None:
    """Look-ups, lists and polls are a number a minute, and single lines only at debug."""
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
    """What was counted is told when the gateway stops listening, and told once."""
    site.ask("/api/list/mycluster/")
    site.clock.advance(20)
    site.close()
    assert "requests of the last 20 s" in site.lines()[0]
    site.clock.advance(PERIOD)
    site.close()
    assert site.lines() == []


def test_changes_and_refusals_have_lines(site: Site) -> None:
    """What changes something, and what fails, is never only counted."""
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
    """Of one user's refusals the log has some lines a minute, then their number; of others all."""
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
    """A look-up that took long is told of, for something keeps the gateway."""
    tick = site.clock.seconds

    def later() -> float:
        site.clock.rightNow += SLOW
        return tick()

    site.clock.seconds = later  # type: ignore[method-assign]
    site.ask("/api/list/mycluster/")
    assert "/api/list/mycluster/" in site.lines()[0]


def test_the_oldest_pulls_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever pulls images without end does not fill the gateway's memory."""
    monkeypatch.setattr(journal, "MOST_KEPT", 3)
    written = journal.Journal(Clock())
    session = Session("mycluster", "ann", 2001, "users", 2100)
    for number in range(4):
        assert written.is_news(session, "docker", f"x:{number}", WAITS)
    assert not written.is_news(session, "docker", "x:1", WAITS)
    assert written.is_news(session, "docker", "x:0", WAITS)
