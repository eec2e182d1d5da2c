"""The report of a site has what the store, the queue and the disks say."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.errors import Unavailable
from shiftergw.model.records import Ready, WorkerMachine
from shiftergw.model.throughput import Throughput
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import QueueTrouble
from shiftergw.service import site_report
from shiftergw.service.site_caches import CacheReport, CacheReporter
from shiftergw.service.site_report import SiteReporter
from shiftergw.store.sqlite.store import SqliteStore
from tests.configurations import load_config
from tests.installed_reactor import reactor
from tests.service.gateway_bench import ALICE, READY, Bench


@pytest_twisted.ensureDeferred
async def test_a_report(store: SqliteStore, threads: Threads, tmp_path: Path) -> None:
    """It has all work and failures of all users, workers, registries, breakers, and disks."""
    bench = Bench(store)
    config = load_config(
        {"CacheDirectory": str(tmp_path), "ExpandDirectory": "/nonexistent"}
    ).config
    now = bench.clock.seconds()
    await bench.pull(ALICE, "app:1")
    await store.trip_breaker("limit x", now + 60, "why", now)
    bench.queue.worker_machines = [WorkerMachine("n", "1", ("mycluster",), 1, (), False, now)]
    bench.queue.current_trouble = QueueTrouble("No worker is there.", "detail", now)
    work = bench.gateway.work
    cache = CacheReport("Layers", 86400.0, 1, 10, 100)
    caches = CacheReporter(lambda: [cache], threads, reactor)
    allowances = {"hub": 87}
    for seconds in (0, 4000, 90_000):
        await store.add_throughput(Throughput(reactor.seconds() - seconds, 1, 0, 10, 5))
    reporter = SiteReporter(
        config, store, work, bench.queue, threads, reactor, caches, lambda: allowances
    )
    report = await reporter.report()
    assert report.caches == [cache]
    assert report.requests_left == allowances
    assert [(span.pulls, span.image_bytes, span.layer_bytes) for span in report.spans] == [
        (1, 10, 5),
        (2, 20, 10),
    ]
    assert report.troubles == {"mycluster": bench.queue.current_trouble}
    assert [record.pulltag for record in report.records] == ["app:1"]
    assert list(report.jobs.values()) == ["app:1"]
    assert report.machines == bench.queue.worker_machines
    assert report.registries == {"registry.example.com": "registry.example.com"}
    disks = {disk.purpose: disk for disk in report.disks}
    disk = disks["Cache of layers and packs"]
    assert disk.total is not None
    assert disk.free is not None
    assert disk.total >= disk.free > 0
    assert disks["Converted files"].total is None
    assert "Images of mycluster" in disks


@pytest_twisted.ensureDeferred
async def test_the_images_of_all_systems(
    store: SqliteStore, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come in pages, system by system."""
    monkeypatch.setattr(site_report, "PAGE", 1)
    bench = Bench(store)
    for number in (1, 2):
        await bench.pull(ALICE, f"app:{number}")
        await bench.end(Ready(f"{number}" * 64, READY.changes))
    config = load_config({}).config
    reporter = SiteReporter(config, store, bench.gateway.work, bench.queue, threads, reactor)
    pages = [[image.tags for image in page] async for page in reporter.images()]
    assert sorted(pages) == [[("app:1",)], [("app:2",)]]


@pytest_twisted.ensureDeferred
async def test_a_database_that_hangs(store: SqliteStore, threads: Threads) -> None:
    """The report fails after ten seconds, and says why."""
    bench, clock = Bench(store), Clock()

    class HungWork:
        def pages(self, system: str) -> object:
            return self

        def __aiter__(self) -> HungWork:
            return self

        async def __anext__(self) -> object:
            return await Deferred[object]()

    config = load_config({}).config
    work: object = HungWork()
    reporter = SiteReporter(config, store, work, bench.queue, threads, clock)  # type: ignore[arg-type]
    reporting = Deferred.fromCoroutine(reporter.report())
    clock.advance(site_report.STORE_SECONDS)
    with pytest.raises(Unavailable, match="does not answer"):
        await reporting
