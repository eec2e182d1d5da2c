"""Share the manifests of registries that count requests among the processes of a machine.

`<directory>/<registry>/<digest>` is the media type of a public manifest, a newline, and its bytes;
both names are in hexadecimal. The directory of a registry exists since the registry has counted a
request. The oldest files are removed. All files may be lost at any time.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from twisted.logger import Logger

from shiftergw.model.images import Digest
from shiftergw.plumbing.files import private_directory, read_whole, write_private
from shiftergw.plumbing.threads import Threads

MOST_BYTES = 1 << 20
"""Bytes of the largest manifest that is remembered."""

MOST_FILES = 1024
"""Manifests of one registry that are kept as files."""

_MEDIA_TYPE_BYTES = 1000

_log = Logger()


@dataclass(frozen=True, slots=True)
class RecentManifest:
    """A manifest or index that a registry has sent: its digest, bytes and media type."""

    digest: Digest
    content: bytes = field(repr=False)
    media_type: str


class SharedManifests:
    """The manifests of one registry as files, by their digest."""

    def __init__(self, directory: Path, location: str, threads: Threads) -> None:
        """Use a directory for the registry `location` below `directory`; create nothing."""
        self._directory = directory / Digest.of(location.encode()).hex
        self._threads = threads

    async def exist(self) -> bool:
        """Return whether a process of this machine has kept manifests of this registry."""
        return await self._threads.run(self._directory.is_dir)

    async def read(self, digest: Digest) -> RecentManifest | None:
        """Return a manifest, verified; None if there is no good file of it."""
        return await self._threads.run(self._read, digest)

    async def write(self, manifest: RecentManifest) -> None:
        """Keep a manifest if the disk takes it."""
        await self._threads.run(self._write, manifest)

    def _read(self, digest: Digest) -> RecentManifest | None:
        path = self._directory / digest.hex
        try:
            line, _ = read_whole(path, MOST_BYTES + _MEDIA_TYPE_BYTES)
        except OSError:
            return None
        media_type, _, content = line.partition(b"\n")
        if hashlib.new(digest.algorithm, content).hexdigest() != digest.hex:
            with suppress(OSError):
                path.unlink()
            return None
        return RecentManifest(digest, content, media_type.decode("ascii", "replace"))

    def _write(self, manifest: RecentManifest) -> None:
        media_type = manifest.media_type.encode("ascii", "replace")
        if len(media_type) >= _MEDIA_TYPE_BYTES or len(manifest.content) > MOST_BYTES:
            return
        try:
            self._directory.parent.mkdir(parents=True, exist_ok=True)
            private_directory(self._directory)
            path = self._directory / manifest.digest.hex
            write_private(path, media_type + b"\n" + manifest.content)
            self._remove_oldest()
        except OSError as error:
            _log.warn(
                "a manifest was not kept in {path}: {error}", path=self._directory, error=error
            )

    def _remove_oldest(self) -> None:
        """Remove files until there are at most `MOST_FILES`; others may do so meanwhile."""
        ages = []
        for path in self._directory.iterdir():
            with suppress(FileNotFoundError):
                ages.append((path.lstat().st_mtime, path))
        for _, path in sorted(ages)[:-MOST_FILES]:
            path.unlink(missing_ok=True)
