"""The rules of one job, on a real store and directory; source and builder are in memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.delivery.local import LocalDirectory
from shiftergw.errors import (
    BlobCorrupt,
    LayerInvalid,
    NoSpace,
    RegistryDenied,
    RegistryUnavailable,
)
from shiftergw.image import (
    BuildLimits,
    BuiltImage,
    ContentReport,
    Descriptor,
    Digest,
    ImageConfig,
    LayerFile,
    Platform,
    ResolvedImage,
    SquashOptions,
)
from shiftergw.model import ImageRecord, ImageReference, Login, PullRequest, Ready
from shiftergw.oci.meta import read_meta
from shiftergw.pipeline import Pipeline
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobCache
from shiftergw.states import State
from shiftergw.store.sqlite import SqliteStore
from shiftergw.worker import MAX_ATTEMPTS, Target, Worker
from tests.configurations import loaded

INDEX = Digest.of(b"the index")
MANIFEST = Digest.of(b"the manifest")
LAYER = Descriptor(Digest.of(b"layer"), 5)
CONFIG = ImageConfig("amd64", "linux", 0, ("A=1",), ("/bin/sh",))
SYSTEM = "mycluster"


class Source:
    """An `ImageSource` of one image, which says what it was asked."""

    def __init__(self) -> None:
        """Hold a public image."""
        self.asked: list[str] = []
        self.private = False
        self.repository = "lib/app"
        self.refuses: Exception | None = None
        self.hangs = False

    def _answer(self, what: str, login: Login | None) -> None:
        self.asked.append(what)
        if self.refuses is not None:
            raise self.refuses
        if self.private and login is None:
            raise RegistryDenied("The registry refused the image.")

    async def head(self, reference: ImageReference, login: Login | None, say: Any) -> Digest:
        """Answer the index's digest."""
        self._answer("head", login)
        return INDEX

    async def resolve(
        self, reference: ImageReference, platform: Platform, login: Login | None, say: Any
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Answer the image."""
        self._answer("resolve", login)
        if self.hangs:
            await Deferred[None]()
        return (
            ResolvedImage(
                MANIFEST, INDEX, LAYER, (LAYER,), "registry", self.repository, self.private
            ),
            CONFIG,
        )

    async def blob(self, *_: Any) -> None:
        """Hold no blobs: the cache below has them."""
        raise AssertionError


class Cache:
    """A `BlobCache` that holds everything."""

    def __init__(self) -> None:
        """Have given out nothing yet."""
        self.given: list[Digest] = []
        self.discarded: list[Digest] = []
        self.full = False

    async def get(self, blob: Descriptor, download: Any, report: Callable[[int], None]) -> Path:
        """Give out a blob."""
        self.given.append(blob.digest)
        report(blob.size)
        return Path("/nowhere")

    async def check_space(self, blobs: Sequence[Descriptor]) -> None:
        """Have room, or not."""
        if self.full:
            raise NoSpace("The gateway's cache is full.")

    async def discard(self, digest: Digest) -> None:
        """Note what is forgotten."""
        self.discarded.append(digest)

    async def give_up(self, digest: Digest) -> None:
        """Hold no halves."""


class Builder:
    """An `ImageBuilder` that writes a small file."""

    def __init__(self, directory: Path) -> None:
        """Build in `directory`."""
        self.directory = directory
        self.built = 0
        self.fails: Exception | None = None

    @asynccontextmanager
    async def build(
        self,
        image_id: str,
        created: int,
        layers: Sequence[LayerFile],
        options: SquashOptions,
        limits: BuildLimits,
        report: Any,
        entered: Callable[[str], None],
    ) -> AsyncIterator[BuiltImage]:
        """Write the file."""
        entered("EXAMINATION")
        if self.fails is not None:
            raise self.fails
        entered("CONVERSION")
        self.built += 1
        path = self.directory / f"{image_id}.squashfs"
        path.write_bytes(b"squashfs")
        digest = hashlib.sha256(b"squashfs").hexdigest()
        yield BuiltImage(path, 8, digest, ContentReport(entries=3, setuid=1))

    async def check_space(self, size: int) -> None:
        """Have room."""

    async def sweep(self, before: float) -> int:
        """Keep everything."""
        return 0


class Bench:
    """A worker and everything around it."""

    def __init__(self, store: SqliteStore, threads: Threads, root: Path) -> None:
        """Wire the parts."""
        self.store = store
        self.source, self.cache, self.builder = Source(), Cache(), Builder(root / "expand")
        self.builder.directory.mkdir()
        self.images = root / "images"
        self.images.mkdir()
        self.seal = Seal(b"k" * 32)
        directory = LocalDirectory(self.images, threads)

        def cache_of(_: ResolvedImage) -> BlobCache:
            return self.cache

        self.worker = Worker(
            loaded({"HeartbeatLimit": 60, "ImageExpirationTimeout": "1:00:00:00"}).config,
            store,
            Pipeline(self.source, cache_of, self.builder, BuildLimits()),
            {SYSTEM: Target("images", directory, Platform(), SquashOptions())},
            self.seal,
            reactor,
            "here:1",
        )

    async def claim(
        self, name: str = "lib/app:1", uid: int = 2001, login: str | None = None
    ) -> ImageRecord:
        """Put a pull into the store."""
        request = PullRequest(SYSTEM, "docker", ImageReference.parse(name), uid)
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
            kept = await self.store.find(SYSTEM, "docker", [record.pulltag or ""])
        assert kept is not None
        return kept

    def meta(self) -> Any:
        """Read the delivered metadata."""
        return read_meta((self.images / f"{MANIFEST.hex}.meta").read_bytes())


@pytest_twisted.async_yield_fixture()
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Return a worker on an empty store."""
    store = SqliteStore(reactor, tmp_path / "store.sqlite")
    threads = Threads(reactor, 2, "test")
    threads.startService()
    await store.startService()
    yield Bench(store, threads, tmp_path)
    await store.stopService()
    await threads.stopService()


@pytest_twisted.ensureDeferred
async def test_a_pull_delivers_and_records(bench: Bench) -> None:
    """Image and metadata lie there, and the record says all that the original's did, and more."""
    record = await bench.pull()
    assert (record.status, record.id, record.tags) == (State.READY, MANIFEST.hex, ("lib/app:1",))
    assert (bench.images / f"{MANIFEST.hex}.squashfs").read_bytes() == b"squashfs"
    assert bench.meta().env == ("A=1",)
    assert (record.format, record.arch, record.os, record.remotetype) == (
        "squashfs", "amd64", "linux", "dockerv2",
    )  # fmt: skip
    assert (record.private, record.user_acl, record.size) == (False, (), 8)
    assert record.origin is not None
    assert record.origin.source_digest == str(INDEX)
    assert record.report is not None
    assert record.report["setuid"] == 1
    assert record.expiration is not None
    assert not record.in_flight


@pytest_twisted.ensureDeferred
async def test_an_unchanged_tag_costs_one_request(bench: Bench) -> None:
    """A re-pull of what is there asks for the tag's digest, and for nothing else."""
    await bench.pull()
    bench.source.asked.clear()
    written = (bench.images / f"{MANIFEST.hex}.meta").stat().st_ino
    record = await bench.pull()
    assert record.status is State.READY
    assert bench.source.asked == ["head"]
    assert bench.builder.built == 1
    assert (bench.images / f"{MANIFEST.hex}.meta").stat().st_ino == written


@pytest_twisted.ensureDeferred
async def test_a_lost_file_is_made_again(bench: Bench) -> None:
    """A READY record whose file is gone, or has another size, is no reason to do nothing."""
    await bench.pull()
    (bench.images / f"{MANIFEST.hex}.squashfs").unlink()
    await bench.pull()
    assert bench.builder.built == 2
    (bench.images / f"{MANIFEST.hex}.squashfs").write_bytes(b"short")
    await bench.pull()
    assert bench.builder.built == 3


@pytest_twisted.ensureDeferred
async def test_another_tag_of_a_delivered_image_is_added(bench: Bench) -> None:
    """The second tag joins the record of the first; nothing is fetched or built."""
    await bench.pull("lib/app:1")
    record = await bench.pull("lib/app:2")
    assert sorted(record.tags) == ["lib/app:1", "lib/app:2"]
    assert (bench.builder.built, len(bench.cache.given)) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_a_private_image_belongs_to_its_puller(bench: Bench) -> None:
    """In the record and in the metadata alike, from the first moment."""
    bench.source.private = True
    record = await bench.pull(login="alice:secret")
    assert (record.private, record.user_acl) == (True, (2001,))
    assert bench.meta().user_acl == (2001,)


@pytest_twisted.ensureDeferred
async def test_a_second_user_with_access_is_added(bench: Bench) -> None:
    """He is added to the record and the metadata, nobody is removed, nothing is built again."""
    bench.source.private = True
    await bench.pull(login="alice:secret")
    record = await bench.pull(uid=2002, login="bob:other")
    assert record.user_acl == (2001, 2002)
    assert bench.meta().user_acl == (2001, 2002)
    assert bench.builder.built == 1


@pytest_twisted.ensureDeferred
async def test_a_user_without_access_is_refused_alone(bench: Bench) -> None:
    """His failure is his own; the private image stays as it was."""
    bench.source.private = True
    await bench.pull(login="alice:secret")
    record = await bench.pull(uid=2002)
    assert (record.status, record.own_failure) == (State.FAILURE, True)
    assert record.cause == "The registry refused the image."
    found = await bench.store.find(SYSTEM, "docker", ["lib/app:1"])
    assert found is not None
    assert found.user_acl == (2001,)


@pytest_twisted.ensureDeferred
async def test_a_copied_manifest_is_no_way_to_a_private_image(bench: Bench) -> None:
    """The same manifest at another place is believed only once every blob came from there."""
    bench.source.private = True
    await bench.pull("lib/app:1", login="alice:secret")
    bench.cache.given.clear()
    bench.source.repository = "bob/copy"
    await bench.pull("bob/copy:1", uid=2002, login="bob:other")
    assert bench.cache.given == [LAYER.digest]


@pytest_twisted.ensureDeferred
async def test_a_public_image_stays_public(bench: Bench) -> None:
    """That it also lies in somebody's private repository takes it from nobody."""
    await bench.pull("lib/app:1")
    bench.source.private = True
    bench.source.repository = "alice/copy"
    record = await bench.pull("alice/copy:1", login="alice:secret")
    assert (record.private, record.user_acl) == (False, ())
    assert bench.meta().user_acl is None


@pytest_twisted.ensureDeferred
async def test_a_record_of_the_original_counts_as_current(bench: Bench) -> None:
    """The original stored the digest of the index as id, and nothing about its origin."""
    first = await bench.pull()
    for name in ("squashfs", "meta"):
        path = bench.images / f"{MANIFEST.hex}.{name}"
        path.rename(bench.images / f"{INDEX.hex}.{name}")
    await bench.store.remove(first.key)
    old = await bench.claim()
    begun = await bench.store.begin(old.key, "here:1", 1000.0, 60)
    assert begun is not None
    await bench.store.finish(old.key, begun.attempt, Ready(INDEX.hex, {"private": False}), 1000.0)
    bench.source.asked.clear()
    record = await bench.pull()
    assert record.id == INDEX.hex
    assert bench.source.asked == ["head"]


@pytest_twisted.ensureDeferred
async def test_errors_become_reasons(bench: Bench) -> None:
    """Cause, remedy and whether a retry helps; only what concerns a login is a user's own."""
    bench.source.refuses = RegistryUnavailable("The registry is away.", remedy="Wait.")
    record = await bench.pull()
    assert (record.status, record.cause, record.remedy, record.retryable, record.own_failure) == (
        State.FAILURE, "The registry is away.", "Wait.", True, False,
    )  # fmt: skip
    assert record.sealed is None
    bench.source.refuses = None
    bench.builder.fails = RuntimeError("a surprise with /secret/path")
    record = await bench.pull()
    assert record.status is State.FAILURE
    assert "secret" not in f"{record.cause} {record.remedy}"
    assert not bench.images.joinpath(f"{MANIFEST.hex}.squashfs").exists()


@pytest_twisted.ensureDeferred
async def test_what_cannot_fit_is_not_begun(bench: Bench) -> None:
    """A disk of the gateway, or the system's, that is too small is named before any download."""
    bench.cache.full = True
    record = await bench.pull()
    assert (record.status, record.cause) == (State.FAILURE, "The gateway's cache is full.")
    assert bench.cache.given == []


@pytest_twisted.ensureDeferred
async def test_damaged_layers_leave_the_cache(bench: Bench) -> None:
    """A layer that proves damaged is fetched anew by the next pull."""
    for error in (BlobCorrupt("bad"), LayerInvalid("worse")):
        bench.builder.fails = error
        await bench.pull()
    assert bench.cache.discarded == [LAYER.digest, LAYER.digest]


@pytest_twisted.ensureDeferred
async def test_an_image_that_kills_workers_is_given_up(bench: Bench) -> None:
    """After five dead workers the record ends as a failure, instead of killing a sixth."""
    record = await bench.claim()
    for n in range(MAX_ATTEMPTS):
        assert await bench.store.begin(record.key, f"dead:{n}", 1000.0 + 100 * n, 60) is not None
    await bench.worker.run(record.key)
    kept = await bench.store.get(record.key)
    assert kept is not None
    assert kept.status is State.FAILURE
    assert "workers died" in (kept.cause or "")


@pytest_twisted.ensureDeferred
async def test_work_that_somebody_else_does_is_left_alone(bench: Bench) -> None:
    """A record with a living heartbeat, or without work, is not touched."""
    record = await bench.claim()
    now = reactor.seconds()
    assert await bench.store.begin(record.key, "other:1", now, 60) is not None
    await bench.worker.run(record.key)
    await bench.worker.run("0" * 24)
    assert bench.source.asked == []


@pytest_twisted.ensureDeferred
async def test_a_superseded_attempt_stops_without_a_word(bench: Bench) -> None:
    """When a newer attempt has taken over, the old one's work is cancelled and writes nothing."""
    bench.source.hangs = True
    record = await bench.claim()
    running = Deferred.fromCoroutine(bench.worker.run(record.key))
    while bench.source.asked == []:
        await pause(0.05, reactor)
    later = reactor.seconds() + 1000
    newer = await bench.store.begin(record.key, "other:1", later, 60)
    assert newer is not None
    bench.source.hangs = False
    # The next news of the old attempt is refused; it has none of its own, so a heartbeat is due.
    running.addTimeout(40, reactor)
    await running
    kept = await bench.store.get(record.key)
    assert kept is not None
    assert (kept.attempt, kept.runner) == (newer.attempt, "other:1")


@pytest_twisted.ensureDeferred
async def test_a_cancelled_worker_leaves_the_work_to_another(bench: Bench) -> None:
    """Stopping a worker fails nothing: the record stays in flight."""
    bench.source.hangs = True
    record = await bench.claim()
    running = Deferred.fromCoroutine(bench.worker.run(record.key))
    while bench.source.asked == []:
        await pause(0.05, reactor)
    running.cancel()
    try:
        await running
    except CancelledError:
        pass
    else:
        raise AssertionError("the cancellation was swallowed")
    kept = await bench.store.get(record.key)
    assert kept is not None
    assert kept.in_flight
