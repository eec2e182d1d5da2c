"""Run small fixed programs on a system, through the shell of the gateway's account.

A program is a text of this package. Its arguments are the parameters `$1`, `$2` and so on; they are
never inserted into the text. The login shell of the account, whichever it is, passes the text on;
`FramedOutput` separates the output of the program from what the shell's start-up files print.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from shiftergw.delivery.remote_program import RemoteProgram, invalid_reply, running_program
from shiftergw.errors import DeliveryFailed, TimedOut, printable
from shiftergw.plumbing.channel import HostFull, SystemUnavailable, stopped_answering
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.channel import Connection

ProgramT = TypeVar("ProgramT", bound=RemoteProgram)

OUTPUT_LIMIT = 4096
"""Bytes that a program may print unless the caller sets another limit."""


class OutputProgram(RemoteProgram):
    """A program whose output is short enough to be kept in memory."""

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` bytes of output; end the program if it prints more."""
        super().__init__()
        self.output = bytearray()
        self._limit = limit

    def take(self, data: bytes) -> None:
        """Append the output."""
        self.output += data
        if len(self.output) > self._limit:
            raise invalid_reply(
                f"more than {self._limit} bytes: {printable(bytes(self.output[:100]))}"
            )


class RemoteShell:
    """Run programs over a connection. `DeliveryFailed` from a program or its block ends the shell.

    Two errors do not end it: a program's `SftpRefused`, and `HostFull`.
    """

    def __init__(self, connection: Connection, clock: IReactorTime, idle_seconds: float) -> None:
        """Run nothing yet; `idle_seconds` is the longest wait for an answer."""
        self.idle_seconds = idle_seconds
        self._connection = connection
        self._clock = clock
        self._programs: set[RemoteProgram] = set()
        self._error: DeliveryFailed | None = None

    @property
    def usable(self) -> bool:
        """Return whether further programs can be run."""
        return self._error is None and self._connection.usable

    def close(self) -> None:
        """End every running program, and run no more."""
        self._fail(DeliveryFailed("The connection to the system was closed."))

    async def run(
        self,
        text: str,
        *words: bytes,
        stdin: bytes = b"",
        limit: int = OUTPUT_LIMIT,
        seconds: float = 0,
    ) -> bytes:
        """Return the output of a program.

        It may take `seconds`, or `idle_seconds` if that is more, and print `limit` bytes.
        """
        async with self.running(OutputProgram(limit), text, *words) as program:
            program.send_input(stdin)
            seconds = max(seconds, self.idle_seconds)
            await within(seconds, self._clock, program.wait_for_end(), program_timed_out)
        return bytes(program.output)

    @asynccontextmanager
    async def running(self, program: ProgramT, text: str, *words: bytes) -> AsyncIterator[ProgramT]:
        """Start a program and yield it; end it when the block ends.

        An error of the block is raised unchanged.
        """
        if self._error is not None:
            raise copy.copy(self._error)
        try:
            async with running_program(self._connection, self._clock, program, text, *words):
                self._programs.add(program)
                yield program
        except HostFull:
            raise
        except DeliveryFailed as error:
            self._fail(error)
            raise
        finally:
            self._programs.discard(program)

    def _fail(self, error: DeliveryFailed) -> None:
        """End all running programs with this error; only the first call has an effect."""
        if self._error is None:
            self._error = error
            for program in list(self._programs):
                program.end(copy.copy(error))


async def run_once(
    connection: Connection,
    clock: IReactorTime,
    text: str,
    *words: bytes,
    seconds: float,
) -> bytes:
    """Run a shell text without input and without a `RemoteShell`; return its output.

    Raises `SftpRefused` with its exit status, `NoCommands` if it never began, `TimedOut` if it did
    not end in time, and `DeliveryFailed`.
    """

    def timeout_error() -> TimedOut:
        if program.frame.has_begun:
            return TimedOut("A program on the system did not end in time.")
        noise = printable(program.frame.noise)
        return TimedOut("A program on the system did not begin in time.", detail=noise)

    program = OutputProgram(OUTPUT_LIMIT)

    async def run() -> None:
        async with running_program(connection, clock, program, text, *words):
            program.send_input(b"")
            await program.wait_for_end()

    await within(seconds, clock, run(), timeout_error)
    return bytes(program.output)


def program_timed_out() -> SystemUnavailable:
    """Return the error for a program on the system that exceeded its time limit."""
    return stopped_answering("a program on the system did not end in time")
