"""Run `mksquashfs` on a stream: its version, its arguments, its end.

The tar goes through a pipe whose one end is the child's standard input and whose other end is
written by a thread; bulk data never passes through the reactor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from threading import Event
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred

from shiftergw.build.archive_flow import IDLE_LIMIT, ArchiveFlow, IdleGuard
from shiftergw.errors import (
    ChildFailed,
    ConfigurationError,
    ConversionFailed,
    NoSpace,
    PullError,
    TimedOut,
    printable,
)
from shiftergw.oci.tree import LATEST_MTIME
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.process import Command, CommandOutput, run_command
from shiftergw.plumbing.timing import ticking

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorProcess, IReactorTime

    from shiftergw.model.build_options import SquashOptions
    from shiftergw.plumbing.threads import Threads

MINIMUM = (4, 5)
"""The first version that reads a tar."""

WriteArchive = Callable[[int, Event, Callable[[int, int], None]], None]
"""Writes an archive into a descriptor until the event is set, and reports its progress.

The progress is the bytes of files, or of whatever its caller counts, and those of the archive.
"""

_STDERR_SHOWN = 1000  # characters

# Messages of `mksquashfs` when it leaves a file out of the result, and then exits with 0.
_LEFT_OUT = re.compile(
    "Could not resolve hardlink|already exists in the tar|truncating!|Unhandled tar type"
    "|Empty tar filename"
)
_NO_SPACE = re.compile("No space left|out of space|Disk quota exceeded", re.IGNORECASE)
_NO_MEMORY = re.compile("Out of memory|more physical memory|Cannot allocate memory", re.IGNORECASE)


async def version(binary: str, reactor: IReactorProcess, clock: IReactorTime) -> tuple[int, ...]:
    """Return the version of this `mksquashfs`, as (4, 5, 1); raise `ConfigurationError`."""
    try:
        output = await run_command(
            Command([binary, "-version"], _environment(), total=10), reactor, clock
        )
    except (ChildFailed, TimedOut) as error:
        raise ConfigurationError(
            error.what,
            remedy="Install squashfs-tools 4.5 or newer, or name the program under `Mksquashfs`.",
            detail=printable(error.detail),
        ) from error
    match = re.search(rb"mksquashfs version (\d+(?:\.\d+)+)", output.stdout)
    if match is None:
        raise ConfigurationError(
            f"{binary} does not say which version of mksquashfs it is.",
            remedy="Name a mksquashfs 4.5 or newer under `Mksquashfs`.",
            detail=printable(output.stdout),
        )
    return tuple(int(part) for part in match[1].split(b"."))


def check_version(numbers: tuple[int, ...]) -> str:
    """Return a warning about a version in one line, or an empty text.

    Raises `ConfigurationError` for a version that cannot read tars.
    """
    text = ".".join(map(str, numbers))
    if numbers < MINIMUM:
        raise ConfigurationError(
            f"mksquashfs {text} cannot read a tar: 4.5 or newer is needed.",
            remedy="Enterprise Linux 8 and 9 ship older ones: build squashfs-tools 4.5 or newer"
            " there and name the program under `Mksquashfs`.",
        )
    if (4, 7) <= numbers <= (4, 7, 5):
        return (
            f"mksquashfs {text} has data races in its search for duplicates, which the gateway does"
            " not use; another version is safer."
        )
    return ""


def has_link_race(numbers: tuple[int, ...]) -> bool:
    """Return whether this version rarely crashes at hard links of a tar, by a use after free."""
    return (4, 5, 1) <= numbers <= (4, 7, 5)


def arguments(options: SquashOptions, output: Path) -> list[str]:
    """Return the arguments of the program; `extra` is last, so it overrides the others.

    `mksquashfs` does not look for duplicates. Version 4.5.1 writes wrong data without any error if
    files have equal leading blocks and different tails (the blocks of the second file are taken
    back while other data is being written there), 4.7 has data races in the same search, and the
    search is quadratic in the number of files of one size. The price is 3 % of the size of a
    Debian system.
    """
    argv = ["-", str(output), "-tar", "-noappend", "-no-progress", "-quiet"]
    argv += ["-all-root", "-no-xattrs", "-root-mode", "755", "-no-duplicates"]
    return [*argv, *options.arguments, *options.extra]


def _environment(epoch: int | None = None) -> dict[str, str]:
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    if epoch is not None:
        env["SOURCE_DATE_EPOCH"] = str(min(max(epoch, 0), LATEST_MTIME))
    return env


def _explain(error: ChildFailed) -> PullError:
    """Return the error for the user and the site after a failed `mksquashfs`."""
    detail = printable(error.detail.strip().replace("\n", "; "), _STDERR_SHOWN)
    if _NO_SPACE.search(error.detail):
        return NoSpace("The gateway has no disk space left for the converted image.", detail=detail)
    if _NO_MEMORY.search(error.detail):
        return ConversionFailed("mksquashfs had too little memory.", detail=detail)
    if error.signal == SIGKILL:
        return ConversionFailed(
            "mksquashfs was killed from outside, perhaps because memory ran out.", detail=detail
        )
    if error.signal is not None:
        return ConversionFailed(f"mksquashfs was killed by signal {error.signal}.", detail=detail)
    if error.exit_code is not None:
        return ConversionFailed(f"mksquashfs failed with code {error.exit_code}.", detail=detail)
    return ConversionFailed("mksquashfs cannot be started.", detail=error.what)


@dataclass(frozen=True, slots=True)
class Mksquashfs:
    """One `mksquashfs` program, with the threads, reactor and clock to run it."""

    binary: str
    threads: Threads
    reactor: IReactorProcess
    clock: IReactorTime

    async def run(
        self,
        argv: Sequence[str],
        epoch: int | None,
        output: Path,
        write: WriteArchive,
        report: Callable[[int], None],
        writers: Threads | None = None,
        note_work: Callable[[], None] = lambda: None,
    ) -> None:
        """Run the program on an archive that `write` writes into a descriptor, in a thread.

        `epoch` is the latest time that the result may show: without it no two runs are alike,
        unless `argv` sets all times. `writers` are threads for a `write` that waits for a download;
        then the program is not idle while it has nothing to read. `write` also gets an event that
        stops it, and a function for its progress, whose first number `report` gets on the reactor's
        thread. `note_work` is called there while the program reads, writes or computes. Raises
        `ConversionFailed`, `NoSpace` and the errors of `write`. After an error neither the program
        nor `write` runs any longer, but a part of `output` may remain.
        """
        flow = ArchiveFlow(may_pause=writers is not None)
        running = Deferred.fromCoroutine(
            self._run_both([self.binary, *argv], epoch, write, flow, writers or self.threads)
        )
        guard = IdleGuard(flow, output, self.threads, self.clock, running.cancel, note_work)

        def look() -> None:
            report(flow.done)
            guard.look()

        try:
            with ticking(1.0, self.clock, look):
                result = await running
        except CancelledError:
            if guard.has_stopped:
                raise ConversionFailed(
                    f"mksquashfs made no progress for {IDLE_LIMIT / 60:g} minutes and was stopped."
                ) from None
            raise
        report(flow.done)
        complaint = _LEFT_OUT.search(result.stderr.decode("utf-8", "backslashreplace"))
        if complaint is not None:
            raise ConversionFailed(
                "mksquashfs left something out of the image.", detail=printable(result.stderr)
            )

    async def _run_both(
        self,
        argv: Sequence[str],
        epoch: int | None,
        write: WriteArchive,
        flow: ArchiveFlow,
        writers: Threads,
    ) -> CommandOutput:
        """Run the program and the thread that writes its standard input; return its output."""
        reading, writing = os.pipe()

        async def child() -> CommandOutput:
            command = Command(argv, _environment(epoch), stdin=reading)
            running = Deferred.fromCoroutine(
                run_command(command, self.reactor, self.clock, on_start=flow.start)
            )
            os.close(reading)
            try:
                return await running
            except ChildFailed as error:
                raise _explain(error) from error

        async def writer() -> None:
            # Closed here: were it closed while the reason is still on its way here, the child's
            # complaint about a short stream could be there first.
            with flow.through(writing), suppress(BrokenPipeError):
                # A child that has closed its end says why by its own end.
                await writers.run_until(flow.stop.set, write, writing, flow.stop, flow.report)

        output, _ = await gather_or_cancel([child(), writer()])
        assert output is not None
        return output
