"""The seams of an image's way: source, cache, builder, image directory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

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
    from shiftergw.model import (
        ImageReference,
        Progress,
        RegistryLogin,
    )

Report = Callable[["Progress"], None]
"""Told how far a stage is, often; must be cheap and must not raise."""

Say = Callable[[str], None]
"""Told in one line what a stage waits for, for the user's eyes (`status_message`)."""


class BlobSink(Protocol):
    """Takes a blob's bytes: an `IConsumer` that is first told where the bytes start."""

    def begin(self, offset: int) -> None:
        """Take the bytes from `offset`: the one asked for, or 0 from a source that cannot resume.

        May be called again, when a source starts anew after a broken connection.
        """
        ...

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """As `IConsumer`: the producer to pause while the disk is slower than the network."""
        ...

    def unregisterProducer(self) -> None:
        """As `IConsumer`."""
        ...

    def write(self, data: bytes) -> None:
        """Take the next bytes; raise `BlobCorrupt` on more than the descriptor's size."""
        ...


Download = Callable[[int, BlobSink], Awaitable[None]]
"""Streams one blob from an offset into a sink; returns when the source has sent its last byte."""


class BlobCache(Protocol):
    """The compressed layers of this machine, shared by all its jobs and processes."""

    def get(
        self,
        blob: Descriptor,
        download: Download,
        report: Callable[[int], None],
        begun: Callable[[Opening], None],
    ) -> AbstractAsyncContextManager[Path]:
        """Give the file of a blob; whole, and with the digest and size of its descriptor.

        It stays while the context lives. One download per blob on the machine, whoever asks; the
        others wait for it. `report` is told the bytes that lie there so far; `begun`, each time
        that `download` begins here, how the blob is read on its way. Raises `BlobCorrupt`,
        `NoSpace` and what `download` raises; a broken download leaves what it got for the next one
        to resume.
        """
        ...

    async def check_space(self, wanted: Sequence[Descriptor]) -> None:
        """Raise `NoSpace` for blobs that surely do not fit; removes nothing.

        Sizes are what a manifest claims. Room is made as bytes arrive: what is in use stays, and
        what has been unused for longest goes first.
        """
        ...

    async def discard(self, digest: Digest) -> bool:
        """Remove a blob if its bytes have another digest by now.

        Returns whether they had, also if another pull has removed the bytes that are in use here.
        The blob need not be there.
        """
        ...

    async def give_up(self, digest: Digest) -> None:
        """Remove what a broken download left, unless somebody is at it now."""
        ...


class Swept(Protocol):
    """Something that keeps files for as long as they may be of use again."""

    async def sweep(self, before: float) -> int:
        """Remove what was last used before this time, and is not in use; return how many."""
        ...


class ImageSource(Protocol):
    """Something that holds images: a registry, an OCI layout, an archive.

    Anonymous access is tried first, then `login`. Raises `ImageNotFound`, `RegistryDenied`,
    `RegistryUnavailable`, `RegistryUntrusted`, `ManifestInvalid`, `NoMatchingPlatform`.
    """

    async def head(
        self, reference: ImageReference, login: RegistryLogin | None, say: Say
    ) -> Digest | None:
        """Return the digest that the reference answers now, in one request; None: not told."""
        ...

    async def resolve(
        self, reference: ImageReference, platform: Platform, login: RegistryLogin | None, say: Say
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return what the reference means now for this platform, and its configuration."""
        ...

    async def prove(self, image: ResolvedImage, login: RegistryLogin | None, say: Say) -> None:
        """Return if this login may read every blob of a resolved image, none of which is sent."""
        ...

    async def blob(
        self,
        image: ResolvedImage,
        blob: Descriptor,
        login: RegistryLogin | None,
        say: Say,
        offset: int,
        sink: BlobSink,
    ) -> None:
        """Stream a blob of a resolved image; a `Download` once its first arguments are bound."""
        ...


class Layer(Protocol):
    """A layer of an image, which may still be on its way to this machine."""

    @property
    def size(self) -> int:
        """Return its bytes, compressed."""
        ...

    @property
    def diff_id(self) -> Digest | None:
        """Return what it must unpack to; old manifests do not say."""
        ...

    async def arriving(self) -> Opening | None:
        """Return how it is read on its way, once it is, or None if it has arrived by then."""
        ...

    async def arrived(self) -> Path:
        """Return its file once the whole is there; never, if it does not come."""
        ...


class ImageBuilder(Swept, Protocol):
    """Turns layers into one squashfs file."""

    def build(
        self,
        image_id: str,
        created: int,
        layers: Sequence[Layer],
        options: SquashOptions,
        limits: BuildLimits,
        report: Report,
        entered: Callable[[str], None],
    ) -> AbstractAsyncContextManager[BuiltImage]:
        """Build, or find, the converted file of (id, options); it stays while the context lives.

        Layers are read on their way; what that gives counts once they have arrived. The same object
        twice is the same layer twice: it is read once.

        `entered` is told "EXAMINATION" and "CONVERSION" as they begin, and "WAITING" where somebody
        else is at the same file. Raises `LayerInvalid`, `BlobCorrupt` (a `diff_id`),
        `ImageTooLarge`, `ConversionFailed`, `NoSpace`.
        """
        ...

    async def check_space(self, size: int) -> None:
        """Raise `NoSpace` if what is made of `size` bytes of layers surely does not fit.

        Removes nothing: room is made once the layers have arrived.
        """
        ...


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """A file of an image directory: its name, its size in bytes, when it was last written.

    `modified` is in whole seconds since 1970, by the clock over there; None: nobody can tell.
    """

    name: str
    size: int
    modified: int | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """How a delivered file was compared with the converted file.

    `method` is `sha256` (by the digest of the whole file), `read-back` (every byte was read back
    and compared) or `samples` (its size and pieces of it). `reason` says in a few words why the
    system made no digest.
    """

    method: Literal["sha256", "read-back", "samples"]
    reason: str = ""


class ImageDirectory(Swept, Protocol):
    """The directory of one system in which the runtime looks for images.

    Names are `<64 hex>.squashfs` and `<64 hex>.meta`, nothing else; a sweep removes none of them,
    only the temporaries of writes that broke off. Raises `DeliveryFailed`, `NoSpace`, and
    `RetryLater` if the system does not answer.
    """

    async def reach(self) -> None:
        """Return if the system may be used; raise `RetryLater` if it did not answer a moment ago.

        Nothing is sent to a system that is not known to be away. One that was away is tried, by one
        caller of the whole site, once its time has come.
        """
        ...

    async def probe(self, content: bytes) -> None:
        """Write a small file of this content and remove it; raise why a delivery would fail.

        A file that stays behind, because the connection broke, is a temporary: `sweep` removes it.
        """
        ...

    async def close(self) -> None:
        """Close connections and end child processes, and return once they have ended.

        Calls that need a connection then fail with `DeliveryFailed`. May be called before the first
        use, and more than once.
        """
        ...

    async def free_space(self) -> int:
        """Return the bytes that this gateway may still write there."""
        ...

    async def exists(self, name: str) -> InstalledFile | None:
        """Return the installed file of this name, or None."""
        ...

    async def install(self, source: Path, name: str, sha256: str, report: Report) -> Verification:
        """Put the file there: temporary name, fsync, checked, mode 0600, renamed, fsync.

        Returns how it was checked.
        """
        ...

    async def write(self, content: bytes, name: str) -> None:
        """Put a small file there, with the promises of `install`."""
        ...

    async def read(self, name: str, limit: int) -> bytes | None:
        """Return the content of a small file; None if it is absent or larger than `limit` bytes."""
        ...

    async def head(self, name: str, size: int) -> bytes:
        """Return the first bytes of a file: `size`, or fewer if it is shorter or absent."""
        ...

    async def remove(self, name: str) -> None:
        """Remove the file; it need not exist."""
        ...

    async def list(self) -> Sequence[InstalledFile]:
        """Return the installed images and metadata."""
        ...

    async def digest(self, name: str) -> str:
        """Return the SHA-256 of an installed file, in hexadecimal."""
        ...
