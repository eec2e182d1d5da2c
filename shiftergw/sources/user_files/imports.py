"""Read the file that a user imports, as this user may read it.

With the site's `ImportCommand` a program reads the file as the user (such as `sudo -n -u`) and
prints it. Without it, only files are read that everybody may read (`public_files`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import (
    ChildFailed,
    ImageNotFound,
    ImageTooLarge,
    NotAllowed,
    PullError,
    TimedOut,
    amount,
    printable,
)
from shiftergw.model.records import Progress
from shiftergw.model.uploads import ImageFile
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.plumbing.disk_errors import check_room, translated_disk_errors
from shiftergw.plumbing.process import Command, run_command
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Report
from shiftergw.sources.user_files.public_copy import STEP, FileCopy
from shiftergw.sources.user_files.public_files import check_path, open_public_file

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

STEPS = 2
"""Steps of imports that run, or hang, at the same time in one worker."""

STEP_SECONDS = 60.0
"""Seconds that a step of an import may take: to open the file, or to read and write 4 MiB."""

DISK_RESERVE = 1 << 30
"""Bytes that an import leaves free on the worker's disk."""

DISK_IS_FULL = "The worker's disk for uploads is full."

LOOK_SECONDS = 0.5
"""Seconds between two looks at the size of what a command prints."""

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}\$?", re.ASCII)
"""Names of users that become an argument of a command: none begins with a dash."""


def check_user(user: str) -> None:
    """Raise `NotAllowed` for a name that must not become an argument of a command."""
    if _USER.fullmatch(user) is None:
        raise NotAllowed(f"Files of {printable(user, 60)!r} cannot be imported: an unusual name.")


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

        Raises `ImageNotFound` with the end of what the command prints, `PullError` if it does not
        run at all, `ImageTooLarge`, `NoSpace`, and `TimedOut`, also if the file system does not
        answer.
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
                await self._run(arguments, descriptor, copy.parent, report)
            else:
                await self._copy_public(file.path, descriptor, copy.parent, report)
        finally:
            await self.threads.release(os.close, descriptor)

    async def _run(
        self, arguments: list[str], descriptor: int, directory: Path, report: Report
    ) -> None:
        """Run the command with its output in a file; end it if the file grows too large."""
        command = Command(arguments, self.environ, stdout=descriptor, total=self.seconds)
        running = Deferred.fromCoroutine(run_command(command, self.reactor, self.reactor))
        refusals: list[PullError] = []

        async def check_size() -> None:
            count = (await self.threads.run(os.fstat, descriptor)).st_size
            report(Progress("PULLING", count, 0))
            if count > self.limit:
                raise self._too_large()
            await self._check_room(directory)

        async def watch() -> None:
            try:
                while not running.called:
                    await pause(LOOK_SECONDS, self.reactor)
                    await check_size()
            except PullError as error:
                refusals.append(error)
                running.cancel()

        watching = Deferred.fromCoroutine(watch())
        watching.addErrback(lambda failure: failure.trap(CancelledError) and None)
        try:
            await running
        except CancelledError:
            if refusals:
                raise refusals[0] from None
            raise
        except ChildFailed as error:
            await check_size()  # a program that cannot write fails as well
            raise _command_error(error) from error
        finally:
            watching.cancel()
        await check_size()

    async def _copy_public(
        self, path: str, descriptor: int, directory: Path, report: Report
    ) -> None:
        """Copy in steps of limited time: the user chooses the file system, and it may hang."""
        file = FileCopy(partial(open_public_file, path), descriptor)
        count = 0
        try:
            with _disk_errors():
                while size := await self.calls.run(file.step):
                    count += size
                    if count > self.limit:
                        raise self._too_large()
                    await self._check_room(directory)
                    report(Progress("PULLING", count, 0))
        finally:
            await self.threads.release(file.close)

    async def _check_room(self, directory: Path) -> None:
        """Raise `NoSpace` before the disk is full: other jobs of this machine need it, too."""
        with _disk_errors():
            await self.threads.run(check_room, directory, STEP + DISK_RESERVE, DISK_IS_FULL)

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


def _command_error(error: ChildFailed) -> PullError:
    """Return whose fault it is: without an exit code the site's program has read nothing."""
    detail = f"{error.what} {error.detail}".strip()
    if error.exit_code is None:
        return PullError(
            "The site's program that reads files for users (ImportCommand) does not run.",
            remedy="Tell the site's support, or upload the file with `shiftergw import FILE NAME`.",
            detail=detail,
        )
    return ImageNotFound(
        "The file cannot be read as you.",
        remedy="Check its path and that you may read it, or upload it with"
        " `shiftergw import FILE NAME`.",
        detail=detail,
    )


def _disk_errors() -> AbstractContextManager[None]:
    return translated_disk_errors(
        DISK_IS_FULL,
        lambda _: PullError("The worker cannot read the file, or write its copy."),
    )
