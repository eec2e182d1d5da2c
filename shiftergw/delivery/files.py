"""Where image directories meet the file protocols: what a session with a system's files can do.

SFTP keeps this, and so does SCP with a few programs of the system's. Refusals and attributes are
those of SFTP, whoever makes them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.reading import SourceFile
    from shiftergw.plumbing.channel import Connection
    from shiftergw.sftp.packets import Attributes, FileSystem

MODE = 0o600
"""Of every delivered file: the runtime reads them as root."""


class Files(Protocol):
    """A session with the files of a system. Paths are bytes, absolute, and never a shell's.

    Methods raise `SftpRefused` for a no, and `DeliveryFailed` once the session is over. They can be
    cancelled.
    """

    @property
    def usable(self) -> bool:
        """Say whether the session is not over: after a `DeliveryFailed` of the connection it is."""
        ...

    @property
    def reach(self) -> int:
        """Return how far before its end a file whose upload broke may have holes, in bytes."""
        ...

    def close(self) -> None:
        """End the session and whatever it still does; the connection stays."""
        ...

    @property
    def shortcomings(self) -> Sequence[str]:
        """Return the missing features that make deliveries less safe, each in a few words."""
        ...

    async def file_system(self, path: bytes) -> FileSystem:
        """Return the state of a directory's file system, for an unprivileged user.

        Raises `SftpRefused` if the system does not tell it.
        """
        ...

    async def lstat(self, path: bytes) -> Attributes | None:
        """Return the attributes of what has this name, links not followed; None: nothing has."""
        ...

    async def entries(
        self, path: bytes, wanted: Callable[[bytes], bool]
    ) -> list[tuple[bytes, Attributes]]:
        """Return name and attributes of the entries of a directory whose name is `wanted`."""
        ...

    async def remove(self, path: bytes) -> None:
        """Remove a file; it need not exist."""
        ...

    async def rename(self, old: bytes, new: bytes) -> None:
        """Rename a file over another one, at once where the system can, and for good."""
        ...

    async def upload(
        self, path: bytes, source: SourceFile, start: int | None, report: Callable[[int], None]
    ) -> None:
        """Write a file's bytes from `start` into one that is there, or all into a new one.

        One that is there may be empty (`start` 0), and stays the same file: it is laid out already.
        Then it has the mode `MODE`, the source's size, and is on the system's disks. `report` is
        told how many of its bytes are there. Raises `OSError` for what is wrong with the source.
        """
        ...

    async def create(self, path: bytes, content: bytes) -> None:
        """Make a small file that was not there, as `upload` leaves one, and compare it."""
        ...

    async def pieces(self, path: bytes, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return pieces of a file, each by offset and length; shorter only at its end."""
        ...

    async def read_through(self, path: bytes, size: int, take: Callable[[bytes], None]) -> None:
        """Give the first `size` bytes of a file to `take`, in order."""
        ...


OpenFiles = Callable[["Connection", "IReactorTime", float], Awaitable[Files]]
"""Begins a session over a connection; gives a server up that owes an answer for some seconds."""


async def beginning_of(files: Files, path: bytes, size: int) -> bytes | None:
    """Return the first `size` bytes of a file, fewer if it ends before; None if it is absent."""
    state = await files.lstat(path)
    if state is None or not state.is_file:
        return None
    (content,) = await files.pieces(path, [(0, min(size, state.size or 0))])
    return content


async def small_file(files: Files, path: bytes, limit: int) -> bytes | None:
    """Return the content of a file; None if it is absent or has more than `limit` bytes."""
    content = await beginning_of(files, path, limit + 1)
    return None if content is None or len(content) > limit else content
