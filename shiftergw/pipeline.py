"""From a reference to a checked squashfs file: resolve, fetch, build.

The service's worker and the stand-alone `convert` command run the same pipeline; what differs is
who watches.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Protocol

from twisted.internet.defer import CancelledError

from shiftergw.errors import BlobCorrupt, LayerInvalid
from shiftergw.image import (
    BuildLimits,
    BuiltImage,
    Descriptor,
    ImageConfig,
    LayerFile,
    Platform,
    ResolvedImage,
    SquashOptions,
)
from shiftergw.model import ImageReference, Login, Progress
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.ports import BlobCache, ImageBuilder, ImageSource
from shiftergw.states import State

CacheOf = Callable[[ResolvedImage], BlobCache]
"""The cache for an image's blobs: private content is kept apart, by where it came from."""


_BUILDING = {
    "WAITING": (State.EXAMINATION, "Waiting for the same conversion for another pull"),
    "EXAMINATION": (State.EXAMINATION, "Examining image"),
    "CONVERSION": (State.CONVERSION, "Converting image"),
}
"""What a user is told while an image is built."""


class Watcher(Protocol):
    """Whoever follows one image through the pipeline; its methods are cheap and never raise."""

    def entered(self, state: State, message: str) -> None:
        """Hear that a stage begins."""
        ...

    def report(self, progress: Progress) -> None:
        """Hear how far the stage is."""
        ...

    def say(self, message: str) -> None:
        """Hear what the stage waits for, in one line for the user."""
        ...


class Pipeline:
    """Resolves, fetches and builds one image at a time."""

    def __init__(
        self, source: ImageSource, cache_of: CacheOf, builder: ImageBuilder, limits: BuildLimits
    ) -> None:
        """Keep the parts."""
        self._source = source
        self._cache_of = cache_of
        self._builder = builder
        self._limits = limits

    async def head(
        self, reference: ImageReference, login: Login | None, watcher: Watcher
    ) -> str | None:
        """Return the digest that the reference answers now, or None if the source does not say."""
        digest = await self._source.head(reference, login, watcher.say)
        return None if digest is None else str(digest)

    async def resolve(
        self,
        reference: ImageReference,
        platform: Platform,
        login: Login | None,
        watcher: Watcher,
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return what the reference means for this platform."""
        watcher.entered(State.PULLING, "Getting manifest")
        return await self._source.resolve(reference, platform, login, watcher.say)

    async def prove(self, image: ResolvedImage, login: Login | None, watcher: Watcher) -> None:
        """Return if this login may read every blob of a resolved image; raise the refusal."""
        watcher.entered(State.PULLING, "Checking your access to the image")
        await self._source.prove(image, login, watcher.say)

    async def check_space(self, image: ResolvedImage) -> None:
        """Raise `NoSpace` if the image surely does not fit on this machine's disks."""
        await self._cache_of(image).check_space(image.layers)
        await self._builder.check_space(image.download_size)

    @asynccontextmanager
    async def fetch(
        self, image: ResolvedImage, config: ImageConfig, login: Login | None, watcher: Watcher
    ) -> AsyncIterator[Sequence[LayerFile]]:
        """Bring all layers into the cache, each distinct blob once; give them in order.

        They stay there while the context lives. A pull that fails, after all tries, leaves no
        halves of blobs behind.
        """
        watcher.entered(State.PULLING, "Pulling layers")
        blobs = {layer.digest: layer for layer in image.layers}
        done = dict.fromkeys(blobs, 0)
        cache = self._cache_of(image)

        def report(blob: Descriptor, size: int) -> None:
            done[blob.digest] = size
            watcher.report(Progress("fetch", sum(done.values()), image.download_size))

        async with AsyncExitStack() as stack:
            try:
                paths = await gather_or_cancel(
                    stack.enter_async_context(
                        cache.get(
                            blob,
                            partial(self._source.blob, image, blob, login, watcher.say),
                            partial(report, blob),
                        )
                    )
                    for blob in blobs.values()
                )
            except CancelledError:
                raise  # an interrupted pull is resumed from what is there
            except Exception:
                for digest in blobs:
                    await cache.give_up(digest)
                raise
            files = dict(zip(blobs, paths, strict=True))
            diff_ids = config.diff_ids or (None,) * len(image.layers)
            yield [
                LayerFile(files[layer.digest], diff_id)
                for layer, diff_id in zip(image.layers, diff_ids, strict=True)
            ]

    @asynccontextmanager
    async def build(
        self,
        image: ResolvedImage,
        config: ImageConfig,
        layers: Sequence[LayerFile],
        options: SquashOptions,
        watcher: Watcher,
    ) -> AsyncIterator[BuiltImage]:
        """Build the squashfs file; it stays while the context lives.

        A layer that was damaged in the cache is dropped there: the next pull fetches it.
        """

        def entered(stage: str) -> None:
            watcher.entered(*_BUILDING[stage])

        building = self._builder.build(
            image.id, config.created, layers, options, self._limits, watcher.report, entered
        )
        async with AsyncExitStack() as stack:
            try:
                built = await stack.enter_async_context(building)
            except (BlobCorrupt, LayerInvalid):
                cache = self._cache_of(image)
                for digest in {layer.digest for layer in image.layers}:
                    await cache.discard(digest)
                raise
            yield built
