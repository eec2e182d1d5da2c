"""A site by a simulated clock: users, a gateway, worker processes, and two registries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from shiftergw.config import Config
from shiftergw.delivery.local import LocalDirectory
from shiftergw.job.pipeline import Pipeline
from shiftergw.job.policy import ImagePolicies
from shiftergw.job.pull import Pull
from shiftergw.job.removal import Removal
from shiftergw.job.targets import Target
from shiftergw.job.worker import Worker
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.images import Platform, ResolvedImage
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobCache
from shiftergw.service.dispatch import Dispatch
from shiftergw.service.gateway import Gateway
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.names import RegistryNames
from shiftergw.sources.registry.options import RegistryOptions
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.shared_breakers import SharedBreakers
from shiftergw.sources.registry.shared_manifests import SharedManifests
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.configurations import load_config
from tests.images import INDEX, make_image, make_index, tar_of
from tests.job.workbench import Builder, Cache, Files, SignatureList
from tests.sources.registry.faulty import FaultySite, Reply, Request
from tests.sources.registry.network import REACTOR, Network
from tests.work.fakes import FakeQueue

WINDOW = 6 * 3600
LIMITED_HOST, FREE_HOST = "limited.example", "free.example"
SYSTEMS = ("near", "far")
"""Two systems with image directories of their own."""
START = 1_700_000_000
HEARTBEAT_LIMIT = 600.0
TICK = 300.0
"""Seconds between two looks at the queue while no worker is busy."""


class SimulatedNetwork(Network):
    """The network, by the time of a `Clock`."""

    def __init__(self, clock: Clock) -> None:
        """Use the clock for all waits."""
        super().__init__({})
        self.seconds = clock.seconds
        self.callLater = clock.callLater


class LimitedRegistry(FaultySite):
    """A registry that limits the GETs of manifests in six hours, as Docker Hub.

    HEAD is not counted. `refuses_head` says whether it is refused, too, while nothing remains.
    """

    def __init__(self, clock: Clock, allowance: int | None, *, refuses_head: bool = False) -> None:
        """Serve nothing yet; with None nothing is counted."""
        super().__init__()
        self.allowance = allowance
        self.refuses_head = refuses_head
        self.reads: list[float] = []
        """The times of the GETs of manifests that were answered."""
        self.refusals = 0
        self._clock = clock

    def push(self, tag: str, version: int) -> None:
        """Move a tag to a new image behind an index."""
        image = make_image([tar_of({f"{tag}-{version}": b"x"})])
        self.add(image.manifest, image.media_type)
        self.blobs.update({str(digest): blob for digest, blob in image.blobs.items()})
        self.add(make_index([image]), INDEX, tag)

    def respond(self, request: Request) -> Reply:
        """Answer a request; count those for manifests."""
        if request.kind not in {"manifest", "child"}:
            return self.respond_well(request)
        now = self._clock.seconds()
        is_counted = request.method == "GET"
        fields = {}
        if self.allowance is not None:
            used = sum(time > now - WINDOW for time in self.reads)
            remaining = max(0, self.allowance - used - is_counted)
            fields = {
                "RateLimit-Limit": f"{self.allowance};w={WINDOW}",
                "RateLimit-Remaining": f"{remaining};w={WINDOW}",
            }
            if used >= self.allowance and (is_counted or self.refuses_head):
                self.refusals += 1
                return Reply(429, b'{"errors":[{"message":"too many"}]}', fields)
        if is_counted:
            self.reads.append(now)
        reply = self.respond_well(request)
        return Reply(reply.status, reply.body, {**reply.fields, **fields})


@dataclass(frozen=True, slots=True)
class ImageChoice:
    """The image that a user pulls, and the system."""

    uid: int
    system: str
    name: str

    @property
    def session(self) -> Session:
        """Return the session of the user."""
        return Session(self.system, f"user{self.uid}", self.uid, "users", 2100)


@dataclass(frozen=True, slots=True)
class PullResult:
    """The end of a user's pull; the times are seconds."""

    choice: ImageChoice
    begin: float
    end: float
    record: ImageRecord

    @property
    def has_waited(self) -> bool:
        """Return whether the pull took much longer than without a limit."""
        return self.end - self.begin > 2 * TICK


class WorkerProcesses(FakeQueue):
    """A `JobQueue` of worker processes, each with one job at a time."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        """Let all processes wait for work."""
        super().__init__(len(workers))
        self.ended_keys: list[str] = []
        self.errors: list[Failure] = []
        self._idle = list(workers)
        self._count = len(workers)
        self._random = Random(40)

    @property
    def is_busy(self) -> bool:
        """Return whether a process works."""
        return len(self._idle) < self._count

    async def offer(self, key: str, system: str) -> None:
        """Give the job to any idle process."""
        await super().offer(key, system)
        worker = self._idle.pop(self._random.randrange(len(self._idle)))

        async def run() -> None:
            try:
                await worker.run(key)
            finally:
                self._idle.append(worker)
                self.free_slots += 1
                self.ended_keys.append(key)

        Deferred.fromCoroutine(run()).addErrback(self.errors.append)


class LimitedSite:
    """The gateway, its workers, and the pulls of its users."""

    def __init__(
        self, clock: Clock, store: SqliteStore, gateway: Gateway, processes: WorkerProcesses
    ) -> None:
        """Start without pulls."""
        self.results: list[PullResult] = []
        self.processes = processes
        self._clock = clock
        self._gateway = gateway
        self._dispatch = Dispatch(store, processes, clock, HEARTBEAT_LIMIT, SYSTEMS)
        self._waiting: dict[str, list[tuple[ImageChoice, float]]] = {}

    @property
    def waiting_count(self) -> int:
        """Return how many pulls have not ended."""
        return sum(map(len, self._waiting.values()))

    async def pull(self, choice: ImageChoice, begin: float | None = None) -> None:
        """Start a pull, or look at one that began at a time."""
        now = self._clock.seconds()
        begin = now if begin is None else begin
        record = await self._gateway.pull(choice.session, "docker", choice.name, (), (), "test")
        if record.status in {State.READY, State.FAILURE}:
            self.results.append(PullResult(choice, begin, now, record))
        else:
            self._waiting.setdefault(record.key, []).append((choice, begin))

    async def pull_all(self, choices: Sequence[ImageChoice], seconds: float) -> list[PullResult]:
        """Start pulls, spread over a time; return the results that have arrived by its end."""
        earlier = len(self.results)
        for choice in choices:
            await self.pull(choice)
            await self.run(seconds / len(choices))
        return self.results[earlier:]

    async def run(self, seconds: float) -> None:
        """Let the workers work and the time pass."""
        end = self._clock.seconds() + seconds
        while self._clock.seconds() < end:
            await self._work()
            self._clock.advance(max(0.0, min(TICK, end - self._clock.seconds())))

    async def _work(self) -> None:
        """Offer work until none is due."""
        while True:
            self._dispatch.startService()
            await self._dispatch.stopService()
            if not self.processes.is_busy and not self.processes.ended_keys:
                return
            while not self.processes.ended_keys:
                await pause(0.0005, REACTOR)
                self._clock.advance(0.03)
            while self.processes.ended_keys:
                key = self.processes.ended_keys.pop()
                self._dispatch.begin_settling(key)
                self._dispatch.end_settling(key)
                for choice, begin in self._waiting.pop(key, ()):
                    await self.pull(choice, begin)


@asynccontextmanager
async def limited_site(
    root: Path, clock: Clock, registries: Mapping[str, FaultySite], processes: int
) -> AsyncIterator[LimitedSite]:
    """Run a gateway and the worker processes of one machine, with a client of their own each."""
    async with AsyncExitStack() as stack:
        store = SqliteStore(REACTOR, root / "store.sqlite")
        threads = Threads(REACTOR, 2, "test")
        threads.startService()
        await store.startService()

        async def stop() -> None:
            await store.stopService()
            await threads.stopService()

        stack.push_async_callback(stop)
        urls = {
            name: await stack.enter_async_context(registry.running())
            for name, registry in registries.items()
        }
        config = configuration(urls)
        targets = {name: target_at(root / name, threads) for name in SYSTEMS}
        seal = Seal(b"k" * 32)
        network: Any = SimulatedNetwork(clock)
        workers = []
        for number in range(processes):
            locations = {name: Location(name, url) for name, url in urls.items()}
            names = RegistryNames(locations, config.locate)
            options = RegistryOptions(
                random=Random(number).random,
                shared_breakers=SharedBreakers(store, "here"),
                share_manifests=partial(SharedManifests, root / "manifests", threads=threads),
            )
            client = RegistryClient(network, names, Proxies({}), options)
            stack.push_async_callback(client.close)
            builder, cache = Builder(root / f"expand{number}"), Cache()
            builder.directory.mkdir()
            pipeline = Pipeline(client, partial(same_cache, cache), builder, BuildLimits(), clock)
            policies = ImagePolicies(config, SignatureList(), {}, threads, clock)
            pull = Pull(config, store, pipeline, policies, targets, seal, clock, Files().open)
            removal, runner = Removal(store, targets), f"here:{number}"
            waits = config.wait_limits()
            workers.append(Worker(store, pull, removal, clock, runner, HEARTBEAT_LIMIT, waits))
        queue = WorkerProcesses(workers)
        gateway = Gateway(config, store, lambda: seal, lambda: None, clock, queue)
        yield LimitedSite(clock, store, gateway, queue)


def configuration(urls: Mapping[str, str]) -> Config:
    """Return the configuration of a site that waits for its registries for a day."""
    local = {"accesstype": "local", "local": {"imageDir": "/images"}}
    return load_config(
        {
            "DefaultImageLocation": LIMITED_HOST,
            "Locations": {
                name: {"remotetype": "dockerv2", "url": url} for name, url in urls.items()
            },
            "Platforms": dict.fromkeys(SYSTEMS, local),
            "RegistryWait": 86400,
            "FailureHold": 600,
            "PullUpdateTimeout": 600,
        }
    ).config


def target_at(directory: Path, threads: Threads) -> Target:
    """Return a system whose image directory is `directory`."""
    directory.mkdir()
    images = LocalDirectory(directory, threads)
    return Target(directory.name, images, Platform(), SquashOptions(), (directory.name,))


def same_cache(cache: Cache, _: ResolvedImage) -> BlobCache:
    """Return the cache for every image."""
    return cache
