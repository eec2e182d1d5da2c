"""Open what a user uploads: a file, or a directory that is sent as a tar archive.

The gateway wants size and digest first, so everything is read twice: once for the digest, once to
be sent. Standard input is copied to a private temporary file. Everything here blocks.
"""

from __future__ import annotations

import os
import re
import stat
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from shiftergw.cli.directory_tar import DirectoryTar, FileState, files_below, read_unchanged
from shiftergw.cli.exits import Misuse
from shiftergw.cli.layout_blobs import blobs_of_tag
from shiftergw.errors import BadRequest, printable
from shiftergw.model.names import check_registry_name, registry_name
from shiftergw.model.source_names import LocalSourceName, parse_source

PIECE = 4 << 20
"""Bytes that are read at once to compute the digest."""

_ARCHIVES = {"oci": "oci-archive", "dir": "dir-archive"}
"""The gateway's names for tar archives of directories."""

_FILES = {
    "oci": (re.compile("oci-layout|index[.]json|blobs/[a-z0-9+._-]+/[0-9a-f]+"), "index.json"),
    "dir": (
        re.compile("version|([0-9a-f]+[.])?manifest[.]json|[0-9a-f]{64,128}|signature-[0-9]+"),
        "manifest.json",
    ),
}
"""The names of an image's files in a directory, and the file that every image has."""

_FILE_NAME_LIMIT = 200


class Bytes(Protocol):
    """Bytes of a known number that can be read from any offset, more than once."""

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, fewer only at the end; raise `SourceChanged`."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class FileBytes:
    """The bytes of an open regular file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        """Remember the state of the file; `path` is for messages."""
        self._file = file
        self._path = path
        self._state = FileState.of(os.fstat(file.fileno()))
        self.size = self._state.size

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, fewer only at the end; raise `SourceChanged`."""
        size = max(0, min(size, self.size - offset))
        return read_unchanged(self._file.fileno(), self._path, self._state, offset, size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class UploadSource:
    """What a user uploads, and its digest once all of it has been read.

    `kind` is the gateway's name for the format, "" if the gateway is to find it out; `selector`
    chooses an image of several.
    """

    def __init__(self, content: Bytes, kind: str, name: str, selector: str) -> None:
        """Begin to compute the digest; `name` is for messages."""
        self._content = content
        self._hash = sha256()
        self.kind = kind
        self.name = printable(name, _FILE_NAME_LIMIT)
        self.selector = selector
        self.size = content.size
        self.hashed_size = 0
        """Bytes that the digest covers so far."""

    @property
    def digest(self) -> str:
        """Return the hexadecimal SHA-256 digest of all bytes."""
        assert self.hashed_size == self.size
        return self._hash.hexdigest()

    def hash_piece(self) -> None:
        """Add the next bytes to the digest."""
        piece = self.read(self.hashed_size, PIECE)
        self._hash.update(piece)
        self.hashed_size += len(piece)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, fewer only at the end; raise `SourceChanged`."""
        return self._content.read(offset, size)

    def close(self) -> None:
        """Close the files."""
        self._content.close()


def open_source(source: LocalSourceName) -> UploadSource:
    """Open a file or directory by its name; raise `Misuse` if it cannot be uploaded."""
    path = source.path
    if path.is_dir():
        content: Bytes
        kind = source.kind if source.kind in _ARCHIVES else _directory_kind(source)
        content = DirectoryTar(path, _names_of(kind, path, source.selector))
        kind = _ARCHIVES[kind]
    elif source.kind in _ARCHIVES:
        raise Misuse(f"{printable(str(path), 200)} is not a directory.")
    else:
        content = FileBytes(_open_file(path), path)
        kind = "" if source.kind == "path" else source.kind
    if not content.size:
        raise Misuse(f"{printable(str(path), 200)} is empty.")
    return UploadSource(content, kind, path.name or str(path), source.selector)


def _directory_kind(source: LocalSourceName) -> str:
    """Return whether a directory is an OCI layout or a directory of skopeo's; raise `Misuse`."""
    name = printable(str(source.path), 200)
    if source.kind != "path":
        raise Misuse(f"{name} is a directory, not a file.")
    has_index = (source.path / "index.json").is_file() and (source.path / "blobs").is_dir()
    if has_index or (source.path / "oci-layout").is_file():  # some tools write no `oci-layout`
        return "oci"
    if all((source.path / file).is_file() for file in ("manifest.json", "version")):
        return "dir"
    raise Misuse(
        f"{name} is neither an OCI layout (it has no file index.json) nor a directory of skopeo's"
        " (no files manifest.json and version)."
    )


def _names_of(kind: str, directory: Path, selector: str) -> list[str]:
    """Return the names of the files that belong to an image; others stay with the user.

    Of an OCI layout with several images, only the blobs of the chosen tag belong to it.
    """
    pattern, index = _FILES[kind]
    names = [name for name in files_below(directory) if pattern.fullmatch(name)]
    if index not in names:
        raise Misuse(f"{printable(str(directory), 200)} has no file {index}: it is not an image.")
    is_tag = kind == "oci" and selector and not selector.startswith("@")
    blobs = blobs_of_tag(directory, selector) if is_tag else None
    if blobs is None:
        return names
    return [name for name in names if name in blobs or not name.startswith("blobs/")]


def _open_file(path: Path) -> BinaryIO:
    name = printable(str(path), 200)
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Misuse(f"{name} cannot be read: {error.strerror}.") from error
    file = os.fdopen(descriptor, "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise Misuse(f"{name} is not a regular file. Standard input is written `-`.")
    return cast("BinaryIO", file)


def local_source_of(text: str) -> LocalSourceName | None:
    """Return the file or directory that a text names, or None for an image of a registry.

    Raises `Misuse` for the name of a file that is written like that of an image in a registry.
    """
    source = _parse(text)
    if source is None and _is_file(text):
        name = printable(text, 120)
        raise Misuse(
            f"{name!r} is a file here: write ./{name} to upload it, or docker:{name} for an image"
            " of that name in a registry."
        )
    return source


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a path
        return False


def check_registry_image(text: str) -> None:
    """Raise `Misuse` for a file or directory in place of an image in a registry.

    The names of some images look like a file's, so those count only if there is a file.
    """
    source = _parse(text)
    if source is None:
        return
    is_file = source.kind == "path" and source.path.exists()
    if text == "-" or is_file or not _may_be_in_registry(text):
        raise Misuse(
            f"{printable(text, 120)!r} is an image of your own. To upload it, give it a name:"
            f" `shiftergw pull {printable(text, 120)} NAME`."
        )


def _may_be_in_registry(text: str) -> bool:
    try:
        check_registry_name(registry_name(text))
    except BadRequest:
        return False
    return True


def _parse(text: str) -> LocalSourceName | None:
    try:
        return parse_source(text)
    except BadRequest as error:
        raise Misuse(str(error)) from error
