"""The tables of the page of operators: systems, and what the gateway works with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from twisted.web.template import Element, Tag, renderer, tags

from shiftergw.errors import amount, duration
from shiftergw.model.postponement import Breaker
from shiftergw.model.records import WorkerMachine
from shiftergw.model.throughput import Throughput
from shiftergw.service.site_caches import CacheReport
from shiftergw.service.site_report import DiskReport, SiteReport
from shiftergw.states import State
from shiftergw.web.page.documents import template
from shiftergw.web.page.elements import UNKNOWN, bar, mark, time_tag
from shiftergw.web.page.work import WAITING, mood_of, work_in


class SystemTable(Element):
    """The systems, with their health and what they have to do."""

    loader = template("systems")

    def __init__(self, report: SiteReport) -> None:
        """Show the systems of a report."""
        super().__init__()
        self._report = report

    @renderer
    def systems(self, _: object, tag: Tag) -> Tag:
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


class WorkerTable(Element):
    """The machines with workers, and their slots."""

    loader = template("workers")

    def __init__(self, report: SiteReport) -> None:
        """Show the machines of a report."""
        super().__init__()
        self._report = report

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


class RegistryTable(Element):
    """The registries: what they still allow, and why requests are held back."""

    loader = template("registries")

    def __init__(self, report: SiteReport) -> None:
        """Show the registries and breakers of a report."""
        super().__init__()
        self._report = report
        breakers = list(report.breakers)
        self._breakers: dict[str, list[Breaker]] = {}
        for name, host in report.registries.items():
            own = [breaker for breaker in breakers if _is_of_registry(breaker, name, host)]
            self._breakers[name] = own
            breakers = [breaker for breaker in breakers if breaker not in own]
        self._rest = breakers

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
        """Yield a row for each registry."""
        for name, host in self._report.registries.items():
            remaining = self._report.requests_left.get(name)
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


class CacheTable(Element):
    """What the caches of this machine have, and what they may have."""

    loader = template("caches")

    def __init__(self, caches: Sequence[CacheReport]) -> None:
        """Show these caches."""
        super().__init__()
        self._caches = caches

    @renderer
    def no_cache(self, _: object, tag: Tag) -> Tag | str:
        """Return the sentence for a gateway whose workers are on other machines."""
        return "" if self._caches else tag

    @renderer
    def caches(self, _: object, tag: Tag) -> Tag | str:
        """Return the table of caches, unless it is empty."""
        return tag if self._caches else ""

    @renderer
    def cache(self, _: object, tag: Tag) -> Iterator[Tag]:
        """Yield a row for each cache."""
        for cache in self._caches:
            yield tag.clone().fillSlots(name=cache.name, **_cache_cells(cache))


def _cache_cells(cache: CacheReport) -> dict[str, Tag | str]:
    if cache.size is None or cache.budget is None:
        unknown_cells = dict.fromkeys(("files", "budget", "age"), UNKNOWN)
        return {**unknown_cells, "size": "does not answer", "bar": ""}
    return {
        "age": duration(cache.keep_seconds),
        "files": f"{cache.files:,}",
        "size": amount(cache.size),
        "budget": amount(cache.budget),
        "bar": bar(f"Share of the budget: {cache.name}", cache.size, max(1, cache.budget)),
    }


class DiskTable(Element):
    """The disks of the gateway's directories."""

    loader = template("disks")

    def __init__(self, disks: Sequence[DiskReport]) -> None:
        """Show these disks."""
        super().__init__()
        self._disks = disks

    @renderer
    def disk(self, _: object, tag: Tag) -> Iterator[Tag]:
        """Yield a row for each directory of the gateway."""
        for disk in self._disks:
            yield tag.clone().fillSlots(purpose=disk.purpose, **_disk_cells(disk))


def _disk_cells(disk: DiskReport) -> dict[str, Tag | str]:
    if disk.total is None or disk.free is None:
        return {"free": "does not answer", "total": UNKNOWN, "bar": ""}
    share = bar(f"Share in use: {disk.purpose}", disk.total - disk.free, max(1, disk.total))
    return {"free": amount(disk.free), "total": amount(disk.total), "bar": share}


class ThroughputTable(Element):
    """What the workers of all gateways have done."""

    loader = template("throughput")

    def __init__(self, spans: Sequence[Throughput]) -> None:
        """Show these spans of time."""
        super().__init__()
        self._spans = spans

    @renderer
    def span(self, _: object, tag: Tag) -> Iterator[Tag]:
        """Yield a row for each span of time."""
        for span in self._spans:
            yield tag.clone().fillSlots(
                since=time_tag(span.since),
                pulls=f"{span.pulls:,}",
                failures=f"{span.failures:,}",
                image_bytes=amount(span.image_bytes),
                layer_bytes=amount(span.layer_bytes),
            )
