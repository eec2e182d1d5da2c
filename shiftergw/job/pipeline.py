"""From a reference to a verified squashfs file: resolve, fetch, build.

The service's worker and the stand-alone `convert` command run the same pipeline, each with a
`Watcher` of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from shiftergw.errors import (
    BlobCorrupt,
    ImageTooLarge,
    LayerInvalid,
    ManifestInvalid,
    NoSpace,
    stage_timeout,
)
from shiftergw.image import (
    BuildLimits,
    BuiltImage,
    ImageConfig,
    Platform,
    ResolvedImage,
    SquashOptions,
)
from shiftergw.job.layers import LayerDownloads
from shiftergw.job.watcher import BuildWatcher, ForwardWatcher, Watcher
from shiftergw.model import ImageReference, RegistryLogin
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.timing import within
from shiftergw.ports import BlobCache, ImageBuilder, ImageSource
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

_log = Logger()

CacheOf = Callable[[ResolvedImage], BlobCache]
"""Returns the cache for an image's blobs; each private repository has its own."""


_REFUSALS = (ImageTooLarge, LayerInvalid, ManifestInvalid, NoSpace)
"""Errors after which no pull of the image can succeed: its partial blobs are of no use."""


class _CacheDamagedError(Exception):
    """A conversion failed because a layer was damaged in the cache, which dropped the layer."""


class Pipeline:
    """Resolves, fetches and builds one image at a time."""

    def __init__(
        self,
        source: ImageSource,
        cache_of: CacheOf,
        builder: ImageBuilder,
        limits: BuildLimits,
        clock: IReactorTime,
    ) -> None:
        """Build within `limits`."""
        self._source = source
        self._cache_of = cache_of
        self._builder = builder
        self._limits = limits
        self._clock = clock

    def with_source(self, source: ImageSource) -> Pipeline:
        """Return a pipeline that reads images from `source`, and is the same otherwise."""
        return Pipeline(source, self._cache_of, self._builder, self._limits, self._clock)

    async def head(
        self, reference: ImageReference, login: RegistryLogin | None, watcher: Watcher
    ) -> str | None:
        """Return the digest that the reference means now, or None if the source does not tell."""
        digest = await self._source.head(reference, login, watcher.notify)
        return None if digest is None else str(digest)

    async def resolve(
        self,
        reference: ImageReference,
        platform: Platform,
        login: RegistryLogin | None,
        watcher: Watcher,
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return what the reference means for this platform, and the image's configuration.

        Raises `ImageTooLarge` for too many layers, before any of them is downloaded.
        """
        watcher.enter_stage(State.PULLING, "Getting manifest")
        image, config = await self._source.resolve(reference, platform, login, watcher.notify)
        if len(image.layers) > self._limits.layers:
            raise ImageTooLarge.for_limit(
                f"The image has {len(image.layers)} layers, and the gateway takes at most"
                f" {self._limits.layers}.",
                "MaxLayers",
            )
        return image, config

    async def prove(
        self, image: ResolvedImage, login: RegistryLogin | None, watcher: Watcher
    ) -> None:
        """Raise the source's refusal unless this login may read every blob of the image."""
        watcher.enter_stage(State.PULLING, "Checking your access to the image")
        await self._source.prove(image, login, watcher.notify)

    async def check_space(self, image: ResolvedImage) -> None:
        """Raise `NoSpace` if the image surely does not fit on this machine's disks."""
        await self._cache_of(image).check_space(image.layers)
        await self._builder.check_space(image.download_size)

    @asynccontextmanager
    async def convert(
        self,
        image: ResolvedImage,
        config: ImageConfig,
        login: RegistryLogin | None,
        options: SquashOptions,
        watcher: Watcher,
    ) -> AsyncIterator[BuiltImage]:
        """Fetch all layers, build the squashfs file, and yield it; it stays until the block ends.

        A layer is examined while it arrives, but the file is yielded only after all layers have
        arrived: a user who cannot fetch them must not get a file that another user's pull has made
        of them. A layer that was damaged in the cache is dropped there and fetched once more.
        Partial blobs of a failed pull stay in the cache for the next pull of them, unless the image
        itself was refused.
        """
        forward = ForwardWatcher(watcher)
        async with AsyncExitStack() as stack:
            try:
                squashfs = await self._convert(stack, image, config, login, options, forward)
            except _CacheDamagedError as damage:
                _log.warn(
                    "{image}: a layer was damaged in the cache, and is fetched again: {cause}",
                    image=image.id,
                    cause=damage.__cause__,
                )
                try:
                    squashfs = await self._convert(stack, image, config, login, options, forward)
                except _CacheDamagedError:
                    raise BlobCorrupt(
                        "The gateway's cache damages layers.",
                        remedy="Tell the site's support: a disk or the memory may be failing.",
                    ) from damage
            yield squashfs

    async def _convert(
        self,
        stack: AsyncExitStack,
        image: ResolvedImage,
        config: ImageConfig,
        login: RegistryLogin | None,
        options: SquashOptions,
        watcher: Watcher,
    ) -> BuiltImage:
        """Fetch all layers and build the file, which stays until `stack` ends.

        Raises `_CacheDamagedError` if the build failed and a damaged layer was dropped from the
        cache.
        """
        downloads = LayerDownloads(self._source, self._cache_of(image), image, config, login)
        stages = BuildWatcher(watcher)
        building = self._builder.build(
            image.id,
            config.created,
            downloads.layers,
            options,
            self._limits,
            stages.report,
            stages.enter_stage,
        )
        fetch_seconds = 0.0
        may_be_damaged = False
        async with AsyncExitStack() as cached_layers:  # they stay until the file is built

            async def fetch() -> None:
                nonlocal fetch_seconds
                start, limit = self._clock.seconds(), self._limits.stages.fetch
                timeout_error = partial(stage_timeout, "Fetching", limit, "fetch")
                await within(
                    limit, self._clock, downloads.fetch(watcher, cached_layers), timeout_error
                )
                fetch_seconds = self._clock.seconds() - start
                stages.end_fetch()

            async def build() -> BuiltImage:
                nonlocal may_be_damaged
                try:
                    return await stack.enter_async_context(building)
                except (BlobCorrupt, LayerInvalid, ImageTooLarge):
                    may_be_damaged = True
                    raise

            try:
                _, squashfs = await gather_or_cancel([fetch(), build()])
            except CancelledError:
                raise
            except Exception as error:
                is_damaged = may_be_damaged and await downloads.drop_damaged()
                if isinstance(error, _REFUSALS) and not is_damaged:
                    await downloads.remove_partial_files()
                if is_damaged:
                    raise _CacheDamagedError from error
                raise
        assert squashfs is not None
        return replace(squashfs, seconds={"fetch": fetch_seconds, **squashfs.seconds})
