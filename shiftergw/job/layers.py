"""Download the layers of an image into the cache, while the builder reads them as they arrive."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from twisted.logger import Logger

from shiftergw.errors import ImageNotFound, ManifestInvalid, PullError, RetryLater
from shiftergw.job.watcher import Watcher
from shiftergw.model.images import Descriptor, Digest, ImageConfig, Opening, ResolvedImage
from shiftergw.model.layer_progress import MOST_LAYERS, SHORT_DIGEST, LayerProgress
from shiftergw.model.records import Progress
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.ports import BlobCache, BlobSink, Download, ImageSource, Layer
from shiftergw.states import State

_log = Logger()

FindPacks = Callable[
    [Sequence[tuple[Digest, Digest | None]], AsyncExitStack], Awaitable[AbstractSet[Digest]]
]
"""`ImageBuilder.find_packs` for the claims of an image, with packs that are kept."""


class LayerDownloads:
    """The layers of one image, which arrive in the cache once `fetch` runs."""

    def __init__(
        self,
        source: ImageSource,
        cache: BlobCache,
        image: ResolvedImage,
        config: ImageConfig,
        login: RegistryLogin | None,
        find_packs: FindPacks,
        top: bytes | None = None,
    ) -> None:
        """Download from `source` with `login`, unless `find_packs` finds the pack of a layer.

        `top` is a layer of the gateway's own above those of the image: a tar archive.
        """
        self._contents: dict[Digest, bytes] = {}
        if top is not None:
            image, config = self._with_layer(top, image, config)
        self._source = source
        self._cache = cache
        self._image = image
        self._login = login
        self._blobs = {layer.digest: _Blob(layer) for layer in image.layers}
        digests = [layer.digest for layer in image.layers]
        diff_ids = config.diff_ids or (None,) * len(digests)
        pairs = list(zip(digests, diff_ids, strict=True))
        layers = {
            (digest, diff_id): _Layer(self._blobs[digest], diff_id) for digest, diff_id in pairs
        }
        self.layers: Sequence[Layer] = [layers[pair] for pair in pairs]
        """In the image's order; the same blob with the same `diff_id` is the same object."""
        self._unverifiable = {digest for digest, diff_id in pairs if diff_id is None}
        """Blobs of layers without a `diff_id`: reading them does not verify them."""
        self._claims = pairs
        self._find_packs = find_packs
        self._packed_layers: AbstractSet[Digest] = frozenset()

    def _with_layer(
        self, content: bytes, image: ResolvedImage, config: ImageConfig
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return an image and its configuration with one more layer."""
        digest = Digest.of(content)
        self._contents[digest] = content
        layers = (*image.layers, Descriptor(digest, len(content)))
        diff_ids = (*config.diff_ids, digest) if config.diff_ids else ()
        return replace(image, layers=layers), replace(config, diff_ids=diff_ids)

    async def fetch(self, watcher: Watcher, stack: AsyncExitStack) -> None:
        """Download all blobs that are not in the cache, each once; keep all until `stack` ends.

        A layer whose pack is there counts as arrived; its pack is kept instead. The largest blobs
        start first, since a large one that starts last would delay the end. Blobs that the builder
        cannot verify are used from the cache only after their digest was checked. If the source
        asks to retry some blobs later, raises `RetryLater` with the latest of these times, after
        all other blobs have arrived.
        """
        watcher.enter_stage(State.PULLING, "Pulling layers")
        self._packed_layers = await self._find_packs(self._claims, stack)
        packed_blobs = [self._blobs[digest] for digest in self._packed_layers]
        sizes = {blob.descriptor.digest: blob.descriptor.size for blob in packed_blobs}
        waits: list[RetryLater] = []
        meter = _DownloadMeter(watcher, sizes, [blob.descriptor for blob in self._blobs.values()])
        meter.report()
        for blob in packed_blobs:
            blob.opening.set_result(None)
            blob.path.set_result(None)

        async def fetch_blob(blob: _Blob) -> None:
            descriptor = blob.descriptor
            digest = descriptor.digest
            if digest in self._unverifiable and await self._cache.discard(digest):
                _log.warn("{blob} was damaged in the cache", blob=str(digest))
            content = self._contents.get(digest)
            download: Download = (
                partial(self._source.blob, self._image, descriptor, self._login, watcher.notify)
                if content is None
                else partial(_send, content)
            )

            def start(opening: Opening) -> None:
                meter.start(digest)
                blob.opening.set_result(opening)

            cache_entry = self._cache.get(descriptor, download, partial(meter.add, digest), start)
            try:
                path = await stack.enter_async_context(cache_entry)
            except ImageNotFound as error:
                raise _missing_blob(descriptor, error) from error
            except RetryLater as delay:
                waits.append(delay)  # raised after the other blobs have arrived
                return
            blob.opening.set_result(None)
            blob.path.set_result(path)

        new_blobs = [self._blobs[digest] for digest in self._needed_blobs()]
        by_size = sorted(new_blobs, key=lambda blob: -blob.descriptor.size)
        await gather_or_cancel(map(fetch_blob, by_size))
        if waits:
            raise max(waits, key=lambda delay: delay.at)

    async def remove_partial_files(self) -> None:
        """Remove the partial files of these blobs from the cache."""
        for digest in self._blobs:
            await self._cache.give_up(digest)

    async def drop_damaged(self) -> bool:
        """Remove damaged blobs from the cache; return whether there were any."""
        return any([await self._cache.discard(digest) for digest in self._needed_blobs()])

    def _needed_blobs(self) -> list[Digest]:
        """Return the digests of the blobs whose layers have no pack."""
        return [digest for digest in self._blobs if digest not in self._packed_layers]


async def _send(content: bytes, offset: int, sink: BlobSink) -> None:
    """Stream a blob that is in memory; with its first argument bound this is a `Download`."""
    sink.begin(offset)
    sink.write(content[offset:])


def _missing_blob(blob: Descriptor, error: ImageNotFound) -> PullError:
    """Return the error for a blob that its registry does not have."""
    if not blob.has_urls:
        return error
    return ManifestInvalid(
        "A layer of the image is not in its registry: the manifest names other addresses for it (a"
        " foreign layer), which the gateway does not use.",
        remedy="Push the image with all its layers to a registry.",
        detail=error.detail,
    )


class _DownloadMeter:
    """Adds up the bytes of blobs that are there, and those that this process has downloaded."""

    def __init__(
        self, watcher: Watcher, sizes: Mapping[Digest, int], blobs: Iterable[Descriptor]
    ) -> None:
        """Report to `watcher`; `sizes` are those of blobs that are not needed: packs exist."""
        self._watcher = watcher
        self._sizes = dict(sizes)
        self._totals = {blob.digest: blob.size for blob in blobs}
        self._total = sum(self._totals.values())
        self._own_downloads: set[Digest] = set()
        self._downloaded_bytes = 0

    def start(self, digest: Digest) -> None:
        """Note that this process downloads a blob, so that its further bytes count."""
        self._own_downloads.add(digest)

    def add(self, digest: Digest, size: int) -> None:
        """Report that `size` bytes of a blob are there; fewer than before if it begins again."""
        if digest in self._own_downloads:
            self._downloaded_bytes += max(0, size - self._sizes.get(digest, 0))
        self._sizes[digest] = size
        self.report()

    def report(self) -> None:
        """Report the sums, and the blobs of which a part is there."""
        done = sum(self._sizes.values())
        parts = [(digest, size) for digest, size in self._sizes.items() if size]
        layers = [
            LayerProgress(digest.hex[:SHORT_DIGEST], size, self._totals[digest])
            for digest, size in parts
            if size < self._totals[digest]
        ]
        own_bytes, first_layers = self._downloaded_bytes, tuple(layers[:MOST_LAYERS])
        self._watcher.report(
            Progress("fetch", done, self._total, downloaded_bytes=own_bytes, layers=first_layers)
        )


class _Blob:
    """A blob that is being downloaded.

    `opening` tells how to read the blob while it arrives (None: read the file instead); `path` is
    the complete file (None: its pack is used instead).
    """

    def __init__(self, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self.opening: SharedResult[Opening | None] = SharedResult()
        self.path: SharedResult[Path | None] = SharedResult()


class _Layer:
    """Implements the port `Layer`.

    One blob may be several layers with different `diff_id`s, of which at most one can be right.
    """

    def __init__(self, blob: _Blob, diff_id: Digest | None) -> None:
        self._blob = blob
        self.diff_id = diff_id

    @property
    def digest(self) -> Digest:
        return self._blob.descriptor.digest

    @property
    def size(self) -> int:
        return self._blob.descriptor.size

    async def wait_for_opening(self) -> Opening | None:
        opening = await self._blob.opening.wait()
        return None if self._blob.path.is_set else opening

    async def wait_for_file(self) -> Path | None:
        return await self._blob.path.wait()
