"""Small fixed programs that run on a system, by the shell of the gateway's account there.

A program is a text of ours; what it works on are its parameters `$1`, `$2` and so on, never a part
of the text. Between us and it stands the account's own shell, whichever that is, and what its
start-up files print: `FramedOutput` tells the program's own output from that.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from shiftergw.delivery.remote_program import Program, malformed, started
from shiftergw.errors import DeliveryFailed, TimedOut, printable
from shiftergw.plumbing.channel import Away, HostFull, stopped_answering
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.plumbing.channel import Connection

P = TypeVar("P", bound=Program)

OUTPUT_LIMIT = 4096
"""Bytes that a program may print, if nothing else is said."""


class Output(Program):
    """A program whose output is short enough to be kept."""

    def __init__(self, limit: int) -> None:
        """Keep so many bytes, and end the program at one more."""
        super().__init__()
        self.said = bytearray()
        self._limit = limit

    def take(self, data: bytes) -> None:
        """Keep it."""
        self.said += data
        if len(self.said) > self._limit:
            raise malformed(f"more than {self._limit} bytes: {printable(bytes(self.said[:100]))}")


class Shell:
    """Runs programs over a connection; every failure but `SftpRefused` ends it."""

    def __init__(self, connection: Connection, clock: IReactorTime, idle_seconds: float) -> None:
        """Give a system up that owes an answer for `idle_seconds`; nothing runs yet."""
        self.idle_seconds = idle_seconds
        self._connection = connection
        self._clock = clock
        self._running: set[Program] = set()
        self._error: DeliveryFailed | None = None

    @property
    def usable(self) -> bool:
        """Say whether it is not over."""
        return self._error is None and self._connection.usable

    def close(self) -> None:
        """End every program that runs, and run no more."""
        self._fail(DeliveryFailed("The connection to the system was closed."))

    async def run(
        self,
        text: str,
        *words: bytes,
        given: bytes = b"",
        limit: int = OUTPUT_LIMIT,
        seconds: float = 0,
    ) -> bytes:
        """Return what a program prints, within `seconds` if that is more than the idle limit."""
        async with self.started(Output(limit), text, *words) as program:
            program.give(given)
            seconds = max(seconds, self.idle_seconds)
            await within(seconds, self._clock, program.finished(), timed_out)
        return bytes(program.said)

    @asynccontextmanager
    async def started(self, program: P, text: str, *words: bytes) -> AsyncIterator[P]:
        """Start a program while the block lives; its errors leave the block as they are."""
        if self._error is not None:
            raise copy.copy(self._error)
        try:
            async with started(self._connection, self._clock, program, text, *words):
                self._running.add(program)
                yield program
        except HostFull:
            raise
        except DeliveryFailed as error:
            self._fail(error)
            raise
        finally:
            self._running.discard(program)

    def _fail(self, error: DeliveryFailed) -> None:
        """Be over, once."""
        if self._error is None:
            self._error = error
            for program in list(self._running):
                program.end(copy.copy(error))


async def run_once(
    connection: Connection,
    clock: IReactorTime,
    text: str,
    *words: bytes,
    seconds: float,
) -> bytes:
    """Run a shell program that reads nothing, without a `Shell`; return what it prints.

    Raises `SftpRefused` with its exit status, `NoCommands` if it never began, `TimedOut` if it did
    not end in time, and `DeliveryFailed`.
    """

    def late() -> TimedOut:
        if program.frame.has_begun:
            return TimedOut("A program on the system did not end in time.")
        noise = printable(program.frame.noise)
        return TimedOut("A program on the system did not begin in time.", detail=noise)

    program = Output(OUTPUT_LIMIT)

    async def run() -> None:
        async with started(connection, clock, program, text, *words):
            program.give(b"")
            await program.finished()

    await within(seconds, clock, run(), late)
    return bytes(program.said)


def timed_out() -> Away:
    """Return the error for a program on the system that exceeded its time limit."""
    return stopped_answering("a program on the system did not end in time")
