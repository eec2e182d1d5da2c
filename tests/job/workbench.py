"""A worker with a real store and a real directory; registry, cache and builder are fakes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from shiftergw.delivery.local import LocalDirectory
from shiftergw.errors import BlobCorrupt, ConfigurationError, NoSpace, RegistryDenied
from shiftergw.job.pipeline import Pipeline
from shiftergw.job.policy import ImagePolicies, Verifiers
from shiftergw.job.pull import Pull
from shiftergw.job.removal import Removal
from shiftergw.job.targets import Target
from shiftergw.job.worker import Worker
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.docker_references import DockerReference
from shiftergw.model.images import (
    BuiltImage,
    ContentReport,
    Descriptor,
    Digest,
    ImageConfig,
    Opening,
    Platform,
    ResolvedImage,
)
from shiftergw.model.packed_data import PackedData
from shiftergw.model.records import ImageRecord
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest, RegistryLogin
from shiftergw.model.signatures import (
    GpgKeys,
    RejectedSignature,
    SignatureBlob,
    SignatureKind,
    TrustedKeys,
    VerificationResult,
    VerifiedClaim,
)
from shiftergw.oci.meta import read_meta
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobCache, Layer
from shiftergw.sources.user_files.user_source import UserSource
from shiftergw.store.sqlite.store import SqliteStore
from tests.configurations import load_config

INDEX = Digest.of(b"the index")
MANIFEST = Digest.of(b"the manifest")
LAYER = Descriptor(Digest.of(b"layer"), 5)
CONFIG = ImageConfig("amd64", "linux", 0, ("A=1",), ("/bin/sh",))
SYSTEM, SISTER = "mycluster", "sister"
"""Two systems with one image directory."""


class Source:
    """An `ImageSource` of one image, which records its requests."""

    def __init__(self) -> None:
        """Start with a public image."""
        self.requests: list[str] = []
        self.private = False
        self.kind = "dockerv2"
        self.repository = "lib/app"
        self.refuses: Exception | None = None
        self.hangs = False
        self.blobs_are_closed = False
        self.manifest, self.index, self.config = MANIFEST, INDEX, CONFIG

    def _answer(self, request: str, login: RegistryLogin | None) -> None:
        self.requests.append(request)
        if self.refuses is not None:
            raise self.refuses
        if self.private and login is None:
            raise RegistryDenied("The registry refused the image.")

    async def head(
        self, reference: ImageReference, login: RegistryLogin | None, notify: Any
    ) -> Digest:
        """Return the digest of the index."""
        self._answer("head", login)
        return self.index

    async def resolve(
        self,
        reference: ImageReference,
        platform: Platform,
        login: RegistryLogin | None,
        notify: Any,
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return the image."""
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
                self.kind,
            ),
            self.config,
        )

    async def prove(self, image: ResolvedImage, login: RegistryLogin | None, notify: Any) -> None:
        """Accept the login, unless the blobs are closed."""
        self._answer("prove", login)
        if self.blobs_are_closed:
            raise RegistryDenied("The registry refused a layer.")

    async def blob(self, *_: Any) -> None:
        """Fail: the cache already has all blobs."""
        raise AssertionError


class SignatureList:
    """A `SignatureSource` with signatures that tests put into it; it records its requests."""

    def __init__(self) -> None:
        """Start without signatures."""
        self.blobs: list[SignatureBlob] = []
        self.requests: list[tuple[str, frozenset[str]]] = []
        self.refuses: Exception | None = None

    def add(self, reference: str, digest: Digest = MANIFEST, signer: str = "key 1") -> None:
        """Add a signature for which `Believer` returns this claim."""
        claim = json.dumps([signer, reference, str(digest)]).encode()
        self.blobs.append(SignatureBlob("simple", payload=claim))

    async def signatures(
        self,
        image: ResolvedImage,
        reference: DockerReference,
        kinds: frozenset[SignatureKind],
        login: RegistryLogin | None,
        notify: Any,
    ) -> Sequence[SignatureBlob]:
        """Return the signatures, or raise `refuses`."""
        self.requests.append((str(reference), kinds))
        if self.refuses is not None:
            raise self.refuses
        return self.blobs


class Believer:
    """A `SignatureVerifier` that returns what the payload of a signature claims."""

    async def verify(self, signature: SignatureBlob, keys: TrustedKeys) -> VerificationResult:
        """Return the claim, or reject a signature by `unknown`; raise for the key `broken`."""
        if isinstance(keys, GpgKeys) and keys.keyrings == (b"broken",):
            raise ConfigurationError("A keyring of the policy is unusable: it is broken.")
        claim = VerifiedClaim(*json.loads(signature.payload))
        if claim.identity == "unknown":
            return RejectedSignature("it is signed by an unknown key", "unknown")
        return claim


class Cache:
    """A `BlobCache` that contains every blob, and records its calls."""

    pack_directory = Path("/nowhere")

    def __init__(self) -> None:
        """Start without calls."""
        self.downloads: list[Digest] = []
        self.discards: list[Digest] = []
        self.abandoned_blobs: list[Digest] = []
        self.full = False

    @asynccontextmanager
    async def get(
        self,
        blob: Descriptor,
        download: Any,
        report: Callable[[int], None],
        on_begin: Callable[[Opening], None],
    ) -> AsyncIterator[Path]:
        """Yield the path of a blob."""
        self.downloads.append(blob.digest)
        report(blob.size)
        yield Path("/nowhere")

    async def check_space(self, blobs: Sequence[Descriptor], *, with_packs: bool = False) -> None:
        """Raise `NoSpace` if the cache is full."""
        if self.full:
            raise NoSpace("The gateway's cache is full.")

    async def discard(self, digest: Digest) -> bool:
        """Record the call; no blob is damaged."""
        self.discards.append(digest)
        return False

    async def give_up(self, digest: Digest) -> None:
        """Record the call."""
        self.abandoned_blobs.append(digest)


class Builder:
    """An `ImageBuilder` that writes a small file with ranges of packs as tests set them."""

    def __init__(self, directory: Path) -> None:
        """Build in `directory`."""
        self.directory = directory
        self.builds = 0
        self.fails: Exception | None = None
        self.on_build: Callable[[], Awaitable[object]] | None = None
        self.content = b"squashfs"
        self.data = PackedData()

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
        pack_directory: Path,
    ) -> AsyncIterator[BuiltImage]:
        """Write the file."""
        for layer in layers:
            await layer.wait_for_file()
        on_stage("EXAMINATION")
        if self.fails is not None:
            raise self.fails
        on_stage("CONVERSION")
        self.builds += 1
        if self.on_build is not None:
            await self.on_build()
        path = self.directory / f"{image_id}.squashfs"
        # Renamed, as by the real builder: another delivery may be reading the file.
        part = path.with_suffix(f".{self.builds}")
        part.write_bytes(self.content)
        part.replace(path)
        digest, report = (
            hashlib.sha256(self.content).hexdigest(),
            ContentReport(entries=3, setuid=1),
        )
        yield BuiltImage(path, len(self.content), digest, report, data=self.data)

    async def find_packs(self, *_: Any) -> frozenset[Digest]:
        """Find no pack."""
        return frozenset()

    async def check_space(self, size: int) -> None:
        """Accept every size."""

    async def sweep(self, before: float) -> int:
        """Keep everything."""
        return 0


class Files:
    """Opens the file of a record as `source`; `openings` are the records, `closings` counts."""

    def __init__(self) -> None:
        """Start without a file: a pull of one fails."""
        self.source: UserSource | None = None
        self.openings: list[ImageRecord] = []
        self.closings = 0

    @asynccontextmanager
    async def open(self, record: ImageRecord, begin: Any, report: Any) -> AsyncIterator[UserSource]:
        """Yield the source of the file."""
        self.openings.append(record)
        begin("Reading the image of the file")
        if self.source is None:
            raise BlobCorrupt("The upload does not have its digest.")
        try:
            yield self.source
        finally:
            self.closings += 1


class Bench:
    """A worker and all its parts."""

    def __init__(
        self,
        store: SqliteStore,
        threads: Threads,
        root: Path,
        previous: Bench | None = None,
        **changes: Any,
    ) -> None:
        """Wire the parts; `changes` are keys of the configuration.

        Keeps the registry and the images of a `previous` bench.
        """
        self.store, self.threads = store, threads
        self.source: Source = previous.source if previous else Source()
        self.signatures = SignatureList()
        self.verifiers: Verifiers = dict.fromkeys(("simple", "cosign", "bundle"), Believer())
        self.cache, self.builder = Cache(), Builder(root / "expand")
        self.builder.directory.mkdir()
        self.images: Path = previous.images if previous else root / "images"
        self.images.mkdir(exist_ok=previous is not None)
        self.seal = Seal(b"k" * 32)
        directory = LocalDirectory(self.images, threads)

        def cache_of(_: ResolvedImage) -> BlobCache:
            return self.cache

        systems = SYSTEM, SISTER
        sister = {"accesstype": "local", "local": {"imageDir": "/images"}}
        document = {f"Platforms/{SISTER}": sister, "ImageExpirationTimeout": "1:00:00:00"}
        config = load_config(document | changes).config
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
        policies = ImagePolicies(config, self.signatures, self.verifiers, threads, reactor)
        self.files = Files()
        pull = Pull(config, store, pipeline, policies, targets, self.seal, reactor, self.files.open)
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
        itype = members.pop("itype", "docker")
        request = PullRequest(system, itype, ImageReference.parse(name), uid, **members)
        if login is not None:
            request = replace(request, sealed=self.seal.close(login, request.claim))
        record, _ = await self.store.claim(request, 1000.0)
        return record

    async def pull(self, *arguments: Any, **keywords: Any) -> ImageRecord:
        """Claim a pull, do its work, and return the resulting record."""
        record = await self.claim(*arguments, **keywords)
        await self.worker.run(record.key)
        stored_record = await self.store.get(record.key)
        if stored_record is None:  # merged into the READY record
            tags = [record.pulltag or ""]
            stored_record = await self.store.find(record.system, record.itype, tags)
        assert stored_record is not None
        return stored_record

    def meta(self) -> Any:
        """Read the delivered metadata."""
        return read_meta(self.meta_path.read_bytes())

    @property
    def image_path(self) -> Path:
        """Return the path of the delivered image."""
        return self.images / f"{self.source.manifest.hex}.squashfs"

    @property
    def meta_path(self) -> Path:
        """Return the path of the delivered metadata."""
        return self.images / f"{self.source.manifest.hex}.meta"

    async def age(self, key: str) -> None:
        """Make the last heartbeat of a record in flight old, with or without an attempt."""
        query = "UPDATE images SET document = json_set(document, '$.last_heartbeat', 0.0)"
        await self.store._write_durably(lambda db: db.execute(f"{query} WHERE key = ?", (key,)))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition is true."""
        for _ in range(1000):
            if condition():
                return
            await pause(0.01, reactor)
        raise AssertionError("the condition never became true")


@asynccontextmanager
async def running_bench(
    root: Path, kind: type[SqliteStore] = SqliteStore, **changes: Any
) -> AsyncIterator[Bench]:
    """Yield a worker on an empty store; `changes` are keys of the configuration."""
    store = kind(reactor, root / "store.sqlite")
    threads = Threads(reactor, 2, "test")
    threads.startService()
    await store.startService()
    try:
        yield Bench(store, threads, root, **changes)
    finally:
        await store.stopService()
        await threads.stopService()
