"""Gather what an operator looks at: systems, work and failures, workers, registries, disks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shiftergw.config import Config
from shiftergw.errors import Unavailable
from shiftergw.model.postponement import Breaker
from shiftergw.model.records import ImageRecord, WorkerMachine
from shiftergw.model.throughput import Throughput, total
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.plumbing.files import free_space, total_space
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within
from shiftergw.ports import ImageStore, JobQueue, QueueTrouble
from shiftergw.service.site_caches import CacheReport, CacheReporter

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.service.work_queue import WorkQueue

SPANS = (3600.0, 86400.0)
"""The spans of throughput, in seconds."""

PAGE = 250
"""Images that are read at once."""

STORE_SECONDS = 10.0
"""Seconds that the database may take for a report."""

DISK_SECONDS = 2.0
"""Seconds that a disk may take to say how full it is; one on the network may hang."""

DISK_CALLS = 4
"""Disks that are asked at the same time, and so the most threads that hang."""


@dataclass(frozen=True, slots=True)
class DiskReport:
    """Bytes of the disk that a directory is on, None if it does not answer; `purpose` in words."""

    purpose: str
    total: int | None = None
    free: int | None = None


@dataclass(frozen=True, slots=True)
class SiteReport:
    """The state of a site at a `time`; `jobs` are the names of the images in work, by key.

    `registries` are hosts by the name of the location, and `requests_left` what they allow. There
    are no `caches` if other machines have them. `spans` are the throughput of all gateways.
    """

    time: float
    troubles: Mapping[str, QueueTrouble | None]
    records: Sequence[ImageRecord]
    machines: Sequence[WorkerMachine]
    jobs: Mapping[str, str]
    registries: Mapping[str, str]
    breakers: Sequence[Breaker]
    disks: Sequence[DiskReport]
    caches: Sequence[CacheReport] = ()
    requests_left: Mapping[str, int] = field(default_factory=dict)
    spans: Sequence[Throughput] = ()


class SiteReporter:
    """Gathers reports of a site."""

    def __init__(
        self,
        config: Config,
        store: ImageStore,
        work: WorkQueue,
        queue: JobQueue,
        threads: Threads,
        clock: IReactorTime,
        caches: CacheReporter | None = None,
        requests_left: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Read from `store` and `work`, and from `queue`; look at disks in `threads`.

        `caches` are those of this machine, if its workers use them.
        """
        self._config = config
        self._store = store
        self._work = work
        self._queue = queue
        self._clock = clock
        self._caches = caches
        self._requests_left = requests_left
        self._disk_calls = BoundedThreadCalls(threads, DISK_CALLS, DISK_SECONDS, clock, _late)

    async def report(self) -> SiteReport:
        """Return the present state; raise `Unavailable` if the database does not answer."""
        reading = self._read_store()
        records, breakers, spans = await within(STORE_SECONDS, self._clock, reading, _store_late)
        config = self._config
        return SiteReport(
            time=self._clock.seconds(),
            troubles={name: self._queue.trouble(name) for name in config.systems},
            records=records,
            machines=self._queue.machines(),
            jobs={record.key: record.pulltag or "" for record in records},
            registries={
                name: urlsplit(location.url).netloc.rpartition("@")[2]
                for name, location in config.locations.items()
                if location.is_registry
            },
            breakers=breakers,
            disks=await gather_or_cancel(
                self._disk(purpose, path) for purpose, path in self._directories()
            ),
            caches=() if self._caches is None else await self._caches.caches(),
            requests_left=self._requests_left(),
            spans=spans,
        )

    async def images(self) -> AsyncIterator[Sequence[ImageRecord]]:
        """Yield pages of the READY images of all systems."""
        for system in self._config.systems:
            page = await self._store.list(system, limit=PAGE)
            while page:
                yield page
                page = await self._store.list(system, page[-1].key, PAGE)

    async def _read_store(
        self,
    ) -> tuple[list[ImageRecord], Sequence[Breaker], Sequence[Throughput]]:
        records: list[ImageRecord] = []
        for system in self._config.systems:
            async for page in self._work.pages(system):
                records += page
        now = self._clock.seconds()
        entries = await self._store.list_throughput(now - max(SPANS))
        spans = [total(now - seconds, entries) for seconds in SPANS]
        return records, await self._store.list_breakers(now), spans

    def _directories(self) -> list[tuple[str, Path]]:
        config = self._config
        directories = [
            ("Cache of layers and packs", config.cache_directory),
            ("Converted files", config.expand_directory),
            ("State", config.state_directory),
            ("Uploads", config.upload_directory),
        ]
        directories += [
            (f"Images of {name}", system.delivery.image_dir)
            for name, system in config.systems.items()
            if system.delivery.is_mounted
        ]
        return [(purpose, Path(path)) for purpose, path in directories]

    async def _disk(self, purpose: str, path: Path) -> DiskReport:
        try:
            total, free = await self._disk_calls.run(lambda: (total_space(path), free_space(path)))
        except (Unavailable, OSError):
            return DiskReport(purpose)
        return DiskReport(purpose, total, free)


def _late() -> Unavailable:
    return Unavailable("The disk does not answer.")


def _store_late() -> Unavailable:
    return Unavailable("The gateway's database does not answer.")
