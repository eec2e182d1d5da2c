"""The interface between remote image directories and file protocols.

SFTP implements it, and so does SCP together with a few programs of the system. Both report refusals
and attributes with the classes of SFTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.delta import DeltaPlan
    from shiftergw.delivery.source_file import SourceFile
    from shiftergw.plumbing.channel import Connection
    from shiftergw.sftp.packets import Attributes, FileSystem

MODE = 0o600
"""The mode with which every file is delivered; the runtime reads them as root."""


class Content(Protocol):
    """The content of a file of `size` bytes that is uploaded."""

    size: int

    def blocks(self, offset: int) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Return a context with an iterator over the content from `offset`."""
        ...


class RemoteFiles(Protocol):
    """A session with the files of a system. Paths are absolute bytes; no shell interprets them.

    Methods raise `SftpRefused` if the system refuses a request, and `DeliveryFailed` once the
    session is over. They can be cancelled.
    """

    @property
    def usable(self) -> bool:
        """Return whether the session is still open; a broken connection ends it."""
        ...

    @property
    def unreliable_tail(self) -> int:
        """Return how many of the last bytes of a broken upload may have holes."""
        ...

    def close(self) -> None:
        """End the session and its running requests; the connection stays open."""
        ...

    @property
    def shortcomings(self) -> Sequence[str]:
        """Return the missing features that make deliveries less safe, each in a few words."""
        ...

    async def file_system(self, path: bytes) -> FileSystem:
        """Return the state of the file system of a directory, for an unprivileged user.

        Raises `SftpRefused` if the system does not report it.
        """
        ...

    async def lstat(self, path: bytes) -> Attributes | None:
        """Return the attributes of a directory entry without following links; None if absent."""
        ...

    async def entries(
        self, path: bytes, accepts: Callable[[bytes], bool]
    ) -> list[tuple[bytes, Attributes]]:
        """Return name and attributes of each entry of a directory whose name passes `accepts`."""
        ...

    async def remove(self, path: bytes) -> None:
        """Remove a file; it need not exist."""
        ...

    async def set_mode(self, path: bytes, mode: int) -> None:
        """Set the mode of an existing file."""
        ...

    async def rename(self, old: bytes, new: bytes) -> None:
        """Rename a file and replace an existing one: atomically if possible, and durably."""
        ...

    async def upload(
        self, path: bytes, source: Content, start: int | None, report: Callable[[int], None]
    ) -> None:
        """Write the source from byte `start` into an existing file; with None, into a new file.

        An existing file may be empty (`start` 0). It is never replaced, so that it keeps its layout
        on the disks. In the end the file has the mode `MODE` and the size of the source, and is on
        the disks of the system. `report` gets the number of bytes that the file has. Raises
        `OSError` for errors of the source.
        """
        ...

    @property
    def copying(self) -> CopyingFiles | None:
        """Return the uploads in which the server copies ranges; None if it cannot copy."""
        ...

    async def create(self, path: bytes, content: bytes) -> None:
        """Create a small file as durably as `upload`; read it back and compare the content."""
        ...

    async def pieces(self, path: bytes, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return pieces of a file, each by offset and length; shorter only at the file's end."""
        ...

    async def read_through(self, path: bytes, size: int, take: Callable[[bytes], None]) -> None:
        """Pass the first `size` bytes of a file to `take`, in order."""
        ...


class CopyingFiles(Protocol):
    """Uploads of files of which the server copies ranges from another file."""

    @property
    def copy_tail(self) -> int:
        """Return how many of the last bytes of a broken upload of this kind may have holes."""
        ...

    async def assemble(
        self,
        path: bytes,
        source: SourceFile,
        start: int | None,
        plan: DeltaPlan,
        report: Callable[[int], None],
    ) -> None:
        """Write the source as `RemoteFiles.upload` does, but have the server copy what is shared.

        That it says so proves nothing: the caller must prove the file. Raises `DeltaUnusable` if
        the file to copy from has another size than the plan says.
        """
        ...


OpenFiles = Callable[["Connection", "IReactorTime", float], Awaitable[RemoteFiles]]
"""Opens a session over a connection. The last argument is the longest wait for an answer, in
seconds."""


async def file_prefix(files: RemoteFiles, path: bytes, size: int) -> bytes | None:
    """Return the first `size` bytes of a file, fewer if it is shorter; None if it is absent."""
    attributes = await files.lstat(path)
    if attributes is None or not attributes.is_file:
        return None
    (content,) = await files.pieces(path, [(0, min(size, attributes.size or 0))])
    return content


async def small_file(files: RemoteFiles, path: bytes, limit: int) -> bytes | None:
    """Return the content of a file; None if it is absent or has more than `limit` bytes."""
    content = await file_prefix(files, path, limit + 1)
    return None if content is None or len(content) > limit else content
