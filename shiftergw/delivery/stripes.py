"""Large images over several storage targets (OSTs) of Lustre: all nodes of a job read them at once.

`lfs setstripe` makes an empty file, laid out as it is told; an image's bytes then go into that. It
is run on the side where the file lies. Where there is no `lfs`, no Lustre, or no way to run
commands, images are as the file system lays them out by itself: the log says so, once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

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

    from shiftergw.delivery.files import Files
    from shiftergw.plumbing.channel import Connection
    from shiftergw.plumbing.threads import Threads

WORTHWHILE = 16 << 20
"""Bytes of the smallest file that is better read from several OSTs than from one."""

SECONDS = 30.0
"""Time that `lfs` may take."""

# It would let everybody read the file: who has opened it by then reads what is written later.
_SETSTRIPE = 'umask 077 && exec lfs setstripe -c "$1" "$2"'


class Stripes:
    """Makes the files of one image directory over `count` OSTs each; -1: over all of them."""

    _log = Logger()

    def __init__(self, count: int) -> None:
        """Make files by `lfs`, unless `count` is 0."""
        self._count = count
        self._told = False

    def wanted(self, size: int) -> bool:
        """Say whether a file of so many bytes is to be laid out."""
        return self._count != 0 and size >= WORTHWHILE

    async def make_there(
        self, files: Files, connection: Connection, path: bytes, clock: IReactorTime
    ) -> bool:
        """Make an empty file on a system, in place of what is there; say whether it is as asked.

        If not, something else may lie there. Raises `SftpRefused` and `DeliveryFailed` as `files`
        does.
        """

        async def run() -> None:
            count = b"%d" % self._count
            try:
                await run_once(connection, clock, _SETSTRIPE, count, path, seconds=SECONDS)
            except SftpRefused as refused:
                raise DeliveryFailed("lfs failed.", detail=str(refused)) from refused

        await files.remove(path)
        there = path.decode("utf-8", "surrogateescape")
        return await self._make(there, run, lambda: files.lstat(path))

    async def make_here(
        self, path: Path, calls: DiskCalls, env: Mapping[str, str], reactor: Any
    ) -> bool:
        """Make an empty file on this machine, where nothing is; say whether it is as asked.

        If not, something else may lie there. Raises `OSError`, and `Away` if the disk hangs.
        """

        async def run() -> None:
            argv = ["sh", "-c", _SETSTRIPE, "sh", str(self._count), str(path)]
            await run_command(Command(argv, env, total=SECONDS), reactor, reactor)

        return await self._make(str(path), run, lambda: calls.run(_lstat, path))

    async def _make(
        self,
        path: str,
        run: Callable[[], Awaitable[None]],
        look: Callable[[], Awaitable[Attributes | None]],
    ) -> bool:
        try:
            await run()
        except (ChildFailed, DeliveryFailed, TimedOut) as error:
            self._tell(path, f"{error.what} {printable(error.detail)}")
            return False
        found = await look()
        if found is None or found.size != 0 or found.mode != stat.S_IFREG | MODE:
            self._tell(path, "lfs made no empty file that its owner alone can read.")
            return False
        return True

    def _tell(self, path: str, why: str) -> None:
        if not self._told:
            self._told = True
            self._log.info(
                "images in {directory} are not striped over OSTs: {why}",
                directory=printable(os.path.dirname(path)),  # noqa: PTH120 - a path elsewhere
                why=why,
            )


class LocalStripes:
    """Makes the files of an image directory of this machine."""

    def __init__(self, count: int, threads: Threads, env: Mapping[str, str], reactor: Any) -> None:
        """Make files by the `lfs` in the PATH of `env`; as `Stripes`."""
        self._stripes = Stripes(count)
        self._calls = DiskCalls("striped image directory", threads)
        self._env = env
        self._reactor = reactor

    async def make(self, path: Path, size: int) -> bool:
        """Make the file that `size` bytes are to go into, if they are enough; as `make_here`.

        Nothing lies there if it is not as asked.
        """
        if not self._stripes.wanted(size):
            return False
        made = False
        try:
            made = await self._stripes.make_here(path, self._calls, self._env, self._reactor)
        finally:
            if not made:
                await self._calls.run(path.unlink, missing_ok=True)
        return made


def _lstat(path: Path) -> Attributes | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return Attributes(status.st_size, status.st_mode, int(status.st_mtime))
