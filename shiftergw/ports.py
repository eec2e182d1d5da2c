"""Every seam of the program, as a `Protocol` with its contract.

Methods are coroutines unless they only look at memory. Each raises classes of `shiftergw.errors`
alone; adapters translate what their drivers raise. Twisted's types are named for the type checker
only. Times are seconds since 1970 and come in as arguments.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from shiftergw.image import (
        BuildLimits,
        BuiltImage,
        Descriptor,
        Digest,
        ImageConfig,
        LayerFile,
        Platform,
        ResolvedImage,
        SquashOptions,
    )
    from shiftergw.model import (
        Expired,
        Failed,
        ImageRecord,
        ImageReference,
        Login,
        Progress,
        PullRequest,
        QueueLimits,
        Ready,
        Session,
    )
    from shiftergw.states import State

Report = Callable[["Progress"], None]
"""Told how far a stage is, often; must be cheap and must not raise."""

Say = Callable[[str], None]
"""Told in one line what a stage waits for, for the user's eyes (`status_message`)."""


class ImageStore(Protocol):
    """The one truth about images and work. Each method is atomic.

    A *step* names the attempt that makes it; when a newer attempt has taken over, or the record is
    no longer in flight, it changes nothing and raises `Superseded`. A store that cannot be reached
    raises `Unavailable`. A step against the table of `states` raises `IllegalStepError`.
    """

    async def claim(
        self, request: PullRequest, now: float, limits: QueueLimits | None = None
    ) -> tuple[ImageRecord, bool]:
        """Return the record in flight for `request.claim`, made now (PENDING) if there was none.

        The flag says that this caller created it. Creating it removes older FAILURE records of
        the same system, type and tag that `request.requested_by` could see. Raises `TooMany`
        instead of creating one record more than `limits` allow to wait.
        """
        ...

    async def begin(self, key: str, runner: str, now: float, limit: float) -> ImageRecord | None:
        """Start the next attempt on a record and return it, or None if there is nothing to do.

        Nothing to do: no such record, not in flight, or a heartbeat younger than `limit` seconds.
        The attempt rises by one, the heartbeat is `now`, the state becomes PULLING; a record that
        is EXPIRING stays so.
        """
        ...

    async def advance(self, key: str, attempt: int, state: State, message: str, now: float) -> None:
        """Step to `state` with a message for the user; counts as a heartbeat."""
        ...

    async def heartbeat(
        self, key: str, attempt: int, progress: Progress, now: float, message: str | None = None
    ) -> None:
        """Say that the attempt lives and how far it is; `message` replaces the user's if given."""
        ...

    async def finish(
        self, key: str, attempt: int, outcome: Ready | Expired | Failed, now: float
    ) -> ImageRecord:
        """End the work and return the record that remains.

        Ready: the one READY record of (system, type, id) gets the tag first; then the tag is taken
        from every other record of the same system and type. A record that loses its last tag so
        keeps its files until `outcome.untagged_until` at least. An EXPIRING record of the same id
        is READY again, and its removal superseded. Claim, sealed credentials, runner and progress
        go. `last_pull` is `now`.

        Expired: a record that is EXPIRING becomes EXPIRED. Failed: it is READY again, since its
        files are still there, and expires `now`; any other record becomes a FAILURE.
        """
        ...

    async def abandon(self, key: str) -> None:
        """Remove a record that was claimed and that no attempt has begun."""
        ...

    async def get(self, key: str) -> ImageRecord | None:
        """Return the record with this key."""
        ...

    async def find(self, system: str, itype: str, tags: Sequence[str]) -> ImageRecord | None:
        """Return the newest READY record that carries the first of `tags` that any carries."""
        ...

    async def find_id(self, systems: Collection[str], image_id: str) -> Sequence[ImageRecord]:
        """Return the READY records of this image id on these systems, of any type."""
        ...

    async def find_work(self, system: str, itype: str, tag: str) -> Sequence[ImageRecord]:
        """Return the record in flight and the FAILUREs of this tag, newest first."""
        ...

    async def list(self, system: str) -> Sequence[ImageRecord]:
        """Return the READY records of a system, in a stable order."""
        ...

    async def queue(self, system: str) -> Sequence[ImageRecord]:
        """Return the records of a system in flight or failed, oldest first."""
        ...

    async def waiting(
        self, limit: int, running_per_user: int | None = None
    ) -> Sequence[ImageRecord]:
        """Return at most `limit` records in flight that no attempt has begun, fairest first.

        Fair: the users take turns, each user's own in the order of arrival, and none has more than
        `running_per_user` begun. Removals (`kind` expire) are nobody's: the limit is not theirs.
        """
        ...

    async def stale(self, now: float, limit: float) -> Sequence[ImageRecord]:
        """Return begun work in flight whose heartbeat is older than `limit` seconds."""
        ...

    async def renew(self, key: str, expiration: float) -> None:
        """Set the expiration of a READY record, never to an earlier time."""
        ...

    async def expired(self, now: float) -> Sequence[ImageRecord]:
        """Return READY records whose expiration has passed."""
        ...

    async def untag(self, key: str, tag: str) -> ImageRecord | None:
        """Take a tag from a READY record and return it; None if it is not READY or has no such tag.

        With its last tag the record becomes EXPIRING, as by `expire`.
        """
        ...

    async def expire(self, key: str, expired_at: float | None = None) -> ImageRecord | None:
        """Make a READY record EXPIRING: work, of kind expire, that waits for a worker.

        Its tags stay written in it. None, and nothing happens, if it is not READY, or if
        `expired_at` is given and its expiration is not that early (it was renewed meanwhile).
        """
        ...

    async def set_access(
        self,
        systems: Collection[str],
        image_id: str,
        private: bool,
        user_acl: Sequence[int],
        group_acl: Sequence[int],
    ) -> None:
        """Set who may read an image in all its READY records on these systems, of any type."""
        ...

    async def block(self, directory: str, image_id: str, uid: int, now: float) -> None:
        """Keep an image id out of an image directory, by order of `uid`."""
        ...

    async def allow(self, directory: str, image_id: str) -> bool:
        """Take a block back; say whether there was one."""
        ...

    async def blocked(self, directory: str, image_ids: Collection[str]) -> bool:
        """Say whether one of these ids is kept out of an image directory."""
        ...

    async def forget_ended(self, before: float) -> int:
        """Remove FAILURE and EXPIRED records with an earlier `last_pull`; return how many."""
        ...

    async def lease(
        self, directory: str, image_id: str, holder: str, now: float, seconds: float
    ) -> bool:
        """Take or renew the lease on (image directory, id); False if another holds it.

        `holder` is `key/attempt`. A lease ends by `release` or after `seconds`.
        """
        ...

    async def release(self, directory: str, image_id: str, holder: str) -> None:
        """Give the lease back; nothing happens if `holder` does not hold it."""
        ...

    async def remove(self, key: str) -> None:
        """Remove a record, whatever it says."""
        ...

    async def record_lookup(self, row: Mapping[str, Any]) -> None:
        """Keep one row of lookup metrics."""
        ...

    async def lookups(self, system: str, limit: int) -> Sequence[dict[str, Any]]:
        """Return the last `limit` rows of a system, oldest first."""
        ...


class JobQueue(Protocol):
    """Carries record keys to workers and keeps nothing: recovery is the store's `stale` alone."""

    def slots(self) -> int:
        """Return how many more jobs may be offered now."""
        ...

    async def offer(self, key: str) -> None:
        """Give a record to some worker; raise `Unavailable` if that is impossible now."""
        ...

    async def cancel(self, key: str) -> None:
        """Stop the job on this record if it runs here; nothing happens otherwise."""
        ...

    async def drain(self, limit: float) -> None:
        """Take no more; return when running jobs have ended, or stop them after `limit` s."""
        ...


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

    async def get(
        self, blob: Descriptor, download: Download, report: Callable[[int], None]
    ) -> Path:
        """Return the file of a blob; whole, and with the digest and size of its descriptor.

        One download per blob on the machine, whoever asks; the others wait for it. `report` is
        told the bytes that lie there so far. Raises `BlobCorrupt`, `NoSpace` and what `download`
        raises; a broken download leaves what it got for the next one to resume.
        """
        ...

    async def check_space(self, blobs: Sequence[Descriptor]) -> None:
        """Raise `NoSpace` if those of the blobs that are missing here surely do not fit."""
        ...

    async def discard(self, digest: Digest) -> None:
        """Forget a blob whose content proved damaged; it need not be there."""
        ...

    async def give_up(self, digest: Digest) -> None:
        """Remove what a broken download left, unless somebody is at it now."""
        ...


class ImageSource(Protocol):
    """Something that holds images: a registry, an OCI layout, an archive.

    Anonymous access is tried first, then `login`. Raises `ImageNotFound`, `RegistryDenied`,
    `RegistryUnavailable`, `RegistryUntrusted`, `ManifestInvalid`, `NoMatchingPlatform`.
    """

    async def head(self, reference: ImageReference, login: Login | None, say: Say) -> Digest | None:
        """Return the digest that the reference answers now, in one request; None: not told."""
        ...

    async def resolve(
        self, reference: ImageReference, platform: Platform, login: Login | None, say: Say
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return what the reference means now for this platform, and its configuration."""
        ...

    async def prove(self, image: ResolvedImage, login: Login | None, say: Say) -> None:
        """Return if this login may read every blob of a resolved image, none of which is sent."""
        ...

    async def blob(
        self,
        image: ResolvedImage,
        blob: Descriptor,
        login: Login | None,
        say: Say,
        offset: int,
        sink: BlobSink,
    ) -> None:
        """Stream a blob of a resolved image; a `Download` once its first arguments are bound."""
        ...


class ImageBuilder(Protocol):
    """Turns layers into one squashfs file."""

    def build(
        self,
        image_id: str,
        created: int,
        layers: Sequence[LayerFile],
        options: SquashOptions,
        limits: BuildLimits,
        report: Report,
        entered: Callable[[str], None],
    ) -> AbstractAsyncContextManager[BuiltImage]:
        """Build, or find, the converted file of (id, options); it stays while the context lives.

        `entered` is told "EXAMINATION" and "CONVERSION" as they begin. Raises `LayerInvalid`,
        `BlobCorrupt` (a `diff_id`), `ImageTooLarge`, `ConversionFailed`, `NoSpace`.
        """
        ...

    async def check_space(self, size: int) -> None:
        """Raise `NoSpace` if what is made of `size` bytes of layers surely does not fit."""
        ...

    async def sweep(self, before: float) -> int:
        """Remove what was last used before this time, and is not in use; return how many."""
        ...


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """A file of an image directory: its name and size in bytes."""

    name: str
    size: int


class ImageDirectory(Protocol):
    """The directory of one system in which the runtime looks for images.

    Names are `<64 hex>.squashfs` and `<64 hex>.meta`, nothing else. Raises `DeliveryFailed`,
    `NoSpace`.
    """

    async def free_space(self) -> int:
        """Return the bytes that this gateway may still write there."""
        ...

    async def exists(self, name: str) -> InstalledFile | None:
        """Return the installed file of this name, or None."""
        ...

    async def install(self, source: Path, name: str, sha256: str, report: Report) -> None:
        """Put the file there: temporary name, fsync, checked, mode 0600, renamed, fsync."""
        ...

    async def write(self, content: bytes, name: str) -> None:
        """Put a small file there, with the promises of `install`."""
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

    async def sweep(self, before: float) -> int:
        """Remove temporaries that were last written before this time; return how many."""
        ...


class Authenticator(Protocol):
    """Knows who sent a credential."""

    async def authenticate(self, credential: str, system: str) -> Session:
        """Return the session, or raise `NotAuthenticated`."""
        ...


class UserDirectory(Protocol):
    """The users and groups of a system."""

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:
        """Return the gids that the user is in, the primary one included."""
        ...
