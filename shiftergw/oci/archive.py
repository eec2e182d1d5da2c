"""Find the members of a tar archive that holds an image: `docker save`, OCI archives.

One pass records where each member's data is. Nothing is unpacked, and no name of a member ever
becomes a path: links among members are followed inside the index alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from threading import Event
from typing import BinaryIO

from shiftergw.errors import LayerInvalid, ManifestInvalid
from shiftergw.oci.compression import StopRequested
from shiftergw.oci.paths import clean
from shiftergw.oci.tar import HARDLINK, Entry, read_entries
from shiftergw.oci.tar_stream import TarStream
from shiftergw.oci.tree import REGULAR, SYMLINK

MOST_MEMBERS = 100_000
"""Entries of one archive: 500 layers of some images have a few thousand."""

NAMES_LIMIT = 32 << 20
"""Bytes of all names and link targets of one archive."""

MOST_LINKS = 16
"""Links that lead from one to the next."""

_PIECE = 1 << 15
_COPY_AGAIN = "Save or copy the image once more: the file may be incomplete."


@dataclass(frozen=True, slots=True)
class Member:
    """The data of a member: `offset` from the start of the archive, and `size`, in bytes."""

    offset: int
    size: int


class ArchiveIndex:
    """The members of an archive by their normalized names; the last one of a name counts."""

    def __init__(self, members: Mapping[bytes, Member], links: Mapping[bytes, bytes]) -> None:
        """Index `members`, and `links` from a name to another normalized name."""
        self._members = members
        self._links = links

    def find(self, name: str) -> Member | None:
        """Return the member of a name, at the end of its links; None if there is none.

        Raises `ManifestInvalid` for a name or a link that leads out of the archive, and for links
        that go on for ever.
        """
        path = _normalize(name.encode("utf-8", "surrogateescape"))
        for _ in range(MOST_LINKS):
            if path not in self._links:
                return self._members.get(path)
            path = self._links[path]
        raise ManifestInvalid(
            f"The archive has more than {MOST_LINKS} links in a row.", remedy=_COPY_AGAIN
        )


def index_archive(archive: BinaryIO, size: int, stop: Event) -> ArchiveIndex:
    """Read the headers of an uncompressed archive of `size` bytes, and skip all data.

    Blocks: run it in a thread. Raises `ManifestInvalid` if the archive is damaged, incomplete, or
    has too many members, and `StopRequested` soon after `stop` is set.
    """
    members: dict[bytes, Member] = {}
    links: dict[bytes, bytes] = {}
    names_size = 0
    try:
        for count, entry in enumerate(read_entries(_SeekingStream(archive, size, stop)), 1):
            path = b"/".join(filter(None, (entry.parent, entry.name)))
            names_size += len(path) + len(entry.target)
            if count > MOST_MEMBERS or names_size > NAMES_LIMIT:
                raise ManifestInvalid(
                    f"The archive has more than {MOST_MEMBERS} members, or very long names: it is"
                    " not an image that a tool has saved.",
                    remedy="Use the archive of `docker save`, `podman save` or skopeo.",
                )
            members.pop(path, None)
            links.pop(path, None)
            _add(entry, path, members, links)
    except LayerInvalid as error:
        raise ManifestInvalid(
            "The file is not a whole tar archive.", remedy=_COPY_AGAIN, detail=error.what
        ) from error
    return ArchiveIndex(members, links)


def find_members(
    archive: BinaryIO, size: int, names: Collection[str], stop: Event
) -> dict[str, Member]:
    """Return the regular files of these names in an archive of any number of members.

    Blocks, as `index_archive`. Raises `LayerInvalid`.
    """
    paths = {name.encode(): name for name in names}
    members: dict[str, Member] = {}
    for entry in read_entries(_SeekingStream(archive, size, stop)):
        name = paths.get(b"/".join(filter(None, (entry.parent, entry.name))))
        if name is not None and entry.kind == REGULAR and entry.sparse is None:
            members[name] = Member(entry.offset, entry.size)
    return members


def _add(
    entry: Entry, path: bytes, members: dict[bytes, Member], links: dict[bytes, bytes]
) -> None:
    if entry.kind == REGULAR and entry.sparse is None:
        members[path] = Member(entry.offset, entry.size)
    elif entry.kind == HARDLINK:
        links[path] = _normalize(entry.target)
    elif entry.kind == SYMLINK:
        is_absolute = entry.target.startswith(b"/")
        links[path] = _normalize(
            entry.target if is_absolute else b"/".join((entry.parent, entry.target))
        )


def _normalize(path: bytes) -> bytes:
    try:
        return clean(path)
    except LayerInvalid as error:
        raise ManifestInvalid(
            "A name or a link in the archive leads out of it.",
            remedy="Use the archive of `docker save`, `podman save` or skopeo.",
        ) from error


class _SeekingStream(TarStream):
    """An archive that is a file: the data of its members is skipped, not read."""

    def __init__(self, archive: BinaryIO, size: int, stop: Event) -> None:
        super().__init__(iter(lambda: archive.read(_PIECE), b""), None)
        self._archive = archive
        self._size = size
        self._stop = stop

    def skip(self, size: int) -> None:
        """Skip `size` bytes; raise `LayerInvalid` if the file ends before."""
        if self._stop.is_set():
            raise StopRequested
        end = self.position + size
        if end > self._size:
            raise LayerInvalid("The file ends within an entry.")
        if self._index + size <= len(self._piece):
            self._index += size
            return
        self._archive.seek(end)
        self._piece, self._index, self._start = b"", 0, end
