"""Read the file that a user imports, as this user may read it.

With the site's `ImportCommand` a program reads the file as the user (such as `sudo -n -u`) and
prints it. Without it, only files are read that everybody may read, below directories that everybody
may enter; they are opened step by step, and no link is followed.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import (
    BadRequest,
    ChildFailed,
    ImageNotFound,
    ImageTooLarge,
    NotAllowed,
    PullError,
    TimedOut,
    amount,
    printable,
)
from shiftergw.model import ImageFile, Progress
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.plumbing.disk_errors import translated_disk_errors
from shiftergw.plumbing.process import Command, run_command
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Report
from shiftergw.sources.user_files.public_copy import FileCopy

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

STEPS = 2
"""Steps of imports that run, or hang, at the same time in one worker."""

STEP_SECONDS = 60.0
"""Seconds that a step of an import may take: to open the file, or to read and write 4 MiB."""

LOOK_SECONDS = 0.5
"""Seconds between two looks at the size of what a command prints."""

PATH_LIMIT = 4096
"""Bytes of a path, as in Linux."""

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}\$?", re.ASCII)
"""Names of users that become an argument of a command: none begins with a dash."""

_ACL = "system.posix_acl_access"
"""The extended attribute of an access control list, which may exclude users."""


def check_path(path: str) -> tuple[str, ...]:
    """Return the components of an absolute path; raise `BadRequest` for any other text."""
    parts = tuple(path.split("/"))[1:]
    is_valid = (
        path.startswith("/")
        and path.isprintable()
        and len(os.fsencode(path)) <= PATH_LIMIT
        and all(part not in {"", ".", ".."} for part in parts)
    )
    if not is_valid:
        raise BadRequest(
            f"{printable(path, 120)!r} is not the absolute path of a file.",
            remedy="Write it from the root, without `..`, `//` and control characters.",
        )
    return parts


def check_user(user: str) -> None:
    """Raise `NotAllowed` for a name that must not become an argument of a command."""
    if _USER.fullmatch(user) is None:
        raise NotAllowed(f"Files of {printable(user, 60)!r} cannot be imported: an unusual name.")


def open_public_file(path: str) -> int:
    """Open a regular file that everybody may read, and return its descriptor. Blocks.

    Raises `NotAllowed`, with the same words for a file that is absent: who may not enter a
    directory does not learn what is in it.
    """
    *directories, name = check_path(path)
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    parent = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for directory in directories:
            child = os.open(directory, os.O_PATH | os.O_DIRECTORY | flags, dir_fd=parent)
            os.close(parent)
            parent = child
            _check_mode(parent, 0o111)
        file = os.open(name, os.O_RDONLY | os.O_NONBLOCK | flags, dir_fd=parent)
    except OSError as error:
        raise _not_public(path) from error
    finally:
        os.close(parent)
    try:
        _check_mode(file, 0o444, regular=True)
    except OSError as error:
        os.close(file)
        raise _not_public(path) from error
    return file


def _check_mode(descriptor: int, bits: int, *, regular: bool = False) -> None:
    """Raise `OSError` unless user, group and all others have a permission.

    With `regular`, anything but a regular file is refused as well.
    """
    mode = os.fstat(descriptor).st_mode
    if mode & bits != bits or (regular and not stat.S_ISREG(mode)) or _has_acl(descriptor):
        raise PermissionError("not for everybody")


_NO_ATTRIBUTE = frozenset({errno.ENODATA, errno.ENOTSUP})


def _has_acl(descriptor: int) -> bool:
    """Return whether a file has an access list; raise `OSError` if that cannot be found out."""
    try:
        # A descriptor of O_PATH has no extended attributes; the link in /proc leads to the file.
        os.getxattr(f"/proc/self/fd/{descriptor}", _ACL)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTE:
            return False
        raise
    return True


def _not_public(path: str) -> NotAllowed:
    return NotAllowed(
        f"The gateway cannot import {printable(path, 200)}: it imports only files that everybody"
        " may read, in directories that everybody may enter, and follows no links.",
        remedy="Upload the file with `shiftergw import FILE NAME`.",
    )


async def check_public_file(path: str, calls: BoundedThreadCalls) -> None:
    """Raise `NotAllowed` unless `open_public_file` opens the file.

    The file system may hang, and users choose it: `calls` limits the threads that it keeps.
    """
    await calls.run(lambda: os.close(open_public_file(path)))


@dataclass(frozen=True, slots=True)
class Imports:
    """Copies files that users import to this machine's scratch space, up to `limit` bytes.

    Without a `command` only public files are read, each step by `calls`. The arguments `{user}`,
    `{uid}` and `{path}` of the command are replaced by the user and the file; no shell sees them.
    It may take `seconds`.
    """

    command: Sequence[str]
    environ: Mapping[str, str]
    limit: int
    seconds: float
    threads: Threads
    calls: BoundedThreadCalls
    reactor: Reactor

    async def read(self, file: ImageFile, uid: int, copy: Path, report: Report) -> None:
        """Copy the file at `file.path`, as the user `file.user` may read it, to `copy`.

        Raises `ImageNotFound` with the end of what the command prints, `ImageTooLarge`, `NoSpace`
        and `TimedOut`, also if the file system does not answer.
        """
        check_path(file.path)
        if self.command:
            check_user(file.user)
        with _disk_errors():
            descriptor = await self.threads.run(
                os.open, copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
        try:
            if self.command:
                values = {"{user}": file.user, "{uid}": str(uid), "{path}": file.path}
                arguments = [values.get(argument, argument) for argument in self.command]
                await self._run(arguments, descriptor, report)
            else:
                await self._copy_public(file.path, descriptor, report)
        finally:
            await self.threads.release(os.close, descriptor)

    async def _run(self, arguments: list[str], descriptor: int, report: Report) -> None:
        """Run the command with its output in a file; end it if the file grows beyond the limit."""
        command = Command(arguments, self.environ, stdout=descriptor, total=self.seconds)
        running = Deferred.fromCoroutine(run_command(command, self.reactor, self.reactor))

        async def size() -> int:
            return (await self.threads.run(os.fstat, descriptor)).st_size

        async def watch() -> None:
            while not running.called:
                await pause(LOOK_SECONDS, self.reactor)
                count = await size()
                report(Progress("PULLING", count, 0))
                if count > self.limit:
                    running.cancel()

        watching = Deferred.fromCoroutine(watch())
        watching.addErrback(lambda failure: failure.trap(CancelledError) and None)
        try:
            await running
        except CancelledError:
            if await size() > self.limit:
                raise self._too_large() from None
            raise
        except ChildFailed as error:
            raise ImageNotFound(
                "The file cannot be read as you.",
                remedy="Check its path and that you may read it, or upload it with"
                " `shiftergw import FILE NAME`.",
                detail=f"{error.what} {error.detail}",
            ) from error
        finally:
            watching.cancel()
        if await size() > self.limit:
            raise self._too_large()

    async def _copy_public(self, path: str, descriptor: int, report: Report) -> None:
        """Copy in steps of limited time: the user chooses the file system, and it may hang."""
        file = FileCopy(partial(open_public_file, path), descriptor)
        count = 0
        try:
            with _disk_errors():
                while size := await self.calls.run(file.step):
                    count += size
                    if count > self.limit:
                        raise self._too_large()
                    report(Progress("PULLING", count, 0))
        finally:
            await self.threads.release(file.close)

    def _too_large(self) -> ImageTooLarge:
        return ImageTooLarge.for_limit(
            f"The file has more than {amount(self.limit)}.", "MaxUploadSize"
        )


def import_calls(threads: Threads) -> BoundedThreadCalls:
    """Return the calls for steps of imports; a file system that hangs keeps only their threads."""
    return BoundedThreadCalls(threads, STEPS, STEP_SECONDS, threads.clock, _no_answer)


def _no_answer() -> TimedOut:
    return TimedOut(
        "The file system of the file to import does not answer.",
        remedy="Try again later, or upload the file with `shiftergw import FILE NAME`.",
    )


def _disk_errors() -> AbstractContextManager[None]:
    return translated_disk_errors(
        "The worker's disk for uploads is full.",
        lambda _: PullError("The worker cannot read the file, or write its copy."),
    )
