"""Port to the spool: the directory in which the gateway keeps uploads until images are made."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from shiftergw.model.uploads import UploadDeclaration, UserUpload


class UploadWriter(Protocol):
    """An upload that is open for writing, at its offset. Its methods are called in turn."""

    @property
    def upload(self) -> UserUpload:
        """Return the upload as it was last committed."""
        ...

    async def write(self, data: bytes) -> None:
        """Append bytes; raise `NoSpace` if the disk is full."""
        ...

    async def commit(self, now: float) -> UserUpload:
        """Make the bytes durable, then the new offset; return the upload with it."""
        ...

    async def close(self) -> None:
        """End the writing; bytes that were not committed are dropped by the next writer."""
        ...


class UploadSpool(Protocol):
    """The uploads on this machine. Several gateways may share a spool.

    Methods raise `Unavailable` if the disk cannot be read or written, and `NoSpace` if it is full.
    Ids that are not ids of uploads have no upload.
    """

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Return a context in which no other gateway adds an upload."""
        ...

    async def list(self) -> Sequence[UserUpload]:
        """Return all uploads."""
        ...

    async def get(self, upload_id: str) -> UserUpload | None:
        """Return an upload, or None if there is no such upload."""
        ...

    async def add(self, declaration: UploadDeclaration, now: float) -> UserUpload:
        """Add an empty upload with a new random id."""
        ...

    async def open(self, upload_id: str) -> UploadWriter | None:
        """Open an upload for writing; return None if it is absent or being written."""
        ...

    async def read(self, upload_id: str, offset: int, size: int) -> bytes:
        """Return bytes of an upload: `size` from `offset`, fewer at its end."""
        ...

    async def note_pull(
        self, upload_id: str, key: str, now: float, old_pulls: Collection[str] = ()
    ) -> bool:
        """Note the key of a record that is made of an upload; return whether there is the upload.

        The keys of `old_pulls`, which have ended, are dropped.
        """
        ...

    async def touch(self, upload_id: str, now: float) -> UserUpload | None:
        """Note a change of an upload at this time; return the upload, or None if it is absent."""
        ...

    async def remove(self, upload_id: str, expected: UserUpload | None = None) -> bool:
        """Remove an upload; it need not exist. A reader that has opened it can still read it.

        With `expected`, the upload as it was seen, it stays if it has changed since; returns
        whether it is gone.
        """
        ...

    async def free_space(self) -> int:
        """Return the bytes that are free on the disk of the spool."""
        ...

    async def sweep(self, before: float) -> int:
        """Remove files that belong to no upload and were last written before this time."""
        ...
