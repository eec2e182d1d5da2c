"""From a reference to a checked squashfs file: resolve, fetch, build.

The service's worker and the stand-alone `convert` command run the same pipeline; what differs is
who watches.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from shiftergw.errors import (
    BlobCorrupt,
    ImageNotFound,
    ImageTooLarge,
    LayerInvalid,
    ManifestInvalid,
    PullError,
    RetryLater,
    too_slow,
)
from shiftergw.image import (
    BuildLimits,
    BuiltImage,
    Descriptor,
    Digest,
    ImageConfig,
    Opening,
    Platform,
    ResolvedImage,
    SquashOptions,
)
from shiftergw.model import ImageReference, Progress, RegistryLogin
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.plumbing.timing import within
from shiftergw.ports import BlobCache, ImageBuilder, ImageSource
from shiftergw.states import STEPS, State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

_log = Logger()

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

    def enter_stage(self, state: State, message: str) -> None:
        """Hear that a stage begins."""
        ...

    def report(self, progress: Progress) -> None:
        """Hear how far the stage is."""
        ...

    def notify(self, message: str) -> None:
        """Hear what the stage waits for, in one line for the user."""
        ...

    def may_wait(self, later: RetryLater) -> bool:
        """Return whether the image is tried again at the time that its source names."""
        ...


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
        """Keep the parts."""
        self._source = source
        self._cache_of = cache_of
        self._builder = builder
        self._limits = limits
        self._clock = clock

    async def head(
        self, reference: ImageReference, login: RegistryLogin | None, watcher: Watcher
    ) -> str | None:
        """Return the digest that the reference answers now, or None if the source does not say."""
        digest = await self._source.head(reference, login, watcher.notify)
        return None if digest is None else str(digest)

    async def resolve(
        self,
        reference: ImageReference,
        platform: Platform,
        login: RegistryLogin | None,
        watcher: Watcher,
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return what the reference means for this platform.

        Raises `ImageTooLarge` for too many layers, before any of them is asked for.
        """
        watcher.enter_stage(State.PULLING, "Getting manifest")
        image, config = await self._source.resolve(reference, platform, login, watcher.notify)
        if len(image.layers) > self._limits.layers:
            raise ImageTooLarge.beyond(
                f"The image has {len(image.layers)} layers, and the gateway takes at most"
                f" {self._limits.layers}.",
                "MaxLayers",
            )
        return image, config

    async def prove(
        self, image: ResolvedImage, login: RegistryLogin | None, watcher: Watcher
    ) -> None:
        """Return if this login may read every blob of a resolved image; raise the refusal."""
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
        """Fetch all layers and build the squashfs file; it stays while the context lives.

        A layer is examined while it arrives, and nothing is given away before all have: who cannot
        fetch them gets no file that another has made of them. A pull that fails, after all tries,
        leaves no halves of blobs behind. A layer that was damaged in the cache is dropped there and
        fetched once more.
        """
        forward = _Forward(watcher)
        async with AsyncExitStack() as stack:
            try:
                built = await self._converted(stack, image, config, login, options, forward)
            except _CacheDamagedError as damage:
                _log.warn(
                    "{image}: a layer was damaged in the cache, and is fetched again: {cause}",
                    image=image.id,
                    cause=damage.__cause__,
                )
                try:
                    built = await self._converted(stack, image, config, login, options, forward)
                except _CacheDamagedError:
                    raise BlobCorrupt(
                        "The gateway's cache damages layers.",
                        remedy="Tell the site's support: a disk or the memory may be failing.",
                    ) from damage
            yield built

    async def _converted(
        self,
        stack: AsyncExitStack,
        image: ResolvedImage,
        config: ImageConfig,
        login: RegistryLogin | None,
        options: SquashOptions,
        watcher: Watcher,
    ) -> BuiltImage:
        """Fetch all layers and build the file, which stays until `stack` ends.

        Raises `_CacheDamagedError` where the failure's cause was dropped from the cache.
        """
        blobs = {layer.digest: _Blob(layer) for layer in image.layers}
        diff_ids = config.diff_ids or (None,) * len(image.layers)
        pairs = [
            (layer.digest, diff_id) for layer, diff_id in zip(image.layers, diff_ids, strict=True)
        ]
        distinct = {pair: _Layer(blobs[pair[0]], pair[1]) for pair in pairs}
        layers = [distinct[pair] for pair in pairs]
        # A layer without a diff_id cannot be verified while it is read: verify its digest before.
        unproven = {digest for digest, diff_id in pairs if diff_id is None}
        stages = _Stages(watcher)
        seconds: dict[str, float] = {}
        building = self._builder.build(
            image.id,
            config.created,
            layers,
            options,
            self._limits,
            stages.report,
            stages.enter_stage,
        )
        doubtful = False
        async with AsyncExitStack() as held:  # the layers, until the file is built

            async def fetch() -> None:
                start = self._clock.seconds()
                await within(
                    self._limits.stages.fetch,
                    self._clock,
                    self._fetch(image, blobs.values(), unproven, login, watcher, held),
                    partial(too_slow, "Fetching", self._limits.stages.fetch, "fetch"),
                )
                seconds["fetch"] = self._clock.seconds() - start
                stages.all_here()

            async def build() -> BuiltImage:
                nonlocal doubtful
                try:
                    return await stack.enter_async_context(building)
                except (BlobCorrupt, LayerInvalid, ImageTooLarge):
                    doubtful = True
                    raise

            try:
                _, built = await gather_or_cancel([fetch(), build()])
            except CancelledError:
                raise  # an interrupted pull is resumed from what is there
            except RetryLater as later:
                if not watcher.may_wait(later):
                    await self._forget(image)
                raise
            except Exception as error:
                is_damaged = doubtful and await self._drop_damaged(image)
                await self._forget(image)
                if is_damaged:
                    raise _CacheDamagedError from error
                raise
        assert built is not None
        return replace(built, seconds={**seconds, **built.seconds})

    async def _fetch(
        self,
        image: ResolvedImage,
        blobs: Iterable[_Blob],
        unproven: AbstractSet[Digest],
        login: RegistryLogin | None,
        watcher: Watcher,
        held: AsyncExitStack,
    ) -> None:
        """Bring all blobs into the cache, each once; they stay there while `held` lives.

        Those that are `unproven` are not taken from the cache before their digest was checked.
        The largest first: a long one begun last would be waited for.
        """
        watcher.enter_stage(State.PULLING, "Pulling layers")
        cache = self._cache_of(image)
        done: dict[Digest, int] = {}
        waits: list[RetryLater] = []

        async def bring(blob: _Blob) -> None:
            wanted = blob.descriptor

            def report(size: int) -> None:
                done[wanted.digest] = size
                watcher.report(Progress("fetch", sum(done.values()), image.download_size))

            if wanted.digest in unproven and await cache.discard(wanted.digest):
                _log.warn("{blob} was damaged in the cache", blob=str(wanted.digest))
            download = partial(self._source.blob, image, wanted, login, watcher.notify)
            getting = cache.get(wanted, download, report, blob.arriving.set_result)
            try:
                path = await held.enter_async_context(getting)
            except ImageNotFound as error:
                raise _foreign(wanted, error) from error
            except RetryLater as later:
                waits.append(later)  # the other layers arrive meanwhile
                return
            blob.arrive(path)

        await gather_or_cancel(map(bring, sorted(blobs, key=lambda one: -one.descriptor.size)))
        if waits:
            raise max(waits, key=lambda later: later.at)

    async def _forget(self, image: ResolvedImage) -> None:
        """Remove the partial files of an image's blobs from the cache."""
        cache = self._cache_of(image)
        for digest in {layer.digest for layer in image.layers}:
            await cache.give_up(digest)

    async def _drop_damaged(self, image: ResolvedImage) -> bool:
        """Remove an image's damaged blobs from the cache; return whether there were any."""
        cache = self._cache_of(image)
        damaged = [await cache.discard(digest) for digest in {one.digest for one in image.layers}]
        return any(damaged)


def _foreign(blob: Descriptor, error: ImageNotFound) -> PullError:
    """Return the error of a blob that its registry does not have."""
    if not blob.has_urls:
        return error
    return ManifestInvalid(
        "A layer of the image is not in its registry, but to be fetched from elsewhere (a foreign"
        " layer); the gateway does not follow such addresses.",
        remedy="Push the image with all its layers to a registry.",
        detail=error.detail,
    )


class _Blob:
    """A blob of an image that is being fetched."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self.arriving: SharedResult[Opening | None] = SharedResult()
        self.arrived: SharedResult[Path] = SharedResult()

    def arrive(self, path: Path) -> None:
        """Let all who wait have the file."""
        self.arriving.set_result(None)
        self.arrived.set_result(path)


class _Layer:
    """Keeps the port `Layer`; one blob may be layers with several `diff_id`s, all but one wrong."""

    def __init__(self, blob: _Blob, diff_id: Digest | None) -> None:
        self._blob = blob
        self.diff_id = diff_id

    @property
    def size(self) -> int:
        return self._blob.descriptor.size

    async def arriving(self) -> Opening | None:
        opening = await self._blob.arriving.wait()
        return None if self._blob.arrived.is_set else opening

    async def arrived(self) -> Path:
        return await self._blob.arrived.wait()


class _Forward:
    """A watcher of work that may start again: it never reports an earlier stage."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._furthest = State.PENDING
        self.report = watcher.report
        self.notify = watcher.notify
        self.may_wait = watcher.may_wait

    def enter_stage(self, state: State, message: str) -> None:
        """Report a stage, or only its message if a later stage was reported before."""
        if self._furthest == state or state in STEPS[self._furthest]:
            self._furthest = state
            self._watcher.enter_stage(state, message)
        else:
            self.notify(message)


class _Stages:
    """What a watcher hears of a build that begins while its layers still arrive.

    Until all have, he is told how much has.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._stage: str | None = None
        self._are_all_here = False

    def all_here(self) -> None:
        """Tell from now on how far the build is."""
        self._are_all_here = True
        if self._stage is not None:
            self._watcher.enter_stage(*_BUILDING[self._stage])

    def enter_stage(self, stage: str) -> None:
        """Hear from the builder that a stage begins."""
        self._stage = stage
        if self._are_all_here:
            self._watcher.enter_stage(*_BUILDING[stage])

    def report(self, progress: Progress) -> None:
        """Hear from the builder how far it is."""
        if self._are_all_here:
            self._watcher.report(progress)
