"""The page of operators at the admin listener: all systems, and what the gateway works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from twisted.web.template import Element, Tag, renderer, tags

from shiftergw.errors import amount
from shiftergw.model.postponement import Breaker
from shiftergw.model.records import ImageRecord, WorkerMachine
from shiftergw.service.site_report import DiskReport, SiteReport, SiteReporter
from shiftergw.states import State
from shiftergw.web.page.documents import FILES, document, template
from shiftergw.web.page.elements import UNKNOWN, bar, mark, time_tag
from shiftergw.web.page.work import WAITING, FailureList, QueueList, mood_of, work_in
from shiftergw.web.render import Answer


@dataclass(frozen=True, slots=True)
class Throughput:
    """What workers of this machine have done since a time; sizes in bytes."""

    since: float
    pulls: int
    failures: int
    image_bytes: int
    layer_bytes: int


@dataclass(frozen=True, slots=True)
class Measurements:
    """What the gateway has counted: `spans` of throughput, and by registry the requests left."""

    spans: Sequence[Throughput] = ()
    requests_left: Mapping[str, int] = field(default_factory=dict)


class AdminPage:
    """Answers requests for the page of operators."""

    def __init__(self, reporter: SiteReporter, measurements: Callable[[], Measurements]) -> None:
        """Show the reports of `reporter`, and the present `measurements`."""
        self._reporter = reporter
        self._measurements = measurements

    async def __call__(self) -> Answer:
        """Return the page; raise `Unavailable` if the database does not answer."""
        report = await self._reporter.report()

        def system_of(record: ImageRecord) -> str:
            return record.system

        content = [
            SiteTable(report),
            QueueList(report.records, system_of),
            FailureList(report.records, system_of),
            MeansTables(report, self._measurements()),
        ]
        return await document("Gateway", content)


class SiteTable(Element):
    """The systems, with their health and what they have to do."""

    loader = template("site")

    def __init__(self, report: SiteReport) -> None:
        """Show the systems of a report."""
        super().__init__()
        self._report = report

    @renderer
    def site(self, _: object, tag: Tag) -> Tag:
        """Fill the time in."""
        return tag.fillSlots(time=time_tag(self._report.time))

    @renderer
    def system(self, _: object, tag: Tag) -> Iterator[Tag]:
        """Yield a row for each system."""
        for name, trouble in self._report.troubles.items():
            records = [record for record in self._report.records if record.system == name]
            work = work_in(records)
            waiting = sum(record.status in WAITING for record in work)
            failures = sum(record.status is State.FAILURE for record in records)
            yield tag.clone().fillSlots(
                name=name,
                mood=mood_of(trouble),
                text="Pulls are working." if trouble is None else str(trouble),
                working=str(len(work) - waiting),
                waiting=str(waiting),
                failed=str(failures),
            )


class MeansTables(Element):
    """Workers, registries, disks, and throughput."""

    loader = template("means")

    def __init__(self, report: SiteReport, measurements: Measurements) -> None:
        """Show what the gateway works with."""
        super().__init__()
        self._report = report
        self._measurements = measurements
        breakers = list(report.breakers)
        self._breakers: dict[str, list[Breaker]] = {}
        for name, host in report.registries.items():
            own = [breaker for breaker in breakers if _is_of_registry(breaker, name, host)]
            self._breakers[name] = own
            breakers = [breaker for breaker in breakers if breaker not in own]
        self._rest = breakers

    @renderer
    def no_machine(self, _: object, tag: Tag) -> Tag | str:
        """Return the sentence for a gateway without workers."""
        return "" if self._report.machines else tag

    @renderer
    def machines(self, _: object, tag: Tag) -> Tag | str:
        """Return the table of workers, unless it is empty."""
        return tag if self._report.machines else ""

    @renderer
    def machine(self, _: object, tag: Tag) -> Iterator[Tag]:
        """Yield a row for each machine."""
        for machine in self._report.machines:
            used = len(machine.jobs)
            yield tag.clone().fillSlots(
                name=machine.name,
                mark=mark("leaving" if machine.leaving else ""),
                slots=f"{used} of {machine.slots}",
                bar=bar(f"Slots of {machine.name} in use", used, max(1, machine.slots)),
                jobs=self._job_names(machine),
                version=machine.version,
                heard=time_tag(machine.heard),
            )

    def _job_names(self, machine: WorkerMachine) -> list[Tag] | str:
        names = [self._report.jobs.get(key, "(ending)") for key in machine.jobs]
        return [tags.span(name, class_="line") for name in names] or UNKNOWN

    @renderer
    def no_registry(self, _: object, tag: Tag) -> Tag | str:
        """Return the sentence for a gateway without registries."""
        return "" if self._report.registries else tag

    @renderer
    def registries(self, _: object, tag: Tag) -> Tag | str:
        """Return the table of registries, unless it is empty."""
        return tag if self._report.registries else ""

    @renderer
    def registry(self, _: object, tag: Tag) -> Iterator[Tag]:
        """Yield a row for each registry: what it still allows, and why requests are held back."""
        for name, host in self._report.registries.items():
            remaining = self._measurements.requests_left.get(name)
            yield tag.clone().fillSlots(
                name=name,
                host=host,
                left=UNKNOWN if remaining is None else f"{remaining:,}",
                breakers=[
                    tags.span("until ", time_tag(breaker.until), f": {breaker.why}", class_="line")
                    for breaker in self._breakers[name]
                ]
                or "no",
            )

    @renderer
    def other_breakers(self, _: object, tag: Tag) -> Tag | str:
        """Return the list of further breakers, unless it is empty."""
        return tag if self._rest else ""

    @renderer
    def other_breaker(self, _: object, tag: Tag) -> Iterator[Tag]:
        """Yield a row for each breaker of another host, or of a system's image directory."""
        for breaker in self._rest:
            yield tag.clone().fillSlots(
                what=subject_of(breaker),
                until=["until ", time_tag(breaker.until)],
                why=breaker.why,
            )

    @renderer
    def disk(self, _: object, tag: Tag) -> Iterator[Tag]:
        """Yield a row for each directory of the gateway."""
        for disk in self._report.disks:
            yield tag.clone().fillSlots(purpose=disk.purpose, **_disk_cells(disk))

    @renderer
    def span(self, _: object, tag: Tag) -> Iterator[Tag]:
        """Yield a row for each span of time."""
        for span in self._measurements.spans:
            yield tag.clone().fillSlots(
                since=time_tag(span.since),
                pulls=f"{span.pulls:,}",
                failures=f"{span.failures:,}",
                image_bytes=amount(span.image_bytes),
                layer_bytes=amount(span.layer_bytes),
            )


def _disk_cells(disk: DiskReport) -> dict[str, Tag | str]:
    if disk.total is None or disk.free is None:
        return {"free": "does not answer", "total": UNKNOWN, "bar": ""}
    share = bar(f"Share in use: {disk.purpose}", disk.total - disk.free, max(1, disk.total))
    return {"free": amount(disk.free), "total": amount(disk.total), "bar": share}


def _is_of_registry(breaker: Breaker, name: str, host: str) -> bool:
    """Return whether a breaker holds requests to a registry back; see `sources.registry`."""
    match breaker.key.split(" "):
        case ["limit", location, *_] | ["slow", _, location, *_]:
            return location == name
        case ["unreachable", address, *_]:
            return address in {host, f"{host}:443"}
        case _:
            return False


def subject_of(breaker: Breaker) -> str:
    """Return what a breaker holds requests back from; keys have further words, such as a login."""
    match breaker.key.split(" "):
        case ["unreachable", "system", directory, *_]:
            return f"Image directory {directory}"
        case ["unreachable", host, *_]:
            return f"Host {host}"
        case ["limit", location, *_] | ["slow", _, location, *_]:
            return f"Registry {location}"
        case _:
            return "Requests"


def browser_pages(page: AdminPage) -> dict[str, Callable[[], Awaitable[Answer]]]:
    """Return the page of operators and the files that it needs, by path."""

    def answer_with(file: Answer) -> Callable[[], Awaitable[Answer]]:
        async def send() -> Answer:
            return file

        return send

    return {"/": page, **{f"/{name}": answer_with(file) for name, file in FILES.items()}}
