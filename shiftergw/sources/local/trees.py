"""Named files of an image: below a directory, or members of a tar archive.

All methods block. Names come from the program, or consist of a digest: nothing that an image says
becomes a path.
"""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Protocol

from shiftergw.oci.archive import ArchiveIndex, index_archive
from shiftergw.sources.local.extents import Extent, ExtentFile, file_errors, whole_file


class FileTree(Protocol):
    """Files by their names, with slashes."""

    @property
    def description(self) -> str:
        """Return what errors call it: `directory` or `archive`."""
        ...

    def extent(self, name: str) -> Extent | None:
        """Return where a file is; None if it is missing."""
        ...


class DirectoryTree:
    """The files below a directory."""

    description = "directory"

    def __init__(self, directory: Path) -> None:
        """Read below `directory`."""
        self._directory = directory

    def extent(self, name: str) -> Extent | None:
        """Return a whole file; None if it is missing."""
        path = self._directory / name
        with file_errors("directory of the image"):
            if not path.exists():
                self._directory.stat()
                return None
        return whole_file(path, "file of the image")


class ArchiveTree:
    """The members of an uncompressed tar archive."""

    description = "archive"

    def __init__(self, path: Path, stop: Event) -> None:
        """Index the archive, which `stop` ends; raise `ManifestInvalid` if it is damaged."""
        self._path = path
        archive = whole_file(path, "archive")
        with file_errors("archive"), ExtentFile(archive) as file:
            self._index: ArchiveIndex = index_archive(file, archive.size, stop)

    def extent(self, name: str) -> Extent | None:
        """Return the data of a member; None if there is no such file."""
        member = self._index.find(name)
        return None if member is None else Extent(self._path, member.offset, member.size)
