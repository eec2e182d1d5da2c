"""Ports to the first stages of a pull: image source, blob cache, image builder."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AsyncExitStack
    from pathlib import Path

    from shiftergw.model.build_options import BuildLimits, SquashOptions
    from shiftergw.model.images import (
        BuiltImage,
        Descriptor,
        Digest,
        ImageConfig,
        Opening,
        Platform,
        ResolvedImage,
    )
    from shiftergw.model.records import Progress
    from shiftergw.model.references import ImageReference
    from shiftergw.model.requests import RegistryLogin

Report = Callable[["Progress"], None]
"""Receives the progress of a stage. It is called often: it must be cheap and must not raise."""

Notify = Callable[[str], None]
"""Receives one line that tells the user what a stage waits for (`status_message`)."""


class BlobSink(Protocol):
    """Receives the bytes of a blob: an `IConsumer` that first gets the offset of the first byte."""

    @property
    def position(self) -> int:
        """Return how many bytes of the blob the sink has, from its first one.

        It shrinks if bytes that are sent again turn out to differ from those that the sink has.
        """
        ...

    def begin(self, offset: int) -> None:
        """Expect the bytes from `offset` on: `position`, or 0 if the source cannot resume there.

        Bytes that the sink has are compared with those that are sent again, and dropped where they
        differ; all of them if the source starts again after the last byte, for then some are wrong.
        A source that starts again after a broken connection calls this again.
        """
        ...

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Register the producer that is paused while the disk is slower than the network."""
        ...

    def unregisterProducer(self) -> None:
        """Forget the producer; see `IConsumer`."""
        ...

    def write(self, data: bytes) -> None:
        """Write the next bytes; raise `BlobCorrupt` if the blob exceeds its descriptor's size."""
        ...


Download = Callable[[int, BlobSink], Awaitable[None]]
"""Streams one blob from an offset into a sink; returns after the source has sent the last byte."""


class BlobCache(Protocol):
    """The compressed layers on this machine, shared by all its jobs and processes."""

    @property
    def pack_directory(self) -> Path:
        """Return the directory for the packs of these layers, which need not exist.

        Like the blobs, packs of private repositories lie apart: each serves its repository alone.
        """
        ...

    def get(
        self,
        blob: Descriptor,
        download: Download,
        report: Callable[[int], None],
        on_start: Callable[[Opening], None],
    ) -> AbstractAsyncContextManager[Path]:
        """Return a context with the file of a blob, complete and verified.

        The file has the digest and the size of the descriptor and is kept while the context is
        open. A machine downloads a blob once at a time; other callers wait for that download.
        Calls `report` with the bytes that are in the file so far, and `on_start` each time that
        `download` starts in this process, with the means to read the blob while it arrives. Raises
        `BlobCorrupt`, `NoSpace`, and the errors of `download`. The bytes of an interrupted
        download stay on disk, and the next one resumes it.
        """
        ...

    async def check_space(
        self, descriptors: Sequence[Descriptor], *, with_packs: bool = False
    ) -> None:
        """Raise `NoSpace` if these blobs surely do not fit; removes nothing.

        The sizes are only claims of a manifest. Space is freed while bytes arrive: blobs in use
        stay, and the least recently used blobs are removed first. `with_packs` tells that packs of
        these blobs will lie in `pack_directory`: as for the image (`ImageBuilder.check_space`),
        half of the size of the blobs is required, and also of those that are there. The blobs stay
        until the image is made.
        """
        ...

    async def discard(self, digest: Digest) -> bool:
        """Remove a blob whose bytes no longer have its digest; the blob need not be in the cache.

        Returns whether the bytes were damaged. That is also true if another pull has removed the
        bytes that this process uses.
        """
        ...

    async def give_up(self, digest: Digest) -> None:
        """Remove the bytes of an interrupted download, unless another process is resuming it."""
        ...


class Sweepable(Protocol):
    """A cache or directory whose old files can be removed."""

    async def sweep(self, before: float) -> int:
        """Remove files that are not in use and were last used before this time; return how many."""
        ...


class Scrubbable(Protocol):
    """A cache whose files can be compared with their digests."""

    async def scrub(self, before: float) -> int:
        """Read all files that were last compared before this time; return how many were damaged.

        It reads slowly, one file after the other, those first that were compared longest ago, and
        removes damaged ones. Cancellable; the next call goes on with the files that are left.
        Returns 0 at once while another process does it.
        """
        ...


class ImageSource(Protocol):
    """A source of images: a registry, an OCI layout, or an archive.

    It tries anonymous access first, then `login`, and calls `notify` with what it waits for. Raises
    `ImageNotFound`, `RegistryDenied`, `RegistryUnavailable`, `RegistryUntrusted`,
    `ManifestInvalid`, `NoMatchingPlatform`.
    """

    async def head(
        self, reference: ImageReference, login: RegistryLogin | None, notify: Notify
    ) -> Digest | None:
        """Return a reference's present digest, in one request; None if the source omits it."""
        ...

    async def resolve(
        self,
        reference: ImageReference,
        platform: Platform,
        login: RegistryLogin | None,
        notify: Notify,
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return the image that a reference names now for this platform, and its configuration."""
        ...

    async def prove(
        self, image: ResolvedImage, login: RegistryLogin | None, notify: Notify
    ) -> None:
        """Return if the login may read every blob of an image; none of them is downloaded."""
        ...

    async def blob(
        self,
        image: ResolvedImage,
        blob: Descriptor,
        login: RegistryLogin | None,
        notify: Notify,
        offset: int,
        sink: BlobSink,
    ) -> None:
        """Stream a blob of an image. With its first arguments bound this is a `Download`."""
        ...


class Layer(Protocol):
    """A layer of an image that may still be arriving on this machine."""

    @property
    def digest(self) -> Digest:
        """Return the digest of the compressed layer."""
        ...

    @property
    def size(self) -> int:
        """Return the compressed size in bytes."""
        ...

    @property
    def diff_id(self) -> Digest | None:
        """Return the digest of the uncompressed layer; None for old manifests, which have none."""
        ...

    async def wait_for_opening(self) -> Opening | None:
        """Wait until the download starts, and return the means to read the layer meanwhile.

        Returns None if the layer is complete by then.
        """
        ...

    async def wait_for_file(self) -> Path | None:
        """Return the file once it is complete. If the download fails, this never returns.

        Returns None if the layer need not arrive, because `find_packs` has found its pack.
        """
        ...


class ImageBuilder(Sweepable, Protocol):
    """Converts layers to one squashfs file."""

    def build(
        self,
        image_id: str,
        created: int,
        layers: Sequence[Layer],
        options: SquashOptions,
        limits: BuildLimits,
        report: Report,
        on_stage: Callable[[str], None],
        pack_directory: Path,
    ) -> AbstractAsyncContextManager[BuiltImage]:
        """Return a context with the converted file of (image id, options).

        The file is built, or reused if it exists; it is kept while the context is open. Layers are
        read while they arrive; the result is used only after they have arrived completely. The
        same object twice in `layers` is the same layer twice, and is read once. `created` is the
        creation time of the image in seconds since 1970. Packs of layers are kept in
        `pack_directory`, that of the image's blobs (`BlobCache.pack_directory`).

        Calls `on_stage` with each stage that starts: "EXAMINATION" and "CONVERSION", or "PACKING"
        and "COMPOSITION" if the layers are converted one by one; "CHECK" of the new file;
        "VERIFICATION" of one that exists; "REPAIR", after which the image is composed anew;
        "WAITING" while another process is building the same file; and "PACKING ELSEWHERE" while
        other processes convert the same layers, or "QUEUED" while they convert others and this one
        has to wait, after which "PACKING" goes on; and "SLOW DIRECTORY" in a "CONVERSION" that will
        take long.

        Within a stage the progress never goes back and is never more than the total, and at the end
        of the stage it is the total. Raises `LayerInvalid`, `BlobCorrupt` (a `diff_id` differs),
        `ImageTooLarge`, `ConversionFailed`, `NoSpace`, `PackCorrupt`.
        """
        ...

    async def find_packs(
        self,
        pack_directory: Path,
        claims: Iterable[tuple[Digest, Digest | None]],
        options: SquashOptions,
        use: AsyncExitStack | None = None,
    ) -> AbstractSet[Digest]:
        """Return the digests of the layers that `build` needs no file of: their packs are there.

        `claims` are the digests of layers, each with the `diff_id` that the image claims. With
        `use`, the packs count as used now, and stay in place until it is closed; without, nothing
        is changed. A pack may yet turn out damaged: then `build` removes it and raises
        `PackCorrupt`, and it is not found again.
        """
        ...

    async def check_space(self, size: int) -> None:
        """Raise `NoSpace` if the image of `size` bytes of layers cannot fit.

        Removes nothing: space is freed after the layers have arrived.
        """
        ...
