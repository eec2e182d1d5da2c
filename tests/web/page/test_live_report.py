"""One report for all viewers, and a stream that tells each of them what has changed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from shiftergw.errors import Unavailable
from shiftergw.service.site_report import SiteReport
from shiftergw.web.event_connection import STALL_SECONDS, STREAM_SECONDS
from shiftergw.web.page.admin_page import VIEWERS
from shiftergw.web.page.live_report import BUSY_SHARE, FAULT_SECONDS, REPORT_SECONDS
from shiftergw.web.site import Site
from tests.web.fakes import Wire, hang_up
from tests.web.page.test_admin_page import EMPTY, FULL, FakeReporter, site_of
from tests.web.test_event_stream import Client, Event


class CountingReporter(FakeReporter):
    """Counts the reports; each one takes `seconds` of the clock, or waits for `report_gate`."""

    def __init__(self, clock: Clock) -> None:
        """Report an empty site."""
        super().__init__(EMPTY)
        self.clock = clock
        self.count = 0
        self.seconds = 0.0
        self.report_gate: Deferred[None] | None = None

    async def report(self) -> SiteReport:
        """Return the report, or raise."""
        self.count += 1
        self.clock.rightNow += self.seconds
        if self.report_gate is not None:
            await self.report_gate
        return await super().report()


@dataclass
class Bench:
    """An admin site, its reporter, and its clock."""

    clock: Clock
    reporter: CountingReporter
    site: Site
    views: int = 0

    def view(self, headers: str = "", path: str = "/events") -> Viewer:
        """Open a stream."""
        self.views += 1
        return Viewer(self.site, path, headers, f"10.0.0.{self.views}")

    def change(self, **changes: object) -> None:
        """Change the site."""
        assert isinstance(self.reporter.site_report, SiteReport)
        self.reporter.site_report = replace(self.reporter.site_report, **changes)  # type: ignore[arg-type]

    def page(self) -> str:
        """Return the page as a browser without scripts gets it."""
        return Wire(self.site).ask("/", headers=("Host: localhost",)).body.decode()


class Viewer(Client):
    """A browser that views the page."""

    def __init__(self, site: Site, path: str, headers: str, peer: str) -> None:
        """Send a request for events."""
        Wire.__init__(self, site, peer)
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
        self.head, _, self.unread = self.send(head.encode()).partition(b"\r\n\r\n")
        self.transport.clear()

    def parts(self) -> list[str]:
        """Return the names of the parts that have arrived since the last call."""
        return [event.data["part"] for event in self.events() if event.name == "part"]

    def version(self) -> str:
        """Return the last id that has arrived."""
        (line,) = [line for line in self.text().splitlines() if line.startswith("id: ")]
        return line.removeprefix("id: ")


@pytest.fixture
def bench() -> Bench:
    """Return an admin site without anything on it."""
    clock = Clock()
    reporter = CountingReporter(clock)
    return Bench(clock, reporter, site_of(reporter, clock))


def test_one_report_serves_all(bench: Bench) -> None:
    """However many view the page or fetch it, the site is read once in two seconds."""
    viewers = [bench.view() for _ in range(VIEWERS)]
    for _ in range(3):
        bench.page()
    assert bench.reporter.count == 1
    for _ in range(4):
        bench.clock.advance(REPORT_SECONDS)
        bench.page()
    assert bench.reporter.count == 5
    for viewer in viewers:
        hang_up(viewer)
    bench.clock.advance(100)
    assert bench.reporter.count == 5


def test_only_what_has_changed_is_sent(bench: Bench) -> None:
    """A viewer who has the page gets nothing at first, and then the parts that change."""
    since = bench.page().partition('data-stream="')[2].partition('"')[0]
    viewer = bench.view(path=f"/{since}")
    assert viewer.parts() == []
    bench.clock.advance(REPORT_SECONDS)
    assert viewer.events() == []
    bench.change(disks=FULL.disks, machines=FULL.machines)
    bench.clock.advance(REPORT_SECONDS)
    assert viewer.parts() == ["workers", "disks"]


def test_a_browser_goes_on_after_a_break(bench: Bench) -> None:
    """It sends the id of what it has, and gets what has changed meanwhile, also much later."""
    viewer = bench.view()
    version = viewer.version()
    hang_up(viewer)
    bench.change(disks=FULL.disks)
    bench.clock.advance(5)
    bench.page()
    bench.change(machines=FULL.machines)
    bench.clock.advance(5)
    viewer = bench.view(f"Last-Event-ID: {version}\r\n", "/events?since=older")
    bench.clock.advance(REPORT_SECONDS)
    text = viewer.text()
    assert "retry: 2000" in text
    assert [name for name in ("systems", "workers", "disks") if f'"part":"{name}"' in text] == [
        "workers",
        "disks",
    ]


@pytest.mark.parametrize("version", ["", "x", "00000000-7", "0000000g-1", "1" * 100])
def test_an_unknown_version_gets_everything(bench: Bench, version: str) -> None:
    """The version of another gateway, or of one before its restart, says nothing."""
    viewer = bench.view(f"Last-Event-ID: {version}\r\n")
    assert len(viewer.parts()) == 8


def test_a_slow_viewer_gets_the_newest_state(bench: Bench) -> None:
    """It costs no memory meanwhile, and is disconnected after a minute."""
    viewer = bench.view()
    viewer.events()
    viewer.pause()
    for name in ("alpha", "beta", "gamma"):
        bench.change(registries={name: "host"})
        bench.clock.advance(REPORT_SECONDS)
    assert viewer.text() == ""
    viewer.resume()
    (part, version) = viewer.events()
    assert (part.name, version.name) == ("part", "version")
    assert "gamma" in part.data["html"]
    viewer.pause()
    bench.clock.pump([1.0] * round(STALL_SECONDS + 30))
    assert viewer.transport.disconnected


def test_viewers_are_limited(bench: Bench) -> None:
    """Half of the connections are for others; the next viewer comes in when one has left."""
    viewers = [bench.view() for _ in range(VIEWERS)]
    assert bench.view().head.startswith(b"HTTP/1.1 503 ")
    assert "The gateway at" in bench.page()
    hang_up(viewers[0])
    assert bench.view().head.startswith(b"HTTP/1.1 200 ")


def test_a_stream_ends_after_some_minutes(bench: Bench) -> None:
    """The browser sends its token again then; the end of the site ends all streams."""
    viewer = bench.view()
    viewer.events()
    bench.clock.pump([10.0] * round(STREAM_SECONDS / 10))
    assert viewer.transport.value().endswith(b"0\r\n\r\n")
    viewer = bench.view()
    viewer.events()
    bench.site.stopFactory()
    assert viewer.transport.value().endswith(b"0\r\n\r\n")


def test_viewers_are_told_of_trouble(bench: Bench, events: list[LogEvent]) -> None:
    """They read once why nothing moves, also those who come then, and when it is over."""
    viewer = bench.view()
    viewer.events()
    report, bench.reporter.site_report = EMPTY, Unavailable("The database is away.")
    bench.clock.advance(REPORT_SECONDS)
    bench.clock.pump([FAULT_SECONDS] * 2)
    (trouble,) = viewer.events()
    assert trouble == Event("trouble", {"text": str(bench.reporter.site_report)})
    assert [event.name for event in bench.view().events()] == ["begin", "trouble"]
    bench.reporter.site_report = ValueError("a fault")
    bench.clock.advance(FAULT_SECONDS)
    assert any("report for operators" in str(event.get("log_format")) for event in events)
    bench.reporter.site_report = report
    bench.clock.advance(FAULT_SECONDS)
    assert [event.name for event in viewer.events()] == ["version"]


def test_callers_do_not_wait_one_after_the_other(bench: Bench) -> None:
    """If the database hangs, all who wait for the same report get its error together."""
    bench.reporter.report_gate = Deferred()
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    wires = [Wire(bench.site) for _ in range(3)]
    assert [wire.send(request) for wire in wires] == [b""] * 3
    bench.reporter.report_gate.errback(Unavailable("The database is away."))
    assert all(b"The database is away." in wire.transport.value() for wire in wires)
    assert bench.reporter.count == 1


def test_a_caller_who_hangs_up_leaves_the_report_to_others(bench: Bench) -> None:
    """The next caller makes it."""
    gate = bench.reporter.report_gate = Deferred[None]()
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    first, second = Wire(bench.site), Wire(bench.site)
    assert first.send(request) == second.send(request) == b""
    bench.reporter.report_gate = None
    hang_up(first)
    assert gate.called
    assert second.transport.value().startswith(b"HTTP/1.1 200")


def test_a_large_site_is_read_less_often(bench: Bench) -> None:
    """Reports take a tenth of the time at most."""
    bench.reporter.seconds = 1.0
    viewer = bench.view()
    bench.clock.advance(BUSY_SHARE - 0.1)
    assert bench.reporter.count == 1
    bench.clock.advance(0.2)
    assert bench.reporter.count == 2
    hang_up(viewer)
