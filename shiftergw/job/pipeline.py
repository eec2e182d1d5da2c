"""From a reference to a verified squashfs file: resolve, fetch, build.

The service's worker and the stand-alone `convert` command run the same pipeline, each with a
`Watcher` of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
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
    PackCorrupt,
    stage_timeout,
)
from shiftergw.job.layers import LayerDownloads
from shiftergw.job.watcher import BuildWatcher, ForwardWatcher, Watcher
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.images import BuiltImage, Digest, ImageConfig, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.oci.enroot import enroot_layer
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

    async def find_packs(self, image: ResolvedImage, options: SquashOptions) -> AbstractSet[Digest]:
        """Return the digests of the layers that need not be here, since they have packs."""
        claims = [(layer.digest, None) for layer in image.layers]
        return await self._builder.find_packs(self._cache_of(image).pack_directory, claims, options)

    async def check_space(self, image: ResolvedImage, options: SquashOptions) -> None:
        """Raise `NoSpace` if the image surely does not fit on this machine's disks."""
        packed_layers = await self.find_packs(image, options)
        new_layers = [layer for layer in image.layers if layer.digest not in packed_layers]
        await self._cache_of(image).check_space(new_layers, with_packs=options.uses_packs)
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
        of them. A layer has arrived, too, if its pack is in the image's own place of the cache. A
        layer or a pack that was damaged in the cache is dropped there, and the layer is fetched
        once more. Of several packs, each may be noticed only after the one before was replaced.
        Partial blobs of a failed pull stay in the cache for the next pull of them, unless the image
        itself was refused.
        """
        forward = ForwardWatcher(watcher)
        damages: list[_CacheDamagedError] = []
        async with AsyncExitStack() as stack:
            while True:
                try:
                    squashfs = await self._convert(stack, image, config, login, options, forward)
                    break
                except _CacheDamagedError as damage:
                    damages.append(damage)
                    # One more, because `enroot_files` adds a layer.
                    if _is_damaging(damages, len(image.layers) + 1):
                        raise BlobCorrupt(
                            "The gateway's cache damages layers.",
                            remedy="Tell the site's support: a disk or the memory may be failing.",
                        ) from damage
                    _log.warn(
                        "{image}: a layer was damaged in the cache, and is fetched again: {cause}",
                        image=image.id,
                        cause=damage.__cause__,
                    )
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
        cache = self._cache_of(image)

        async def find_packs(
            claims: Sequence[tuple[Digest, Digest | None]], use: AsyncExitStack
        ) -> AbstractSet[Digest]:
            return await self._builder.find_packs(cache.pack_directory, claims, options, use)

        top = enroot_layer(config) if options.enroot_files else None
        downloads = LayerDownloads(self._source, cache, image, config, login, find_packs, top)
        stages = BuildWatcher(watcher)
        build = self._builder.build(
            image.id,
            config.created,
            downloads.layers,
            options,
            self._limits,
            stages.report,
            stages.enter_stage,
            cache.pack_directory,
        )
        conversion = _Conversion(downloads, build, stages, watcher, self._clock)
        return await conversion.run(stack, self._limits.stages.fetch)


class _Conversion:
    """One download of all layers, and the build that reads them while they arrive."""

    def __init__(
        self,
        downloads: LayerDownloads,
        build: AbstractAsyncContextManager[BuiltImage],
        stages: BuildWatcher,
        watcher: Watcher,
        clock: IReactorTime,
    ) -> None:
        """Run `build`, which reports to `stages`; report the download to `watcher`."""
        self._downloads = downloads
        self._build = build
        self._stages = stages
        self._watcher = watcher
        self._clock = clock
        self._fetch_seconds = 0.0
        self._may_be_damaged = False
        """Whether the build has failed at the content of a layer."""

    async def run(self, stack: AsyncExitStack, fetch_limit: float) -> BuiltImage:
        """Fetch within `fetch_limit` seconds, build, and keep the file until `stack` ends.

        After an error, removes what the next pull cannot use from the cache. Raises
        `_CacheDamagedError` if a damaged layer was among that.
        """
        async with AsyncExitStack() as cached_layers:  # they stay until the file is built
            try:
                _, squashfs = await gather_or_cancel(
                    [self._fetch(cached_layers, fetch_limit), self._enter_build(stack)]
                )
            except CancelledError:
                raise
            except Exception as error:
                is_damaged = isinstance(error, PackCorrupt) or (
                    self._may_be_damaged and await self._downloads.drop_damaged()
                )
                if isinstance(error, _REFUSALS) and not is_damaged:
                    await self._downloads.remove_partial_files()
                if is_damaged:
                    raise _CacheDamagedError from error
                raise
        assert squashfs is not None
        return replace(squashfs, seconds={"fetch": self._fetch_seconds, **squashfs.seconds})

    async def _fetch(self, cached_layers: AsyncExitStack, limit: float) -> None:
        start = self._clock.seconds()
        await within(
            limit,
            self._clock,
            self._downloads.fetch(self._watcher, cached_layers),
            partial(stage_timeout, "Fetching", limit, "fetch"),
        )
        self._fetch_seconds = self._clock.seconds() - start
        self._stages.end_fetch()

    async def _enter_build(self, stack: AsyncExitStack) -> BuiltImage:
        try:
            return await stack.enter_async_context(self._build)
        except (BlobCorrupt, LayerInvalid, ImageTooLarge):
            self._may_be_damaged = True
            raise


def _is_damaging(damages: Sequence[_CacheDamagedError], layer_count: int) -> bool:
    """Return whether a cache has damaged the layers of an image again after they were replaced.

    A pack that is damaged stops the build before the other packs are read.
    """
    layers = [damage for damage in damages if not isinstance(damage.__cause__, PackCorrupt)]
    return len(layers) > 1 or len(damages) > layer_count
