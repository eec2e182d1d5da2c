"""A pipeline with the real cache and builder, whose source sends layers when a test wants."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from twisted.internet import reactor

from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.job.pipeline import Pipeline
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.images import BuiltImage, Descriptor, Digest, ImageConfig, ResolvedImage
from shiftergw.model.records import Progress
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import BlobSink
from shiftergw.states import State, check_step
from tests.build.site import ABOVE, TREE, Site
from tests.images import compress, tar_of

OPTIONS = SquashOptions(level=1, memory="64M", builder="whole")
PULLING = "Pulling layers"
CHECKING = "Checking the converted image"
VERIFYING = "Checking the converted image that is there"
real: Any = reactor

TARS = tar_of(TREE), tar_of(ABOVE)
LOWER, UPPER = compress(TARS[0]), compress(TARS[1], "zstd")
PROVEN = ImageConfig(diff_ids=tuple(map(Digest.of, TARS)))

Send = Callable[[int, BlobSink], Awaitable[None]]


class RecordingWatcher:
    """A `Watcher` that records stages, progress and messages."""

    def __init__(self) -> None:
        """Start with a pending image."""
        self.stages = [(State.PENDING, "")]
        self.progress: list[Progress] = []
        self.reading: list[Progress] = []
        self.notices: list[str] = []

    @property
    def messages(self) -> list[str]:
        """Return the messages of the stages."""
        return [message for _, message in self.stages[1:]]

    def enter_stage(self, state: State, message: str) -> None:
        """Record the stage; fail if no step leads there from the stage before."""
        check_step(self.stages[-1][0], state)
        self.stages.append((state, message))

    def report(self, progress: Progress) -> None:
        """Record the progress."""
        self.progress.append(progress)

    def report_reading(self, progress: Progress) -> None:
        """Record how far the layers are read during the download."""
        self.reading.append(progress)

    def notify(self, message: str) -> None:
        """Record the message."""
        self.notices.append(message)


class PipelineBench:
    """A pipeline of real parts; its source sends each layer when the test wants."""

    def __init__(self, directory: Path, threads: Threads, site: Site | None = None) -> None:
        """Keep everything below `directory`, or with the builder of another site."""
        self.threads = threads
        self.site = site or Site(directory, threads)
        self.cache_place = directory / "cache" / "sha256"
        self.cache = BlobFiles(directory / "cache", threads, real)
        self.sends: dict[Digest, Send] = {}
        self.answer: ResolvedImage | None = None
        self.config = ImageConfig()
        self.options = OPTIONS
        self.pipeline = Pipeline(
            cast("Any", self), lambda _: self.cache, self.site.builder, BuildLimits(), real
        )

    async def blob(
        self, _image: Any, blob: Descriptor, _login: Any, _notify: Any, offset: int, sink: BlobSink
    ) -> None:
        """Send the blob."""
        await self.sends[blob.digest](offset, sink)

    async def resolve(self, *_: Any) -> tuple[ResolvedImage | None, ImageConfig]:
        """Return the image."""
        return self.answer, ImageConfig()

    def image(self, *blobs: bytes) -> ResolvedImage:
        """Return an image of these layers, which are sent at once unless `sends` says otherwise."""
        layers = tuple(Descriptor(Digest.of(blob), len(blob)) for blob in blobs)
        for layer, blob in zip(layers, blobs, strict=True):
            self.sends.setdefault(layer.digest, sending(blob))
        identity = Digest.of("".join(str(layer.digest) for layer in layers).encode())
        return ResolvedImage(identity, identity, layers[0], layers, "registry", "lib/app", False)

    async def convert(self, image: ResolvedImage, watcher: RecordingWatcher | None = None) -> int:
        """Convert an image; return how many entries it has."""
        return (await self.build(image, watcher or RecordingWatcher())).report.entries

    async def build(self, image: ResolvedImage, watcher: RecordingWatcher) -> BuiltImage:
        """Convert an image, and end its use at once."""
        converting = self.pipeline.convert(image, self.config, None, self.options, watcher)
        async with converting as squashfs:
            return squashfs

    def cached_files(self) -> list[str]:
        """Return the names of the files in the cache."""
        place = self.cache_place
        return sorted(path.name for path in place.iterdir()) if place.exists() else []

    def reader_positions(self) -> list[int]:
        """Return the positions of all readers of partial blobs."""
        positions = []
        for path in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                if str(path.readlink()).endswith(".partial"):
                    lines = Path("/proc/self/fdinfo", path.name).read_text().splitlines()
                    info = dict(line.split() for line in lines)
                    if int(info["flags:"], 8) & os.O_ACCMODE == os.O_RDONLY:
                        positions.append(int(info["pos:"]))
        return positions


def sending(blob: bytes, gate: SharedResult[None] | None = None) -> Send:
    """Return a function that sends a blob, its second half after the gate is open."""

    async def send(offset: int, sink: BlobSink) -> None:
        sink.begin(offset)
        half = len(blob) // 2
        if offset < half:
            sink.write(blob[offset:half])
        if gate is not None:
            await gate.wait()
        sink.write(blob[max(offset, half) :])

    return send
