"""Make the report of operators once for all viewers, and send what has changed as events.

However many viewers there are, the report is read at most every `REPORT_SECONDS`. It consists of
parts of a document, and a viewer gets only those that have changed since the version that it has,
also after its connection was broken: browsers send the last id then (`Last-Event-ID`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger

from shiftergw.errors import GatewayError, Unavailable
from shiftergw.plumbing.timing import pause
from shiftergw.web import render
from shiftergw.web.event_connection import EventConnection

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

REPORT_SECONDS = 2.0
"""Seconds for which a report counts as new."""

BUSY_SHARE = 10
"""After a report that took long, the pause is this many times as long."""

MOST_PAUSE_SECONDS = 30.0
"""Seconds between two reports, at most, while anybody views them."""

FAULT_SECONDS = 5.0
"""Seconds until the next report after one that has failed."""

_VERSION = re.compile(r"([0-9a-f]{8})-([0-9]{1,15})")

Parts = Mapping[str, bytes]
"""The parts of a report by name, as HTML."""


@dataclass(frozen=True, slots=True)
class ReportPart:
    """A part of a report, the number of the report that has changed it last, and its event."""

    html: bytes
    number: int
    event: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """All parts at a `time`; `version` names this state, and `number` is its last component."""

    time: float
    number: int
    version: str
    parts: Mapping[str, ReportPart] = field(default_factory=dict)


class LiveReport:
    """Keeps the last report, and makes new ones while it has viewers."""

    _log = Logger()

    def __init__(
        self, make: Callable[[], Awaitable[Parts]], clock: IReactorTime, limit: int
    ) -> None:
        """Make reports by `make`; allow `limit` streams, each of which occupies a connection."""
        self._make = make
        self._clock = clock
        self._limit = limit
        self._lock = DeferredLock()
        self._run_id = secrets.token_hex(4)
        """Part of each version: numbers begin again with each start of a gateway."""
        self._viewers: dict[ReportStream, None] = {}
        self._streams: dict[ReportStream, None] = {}
        self._running: Deferred[None] | None = None
        self._fault: GatewayError | None = None
        self._fault_time = 0.0
        self.report: Report | None = None
        """The last report; None before the first one."""
        self.trouble = b""
        """The event about a report that has failed; empty after one that has not."""

    async def current(self) -> Report:
        """Return a report of the last `REPORT_SECONDS`.

        Raises the error of the last one if that has failed within this time, so that callers who
        wait for a database that hangs do not wait one after the other.
        """
        await self._lock.acquire()
        try:
            now = self._clock.seconds()
            if self.report is not None and 0 <= now - self.report.time < REPORT_SECONDS:
                return self.report
            if self._fault is not None and 0 <= now - self._fault_time < REPORT_SECONDS:
                raise self._fault
            try:
                parts = await self._make()
            except GatewayError as error:
                self._fault, self._fault_time = error, self._clock.seconds()
                raise
            self.report = self._next_report(parts)
            return self.report
        finally:
            self._lock.release()

    def _next_report(self, parts: Parts) -> Report:
        earlier = {} if self.report is None else self.report.parts
        number = 1 if self.report is None else self.report.number
        is_same = {name: part.html for name, part in earlier.items()} == dict(parts)
        if self.report is not None and not is_same:
            number += 1
        version = f"{self._run_id}-{number}"

        def part_of(name: str, html: bytes) -> ReportPart:
            part = earlier.get(name)
            if part is not None and part.html == html:
                return part
            data = render.to_json({"part": name, "html": html.decode()})
            return ReportPart(html, number, b"event: part\ndata: %s\n\n" % data)

        all_parts = {name: part_of(name, html) for name, html in parts.items()}
        return Report(self._clock.seconds(), number, version, all_parts)

    def open(self, version: str) -> ReportStream:
        """Return a stream for a viewer that has this version; "" for none.

        Raises `Unavailable` if there are too many.
        """
        if len(self._streams) >= self._limit:
            raise Unavailable("Too many browsers view this page live.")
        match = _VERSION.fullmatch(version)
        number = int(match[2]) if match is not None and match[1] == self._run_id else 0
        stream = ReportStream(self, number, self._clock, lambda: self._streams.pop(stream))
        self._streams[stream] = None
        return stream

    def close(self) -> None:
        """End all streams."""
        for stream in list(self._streams):
            stream.close()

    def add(self, viewer: ReportStream) -> None:
        """Tell a viewer of new reports from now on, and of the last one at once."""
        self._viewers[viewer] = None
        if self._running is None:
            self._running = Deferred.fromCoroutine(self._run())
            self._running.addErrback(lambda failure: failure.trap(CancelledError))
        elif self.report is not None:
            viewer.end_round()

    def remove(self, viewer: ReportStream) -> None:
        """Forget a viewer; after the last one no more reports are made."""
        self._viewers.pop(viewer, None)
        if not self._viewers and self._running is not None:
            running, self._running = self._running, None
            running.cancel()

    async def _run(self) -> None:
        while True:
            start = self._clock.seconds()
            try:
                await self.current()
                self.trouble = b""
                duration = self._clock.seconds() - start
                seconds = min(max(REPORT_SECONDS, BUSY_SHARE * duration), MOST_PAUSE_SECONDS)
            except CancelledError:
                raise
            except GatewayError as error:
                data = render.to_json({"text": str(error)})
                self.trouble, seconds = b"event: trouble\ndata: %s\n\n" % data, FAULT_SECONDS
            except Exception:  # noqa: BLE001 - the next report may succeed
                self._log.failure("the report for operators")
                seconds = FAULT_SECONDS
            for viewer in list(self._viewers):
                viewer.end_round()
            await pause(seconds, self._clock)


class ReportStream(EventConnection):
    """The report as one viewer gets it."""

    def __init__(
        self, live: LiveReport, number: int, clock: IReactorTime, on_close: Callable[[], object]
    ) -> None:
        """Send the parts that are newer than the report with this number."""
        super().__init__(clock, on_close)
        self._live = live
        self._number = number
        self._last_trouble: bytes | None = None
        """The trouble that the viewer knows of; None before the first event."""

    def subscribe(self) -> None:
        """See `EventConnection`."""
        self._live.add(self)

    def unsubscribe(self) -> None:
        """See `EventConnection`."""
        self._live.remove(self)

    def has_changes(self) -> bool:
        """Return False: all changes are sent at once."""
        return False

    def next_events(self) -> Iterator[bytes]:
        """See `EventConnection`.

        After the parts comes their version, as the id of its event; it also ends a trouble.
        """
        trouble, report = self._live.trouble, self._live.report
        is_news = trouble != self._last_trouble
        self._last_trouble = trouble
        if trouble:
            if is_news:
                yield trouble
        elif report is not None and (is_news or report.number > self._number):
            for part in report.parts.values():
                if part.number > self._number:
                    yield part.event
            self._number = report.number
            yield b"id: %s\nevent: version\ndata: {}\n\n" % report.version.encode("ascii")
