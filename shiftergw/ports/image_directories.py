"""Port to the image directories of systems, where the last stage of a pull puts its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from shiftergw.ports.images import Sweepable

if TYPE_CHECKING:
    from pathlib import Path

    from shiftergw.ports.images import Report


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """A file in an image directory; `size` is in bytes.

    `modified` is the time of the last write in whole seconds since 1970, by the system's clock;
    None if the system does not report it.
    """

    name: str
    size: int
    modified: int | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """How a delivered file was compared with the converted file.

    `method` is `sha256` (the digest of the whole file), `read-back` (every byte was read back and
    compared) or `samples` (the size and some pieces). `reason` says in a few words why the system
    computed no digest. `seconds` is how long the comparison took on another machine; two
    verifications that differ in it alone are equal.
    """

    method: Literal["sha256", "read-back", "samples"]
    reason: str = ""
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class SharedRange:
    """`length` bytes at `offset` of a file that another file has at `source_offset`."""

    offset: int
    source_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DeltaSource:
    """An installed image of `size` bytes, and the ranges that another file shares with it.

    The ranges do not overlap in that file and are sorted by `offset`. On a local file system that
    clones ranges (reflinks), those whose offsets are equal modulo 4096 take no space.
    """

    name: str
    size: int
    ranges: tuple[SharedRange, ...]


@dataclass(frozen=True, slots=True)
class FileAccess:
    """Who may open the file of an image, besides root and the gateway's account.

    With `users` or `groups` (ids) these may read it and nobody else. Without, `mode` says who may.
    """

    mode: int
    users: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()

    @property
    def is_restricted(self) -> bool:
        """Return whether the file has an access list."""
        return bool(self.users or self.groups)


class ImageDirectory(Sweepable, Protocol):
    """The directory of a system from which the runtime loads images.

    File names are `<64 hex>.squashfs` and `<64 hex>.meta`; any other name raises `ValueError`.
    `sweep` removes none of these files, only temporary files of interrupted writes. Methods raise
    `DeliveryFailed`, `NoSpace`, and `RetryLater` if the system does not answer.
    """

    async def reach(self) -> None:
        """Return if the system may be used; raise `RetryLater` if it was silent a moment ago.

        Sends nothing unless the system was silent. After the time of its breaker, one caller of
        the whole site probes such a system.
        """
        ...

    async def probe(self, content: bytes) -> None:
        """Write a small file with this content and remove it; raise why a delivery would fail.

        If the connection breaks, the file stays behind under a temporary name that `sweep` removes.
        """
        ...

    async def close(self) -> None:
        """Close connections and end child processes, and return once they have ended.

        Calls that need a connection then fail with `DeliveryFailed`. May be called before the first
        use, and more than once.
        """
        ...

    async def free_space(self) -> int:
        """Return the bytes that the gateway can still write to the directory."""
        ...

    async def exists(self, name: str) -> InstalledFile | None:
        """Return the installed file of this name, or None."""
        ...

    async def install(
        self,
        source: Path,
        name: str,
        sha256: str,
        report: Report,
        delta: DeltaSource | None = None,
    ) -> Verification:
        """Install a copy of the file `source`, and return how the copy was verified.

        The copy is written under a temporary name with mode 0600, synced, verified (`sha256` is
        its digest in hexadecimal), renamed, and the directory is synced.

        The ranges of `delta` are copied within the directory; only the rest is sent. `delta` is a
        hint: if its image is missing or differs, if its ranges are wrong, or if the system cannot
        copy them or compute the digest of the result, the whole file is sent. Progress counts the
        copied bytes as done.
        """
        ...

    async def set_access(self, name: str, access: FileAccess) -> bool:
        """Set who may open an installed file. `install` opens it to nobody.

        Returns False, and changes nothing, if the file has to be installed anew because it shares
        its access with other files. Raises `DeliveryFailed` if the system cannot keep the access
        list; then nobody may open the file.
        """
        ...

    async def write(self, content: bytes, name: str) -> None:
        """Write a small file, with the same guarantees as `install`."""
        ...

    async def read(self, name: str, limit: int) -> bytes | None:
        """Return the content of a file; None if it is missing or larger than `limit` bytes."""
        ...

    async def head(self, name: str, size: int) -> bytes:
        """Return the first `size` bytes of a file, or fewer if it is shorter or missing."""
        ...

    async def remove(self, name: str) -> None:
        """Remove the file; it need not exist."""
        ...

    async def list(self) -> Sequence[InstalledFile]:
        """Return the installed images and metadata files."""
        ...

    async def digest(self, name: str) -> str:
        """Return the SHA-256 of an installed file, in hexadecimal."""
        ...
