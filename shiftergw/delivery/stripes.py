"""Lay out large images over several storage targets (OSTs) of Lustre.

All nodes of a job read an image at the same time. `lfs setstripe` creates an empty file with a
layout, into which the image is then written; it runs on the machine that has the file system. If
there is no `lfs`, no Lustre, or no way to run commands, images get the default layout of the file
system, and the log says so once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from twisted.logger import Logger

from shiftergw.delivery.disk_calls import DiskCalls
from shiftergw.delivery.files import MODE
from shiftergw.delivery.shell import run_once
from shiftergw.errors import ChildFailed, DeliveryFailed, TimedOut, printable
from shiftergw.plumbing.process import Command, run_command
from shiftergw.sftp.packets import Attributes, SftpRefused

if TYPE_CHECKING:
    from pathlib import Path

    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import RemoteFiles
    from shiftergw.plumbing.channel import Connection
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads

MIN_STRIPED_BYTES = 16 << 20
"""Bytes of the smallest file that is read faster from several OSTs than from one."""

LFS_SECONDS = 30.0
"""Seconds that `lfs` may take."""

# Without umask another user could open the empty file, and later read the image through it.
_SETSTRIPE = 'umask 077 && exec lfs setstripe -c "$1" "$2"'


class Stripes:
    """Create files of one image directory that are laid out over several OSTs."""

    _log = Logger()

    def __init__(self, count: int) -> None:
        """Use `count` OSTs for each file; -1: all of them; 0: create no files."""
        self._count = count
        self._has_logged = False

    def applies_to(self, size: int) -> bool:
        """Return whether a file of this size in bytes gets a layout."""
        return self._count != 0 and size >= MIN_STRIPED_BYTES

    async def make_remote_file(
        self, files: RemoteFiles, connection: Connection, path: bytes, clock: IReactorTime
    ) -> bool:
        """Replace a file on a system by an empty one with the layout; return whether that worked.

        If not, a file without the layout may be left. Raises `SftpRefused` and `DeliveryFailed`
        as `files` does.
        """

        async def run() -> None:
            count = b"%d" % self._count
            try:
                await run_once(connection, clock, _SETSTRIPE, count, path, seconds=LFS_SECONDS)
            except SftpRefused as refusal:
                raise DeliveryFailed("lfs failed.", detail=str(refusal)) from refusal

        await files.remove(path)
        text = path.decode("utf-8", "surrogateescape")
        return await self._make(text, run, lambda: files.lstat(path))

    async def make_local_file(
        self, path: Path, calls: DiskCalls, env: Mapping[str, str], reactor: Reactor
    ) -> bool:
        """Create an empty file with the layout on this machine; return whether that worked.

        If not, a file without the layout may be left. Raises `OSError`, and `SystemUnavailable` if
        the disk hangs.
        """

        async def run() -> None:
            argv = ["sh", "-c", _SETSTRIPE, "sh", str(self._count), str(path)]
            await run_command(Command(argv, env, total=LFS_SECONDS), reactor, reactor)

        return await self._make(str(path), run, lambda: calls.run(_lstat, path))

    async def _make(
        self,
        path: str,
        run: Callable[[], Awaitable[None]],
        lstat: Callable[[], Awaitable[Attributes | None]],
    ) -> bool:
        """Create a file with `run`; return whether `lstat` then finds an empty private file."""
        try:
            await run()
        except (ChildFailed, DeliveryFailed, TimedOut) as error:
            self._log_once(path, f"{error.what} {printable(error.detail)}")
            return False
        attributes = await lstat()
        is_private = attributes is not None and attributes.mode == stat.S_IFREG | MODE
        if attributes is None or attributes.size != 0 or not is_private:
            self._log_once(path, "lfs made no empty file that its owner alone can read.")
            return False
        return True

    def _log_once(self, path: str, why: str) -> None:
        if not self._has_logged:
            self._has_logged = True
            self._log.info(
                "images in {directory} are not striped over OSTs: {why}",
                directory=printable(os.path.dirname(path)),  # noqa: PTH120 - perhaps a path on a system
                why=why,
            )


class LocalStripes:
    """Create the files of an image directory of this machine with a layout."""

    def __init__(
        self, count: int, threads: Threads, env: Mapping[str, str], reactor: Reactor
    ) -> None:
        """Create files over `count` OSTs with the `lfs` in the PATH of `env`."""
        self._stripes = Stripes(count)
        self._calls = DiskCalls("striped image directory", threads)
        self._env = env
        self._reactor = reactor

    async def make(self, path: Path, size: int) -> bool:
        """Create an empty file with the layout if `size` is large enough; return whether it exists.

        Without the layout no file is left. Raises `OSError`, and `SystemUnavailable` if the disk
        hangs.
        """
        if not self._stripes.applies_to(size):
            return False
        has_layout = False
        try:
            has_layout = await self._stripes.make_local_file(
                path, self._calls, self._env, self._reactor
            )
        finally:
            if not has_layout:
                await self._calls.run(path.unlink, missing_ok=True)
        return has_layout


def _lstat(path: Path) -> Attributes | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return Attributes(status.st_size, status.st_mode, int(status.st_mtime))
