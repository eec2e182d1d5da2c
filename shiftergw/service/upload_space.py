"""The room for uploads: quotas, and what declared uploads reserve on the disk of the spool.

A declaration costs its user nothing, so its bytes alone must not shut other users out. The bytes
that have arrived count in full. For bytes that have not, a user reserves as much again as has
arrived from this user, or a gigabyte if that is more. Chunks are checked as well, because together
the uploads may need more than is reserved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shiftergw.errors import NoSpace, TooLarge, TooMany, amount
from shiftergw.model.uploads import UploadDeclaration, UserUpload
from shiftergw.ports import UploadSpool

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

UPLOADS_PER_USER = 100
"""Uploads that one user may have in the spool."""

DISK_RESERVE = 1 << 30
"""Bytes that stay free on the disk of the spool."""

USER_ALLOWANCE = 1 << 30
"""Bytes that a user reserves at most before any byte has arrived."""

COUNT_SECONDS = 10.0
"""Seconds after which the bytes of all uploads are counted again for the next chunk."""


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """The limits on uploads in bytes: of one, of all uploads of one user, and of all users.

    An upload is removed `keep_seconds` after its last change.
    """

    upload: int = 100 * 10**9
    user: int = 200 * 10**9
    space: int = 10**12
    keep_seconds: float = 86400.0


def reserved_bytes(uploads: Iterable[UserUpload]) -> int:
    """Return the bytes that are reserved for what is missing of uploads."""
    remaining_sizes: Counter[tuple[str, int]] = Counter()
    received_sizes: Counter[tuple[str, int]] = Counter()
    for upload in uploads:
        user = upload.declaration.system, upload.declaration.uid
        remaining_sizes[user] += upload.declaration.size - upload.offset
        received_sizes[user] += upload.offset
    return sum(
        min(size, max(USER_ALLOWANCE, received_sizes[user]))
        for user, size in remaining_sizes.items()
    )


class UploadSpace:
    """Checks whether there is room for an upload, and for each of its chunks."""

    def __init__(self, spool: UploadSpool, limits: UploadLimits, clock: IReactorTime) -> None:
        """Check `limits`, and the disk of `spool`."""
        self._spool = spool
        self._limits = limits
        self._clock = clock
        self._spool_size = 0
        self._next_count = 0.0

    def check_size(self, size: int) -> None:
        """Raise `TooLarge` for a file beyond the limit."""
        if size > self._limits.upload:
            raise TooLarge(
                f"The file has {amount(size)}; the gateway takes uploads of at most"
                f" {amount(self._limits.upload)}.",
                remedy="Make the image smaller, or ask the gateway's admins to raise"
                " `MaxUploadSize`.",
            )

    async def check_declaration(
        self, declaration: UploadDeclaration, uploads: Sequence[UserUpload]
    ) -> None:
        """Raise `TooMany` or `NoSpace` if there is no room for one more upload."""
        self._check_quota(declaration, uploads)
        spool_size = sum(upload.offset for upload in uploads)
        reservation = reserved_bytes(uploads)
        if spool_size + reservation + declaration.size > self._limits.space:
            raise _no_space()
        if declaration.size > await self._spool.free_space() - reservation - DISK_RESERVE:
            raise NoSpace("The gateway's disk for uploads has no room for the file.")

    def _check_quota(self, declaration: UploadDeclaration, uploads: Sequence[UserUpload]) -> None:
        sizes = [
            upload.declaration.size
            for upload in uploads
            if upload.declaration.uid == declaration.uid
        ]
        if len(sizes) >= UPLOADS_PER_USER or sum(sizes) + declaration.size > self._limits.user:
            raise TooMany(
                f"This upload of {amount(declaration.size)} is beyond your quota (UploadQuota): of"
                f" {UPLOADS_PER_USER} uploads and {amount(self._limits.user)} altogether you have"
                f" {len(sizes)} with {amount(sum(sizes))}.",
                remedy="Remove those that you do not need (`shiftergw uploads`), or wait until the"
                " gateway removes them.",
            )

    async def check_chunk(self, size: int) -> None:
        """Raise `NoSpace` if there is no room for a chunk; what has arrived before stays."""
        now = self._clock.seconds()
        if now >= self._next_count:
            self._next_count = now + COUNT_SECONDS
            self._spool_size = sum(upload.offset for upload in await self._spool.list())
        if self._spool_size + size > self._limits.space:
            raise _no_space()
        if size > await self._spool.free_space() - DISK_RESERVE:
            raise NoSpace("The gateway's disk for uploads is full.")
        self._spool_size += size


def _no_space() -> NoSpace:
    return NoSpace(
        "The uploads of all users fill the space that the gateway has for them (UploadSpace).",
        remedy="Try again later; if it lasts, tell the site's support.",
    )
