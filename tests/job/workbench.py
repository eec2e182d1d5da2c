"""A worker on a real store and a real directory; registry, cache and builder are in memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from shiftergw.delivery.local import LocalDirectory
from shiftergw.errors import NoSpace, RegistryDenied
from shiftergw.image import (
    BuildLimits,
    BuiltImage,
    ContentReport,
    Descriptor,
    Digest,
    ImageConfig,
    Opening,
    Platform,
    ResolvedImage,
    SquashOptions,
)
from shiftergw.job.pipeline import Pipeline
from shiftergw.job.pull import Pull
from shiftergw.job.removal import Removal
from shiftergw.job.targets import Target
from shiftergw.job.worker import Worker
from shiftergw.model import ImageRecord, ImageReference, PullRequest, RegistryLogin
from shiftergw.oci.meta import read_meta
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobCache, Layer
from shiftergw.store.sqlite.store import SqliteStore
from tests.configurations import loaded

INDEX = Digest.of(b"the index")
MANIFEST = Digest.of(b"the manifest")
LAYER = Descriptor(Digest.of(b"layer"), 5)
CONFIG = ImageConfig("amd64", "linux", 0, ("A=1",), ("/bin/sh",))
SYSTEM, SISTER = "mycluster", "sister"
"""Two systems with one image directory."""


class Source:
    """An `ImageSource` of one image, which says what it was asked."""

    def __init__(self) -> None:
        """Hold a public image."""
        self.asked: list[str] = []
        self.private = False
        self.repository = "lib/app"
        self.refuses: Exception | None = None
        self.hangs = False
        self.blobs_are_closed = False
        self.manifest, self.index, self.config = MANIFEST, INDEX, CONFIG

    def _answer(self, what: str, login: RegistryLogin | None) -> None:
        self.asked.append(what)
        if self.refuses is not None:
            raise self.refuses
        if self.private and login is None:
            raise RegistryDenied("The registry refused the image.")

    async def head(
        self, reference: ImageReference, login: RegistryLogin | None, say: Any
    ) -> Digest:
        """Answer the index's digest."""
        self._answer("head", login)
        return self.index

    async def resolve(
        self, reference: ImageReference, platform: Platform, login: RegistryLogin | None, say: Any
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Answer the image."""
        self._answer("resolve", login)
        if self.hangs:
            await Deferred[None]()
        return (
            ResolvedImage(
                self.manifest,
                self.index,
                LAYER,
                (LAYER,),
                "registry",
                self.repository,
                self.private,
            ),
            self.config,
        )

    async def prove(self, image: ResolvedImage, login: RegistryLogin | None, say: Any) -> None:
        """Let a login read the blobs, or not."""
        self._answer("prove", login)
        if self.blobs_are_closed:
            raise RegistryDenied("The registry refused a layer.")

    async def blob(self, *_: Any) -> None:
        """Hold no blobs: the cache below has them."""
        raise AssertionError


class Cache:
    """A `BlobCache` that holds everything."""

    def __init__(self) -> None:
        """Have given out nothing yet."""
        self.given: list[Digest] = []
        self.discarded: list[Digest] = []
        self.given_up: list[Digest] = []
        self.full = False

    @asynccontextmanager
    async def get(
        self,
        blob: Descriptor,
        download: Any,
        report: Callable[[int], None],
        begun: Callable[[Opening], None],
    ) -> AsyncIterator[Path]:
        """Give out a blob."""
        self.given.append(blob.digest)
        report(blob.size)
        yield Path("/nowhere")

    async def check_space(self, wanted: Sequence[Descriptor]) -> None:
        """Have room, or not."""
        if self.full:
            raise NoSpace("The gateway's cache is full.")

    async def discard(self, digest: Digest) -> bool:
        """Note what is looked at; nothing is damaged."""
        self.discarded.append(digest)
        return False

    async def give_up(self, digest: Digest) -> None:
        """Note what is given up."""
        self.given_up.append(digest)


class Builder:
    """An `ImageBuilder` that writes a small file."""

    def __init__(self, directory: Path) -> None:
        """Build in `directory`."""
        self.directory = directory
        self.built = 0
        self.fails: Exception | None = None
        self.on_build: Callable[[], Awaitable[object]] | None = None

    @asynccontextmanager
    async def build(
        self,
        image_id: str,
        created: int,
        layers: Sequence[Layer],
        options: SquashOptions,
        limits: BuildLimits,
        report: Any,
        on_stage: Callable[[str], None],
    ) -> AsyncIterator[BuiltImage]:
        """Write the file."""
        for layer in layers:
            await layer.wait_for_file()
        on_stage("EXAMINATION")
        if self.fails is not None:
            raise self.fails
        on_stage("CONVERSION")
        self.built += 1
        if self.on_build is not None:
            await self.on_build()
        path = self.directory / f"{image_id}.squashfs"
        # As the real one's, it appears whole: others may be delivering it at this moment.
        part = path.with_suffix(f".{self.built}")
        part.write_bytes(b"squashfs")
        part.replace(path)
        digest = hashlib.sha256(b"squashfs").hexdigest()
        yield BuiltImage(path, 8, digest, ContentReport(entries=3, setuid=1))

    async def check_space(self, size: int) -> None:
        """Have room."""

    async def sweep(self, before: float) -> int:
        """Keep everything."""
        return 0


class Bench:
    """A worker and everything around it."""

    def __init__(
        self,
        store: SqliteStore,
        threads: Threads,
        root: Path,
        before: Bench | None = None,
        **changes: Any,
    ) -> None:
        """Wire the parts; `changes` are of the configuration.

        After another one, which is `before`, with its registry and its images.
        """
        self.store, self.threads = store, threads
        self.source: Source = before.source if before else Source()
        self.cache, self.builder = Cache(), Builder(root / "expand")
        self.builder.directory.mkdir()
        self.images: Path = before.images if before else root / "images"
        self.images.mkdir(exist_ok=before is not None)
        self.seal = Seal(b"k" * 32)
        directory = LocalDirectory(self.images, threads)

        def cache_of(_: ResolvedImage) -> BlobCache:
            return self.cache

        systems = SYSTEM, SISTER
        config = loaded({"ImageExpirationTimeout": "1:00:00:00", **changes}).config
        target = Target(
            "images",
            directory,
            Platform(),
            SquashOptions(),
            systems,
            names_readers=not config.disable_acl_metadata,
        )
        self.targets = targets = dict.fromkeys(systems, target)
        pipeline = Pipeline(self.source, cache_of, self.builder, BuildLimits(), reactor)
        pull = Pull(config, store, pipeline, targets, self.seal, reactor)
        self.worker = Worker(store, pull, Removal(store, targets), reactor, "here:1", 60)

    async def claim(
        self,
        name: str = "lib/app:1",
        uid: int = 2001,
        login: str | None = None,
        system: str = SYSTEM,
        **members: Any,
    ) -> ImageRecord:
        """Put a pull into the store."""
        request = PullRequest(system, "docker", ImageReference.parse(name), uid, **members)
        if login is not None:
            request = replace(request, sealed=self.seal.close(login, request.claim))
        record, _ = await self.store.claim(request, 1000.0)
        return record

    async def pull(self, *arguments: Any, **named: Any) -> ImageRecord:
        """Claim a pull, do its work, and return what the store says of it then."""
        record = await self.claim(*arguments, **named)
        await self.worker.run(record.key)
        kept = await self.store.get(record.key)
        if kept is None:  # merged into the READY record
            kept = await self.store.find(record.system, "docker", [record.pulltag or ""])
        assert kept is not None
        return kept

    def meta(self) -> Any:
        """Read the delivered metadata."""
        return read_meta(self.meta_path.read_bytes())

    @property
    def image_path(self) -> Path:
        """Return where the image lies."""
        return self.images / f"{self.source.manifest.hex}.squashfs"

    @property
    def meta_path(self) -> Path:
        """Return where the metadata lies."""
        return self.images / f"{self.source.manifest.hex}.meta"

    async def age(self, key: str) -> None:
        """Make the last heartbeat of work in flight old, also where no attempt has it."""
        query = "UPDATE images SET document = json_set(document, '$.last_heartbeat', 0.0)"
        await self.store._write_durably(lambda db: db.execute(f"{query} WHERE key = ?", (key,)))

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds."""
        for _ in range(1000):
            if holds():
                return
            await pause(0.01, reactor)
        raise AssertionError("it never came to hold")


@asynccontextmanager
async def running_bench(
    root: Path, kind: type[SqliteStore] = SqliteStore, **changes: Any
) -> AsyncIterator[Bench]:
    """Yield a worker on an empty store; `changes` are of the configuration."""
    store = kind(reactor, root / "store.sqlite")
    threads = Threads(reactor, 2, "test")
    threads.startService()
    await store.startService()
    try:
        yield Bench(store, threads, root, **changes)
    finally:
        await store.stopService()
        await threads.stopService()
