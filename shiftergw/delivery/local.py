"""The image directory of a system on a file system of this machine."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from shiftergw.delivery import local_files
from shiftergw.delivery.disk_calls import HANG_SECONDS, DiskCalls
from shiftergw.delivery.file_access import set_local_access
from shiftergw.delivery.image_names import check_installed_name, probe_name
from shiftergw.delivery.placement import Placement, directory_errors
from shiftergw.plumbing.files import free_space
from shiftergw.ports import DeltaSource, FileAccess, InstalledFile, Report, Verification

if TYPE_CHECKING:
    from pathlib import Path

    from shiftergw.delivery.stripes import LocalStripes
    from shiftergw.plumbing.threads import Threads


class LocalDirectory:
    """Implement the port `ImageDirectory` with renames within one directory."""

    def __init__(
        self,
        directory: Path,
        threads: Threads,
        stripes: LocalStripes | None = None,
        hang_seconds: float = HANG_SECONDS,
        *,
        may_link: bool = True,
    ) -> None:
        """Deliver into `directory`, which must exist: it belongs to the site.

        `stripes` creates the files that large images are copied into. A call that hangs for
        `hang_seconds` raises `SystemUnavailable`; its thread, one of `threads`, is abandoned.
        Without `may_link` each image is a copy, which has an access of its own (`set_access`).
        """
        self._directory = directory
        self._calls = DiskCalls(str(directory), threads, hang_seconds)
        self._stripes = stripes
        self._may_link = may_link

    async def reach(self) -> None:
        """See the port: this class keeps no record of earlier failures."""

    async def probe(self, content: bytes) -> None:
        """See the port."""
        path = self._directory / probe_name()
        with directory_errors():
            await self._calls.run_long(partial(local_files.write_and_remove, content, path))

    async def close(self) -> None:
        """See the port: this class keeps nothing open."""

    async def free_space(self) -> int:
        """Return the bytes that an unprivileged user may still write."""
        with directory_errors():
            return await self._calls.run(free_space, self._directory)

    async def exists(self, name: str) -> InstalledFile | None:
        """Return the installed file, or None; a symlink, or anything but a file, is ignored."""
        with directory_errors():
            return await self._calls.run(local_files.installed_file, self._path(name))

    async def install(
        self,
        source: Path,
        name: str,
        sha256: str,
        report: Report,
        delta: DeltaSource | None = None,
    ) -> Verification:
        """See the port. On the same file system the installed file may be a hard link.

        A file with a layout over several OSTs is a copy: its layout is fixed when it is created.
        """
        if delta is not None:
            check_installed_name(delta.name)
        placement = Placement(source, self._path(name), sha256, delta)
        await placement.run(self._calls, report, stripes=self._stripes, may_link=self._may_link)
        return Verification("sha256")

    async def set_access(self, name: str, access: FileAccess) -> bool:
        """See the port. A file that is a hard link shares its access with the converted file."""
        with directory_errors():
            return await self._calls.run(set_local_access, self._path(name), access)

    async def write(self, content: bytes, name: str) -> None:
        """See the port."""
        with directory_errors():
            await self._calls.run_long(partial(local_files.write_file, content, self._path(name)))

    async def read(self, name: str, limit: int) -> bytes | None:
        """See the port."""
        with directory_errors():
            return await self._calls.run(local_files.read_file, self._path(name), limit)

    async def head(self, name: str, size: int) -> bytes:
        """See the port."""
        with directory_errors():
            return await self._calls.run(local_files.read_prefix, self._path(name), size)

    async def remove(self, name: str) -> None:
        """See the port."""
        with directory_errors():
            await self._calls.run(local_files.remove_file, self._path(name))

    async def list(self) -> list[InstalledFile]:
        """Return the installed images and metadata, sorted by name."""
        with directory_errors():
            return await self._calls.run_long(partial(local_files.list_installed, self._directory))

    async def digest(self, name: str) -> str:
        """Return the SHA-256 of an installed file."""
        with directory_errors():
            return await self._calls.run_long(partial(local_files.digest_file, self._path(name)))

    async def sweep(self, before: float) -> int:
        """Remove temporaries that were last written before this time; return how many."""
        with directory_errors():
            sweep = partial(local_files.sweep_temporaries, self._directory, before)
            return await self._calls.run_long(sweep)

    def _path(self, name: str) -> Path:
        check_installed_name(name)
        return self._directory / name
