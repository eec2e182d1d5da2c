"""The page of operators at the admin listener: all systems, and what the gateway works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import DeferredLock
from twisted.web.template import Element, Tag, renderer, tags

from shiftergw.errors import Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.plumbing.timing import within
from shiftergw.service.site_report import SiteReporter
from shiftergw.web import render
from shiftergw.web.page.browsers import query_value
from shiftergw.web.page.documents import FILES, document, template, to_html
from shiftergw.web.page.image_list import ImageTable, search
from shiftergw.web.page.live_report import LiveReport, Parts
from shiftergw.web.page.site_tables import (
    CacheTable,
    DiskTable,
    RegistryTable,
    SystemTable,
    ThroughputTable,
    WorkerTable,
)
from shiftergw.web.page.work import FailureList, QueueList
from shiftergw.web.render import Answer

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.web.site import Call

VIEWERS = 16
"""Browsers that view the page live; the others fetch it now and then."""

SEARCH_SECONDS = 60.0
"""Seconds that a search among the images of all systems may take."""

MOST_SEARCHES = 8
"""Searches that wait for their turn: each reads all images, and keeps a connection."""

BrowserPage = Callable[["Call"], Awaitable[Answer]]


class AdminPage:
    """Answers requests for the page of operators."""

    def __init__(self, reporter: SiteReporter, clock: IReactorTime) -> None:
        """Show the reports of `reporter`."""
        self._reporter = reporter
        self._clock = clock
        self._live = LiveReport(self._parts, clock, VIEWERS)
        self._searching = DeferredLock()

    def pages(self) -> dict[str, BrowserPage]:
        """Return the documents, the stream, and the files that they need, by path."""

        def answer_with(file: Answer) -> BrowserPage:
            async def send(_: Call) -> Answer:
                return file

            return send

        files = {f"/{name}": answer_with(file) for name, file in FILES.items()}
        return {"/": self._show, "/events": self._follow, "/images": self._find_images, **files}

    def close(self) -> None:
        """End the streams."""
        self._live.close()

    async def _show(self, _: Call) -> Answer:
        """Return the page; raise `Unavailable` if the database does not answer."""
        report = await self._live.current()
        live = tags.div(id="live", hidden="", **{"data-stream": f"events?since={report.version}"})
        parts = [part.html for part in report.parts.values()]
        return await document("Gateway", [await to_html(live), *parts], Tabs("./"))

    async def _follow(self, call: Call) -> Answer:
        """Return the stream of what has changed since the version that the browser has."""
        version = call.header("Last-Event-ID") or query_value(call, "since")
        return render.events(self._live.open(version))

    async def _find_images(self, call: Call) -> Answer:
        """Return the images of all systems that fit a search; one search runs at a time."""
        if len(self._searching.waiting) >= MOST_SEARCHES:
            raise Unavailable("Too many searches are in work.")
        text = query_value(call, "search")
        async with self._searching:
            searching = search(None, self._reporter.images(), text)
            result = await within(SEARCH_SECONDS, self._clock, searching, _late)
        return await document("Images", [ImageTable("Images", None, result)], Tabs("images"))

    async def _parts(self) -> Parts:
        report = await self._reporter.report()

        def system_of(record: ImageRecord) -> str:
            return record.system

        elements = {
            "systems": SystemTable(report),
            "queue": QueueList(report.records, system_of),
            "failures": FailureList(report.records, system_of),
            "workers": WorkerTable(report),
            "registries": RegistryTable(report),
            "caches": CacheTable(report.caches),
            "disks": DiskTable(report.disks),
            "throughput": ThroughputTable(report.spans),
        }
        return {name: await to_html(element) for name, element in elements.items()}


class Tabs(Element):
    """Links to the documents of operators."""

    loader = template("tabs")

    def __init__(self, address: str) -> None:
        """Mark the link with this address as the present one."""
        super().__init__()
        self._address = address

    @renderer
    def link(self, _: object, tag: Tag) -> Tag:
        """Mark the link of the present document."""
        if tag.attributes["href"] == self._address:
            return tag(**{"aria-current": "page"})
        return tag


def _late() -> Unavailable:
    return Unavailable("The search has taken too long.")
