"""Small fixed programs that run on a system, by the shell of the gateway's account there.

A program is a text of ours; what it works on are its parameters `$1`, `$2` and so on, never a part
of the text. Between us and it stands the account's own shell, whichever that is, and what its
start-up files print: a mark says where the program's own output begins.

How it ends it says by exit statuses of ours, since what other programs say depends on who made
them: 0, or 100 and a status of `Refused`.
"""

from __future__ import annotations

import copy
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from twisted.internet.defer import Deferred

from shiftergw.delivery import sftp_packets as packets
from shiftergw.delivery.channel import Away, Full
from shiftergw.delivery.sftp_packets import Refused
from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.timing import pause, within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from shiftergw.delivery.channel import Channel, Connection

P = TypeVar("P", bound="Program")

OUTPUT_LIMIT = 4096
"""Bytes that a program may print, if nothing else is said."""

_NOISE_LIMIT = 65536
_FULL_PAUSES = (0.05, 0.2, 1.0, 3.0)
_STATUSES = frozenset(
    {packets.NO_SUCH_FILE, packets.PERMISSION_DENIED, packets.FAILURE, packets.UNSUPPORTED}
)
_BEGIN = 'LC_ALL=C; export LC_ALL; echo "$1"; shift; '


class Program(ABC):
    """A program that runs; subclasses `take` what it says. It ends with an error, or without."""

    _channel: Channel
    _clock: IReactorTime

    def __init__(self) -> None:
        """Make one that has not begun."""
        self._mark = b""
        self._noise: bytes | None = b""
        self._error: DeliveryFailed | Refused | None = None
        self._ended = False
        self._changed: Deferred[None] | None = None

    def begin(self, channel: Channel, mark: bytes, clock: IReactorTime) -> None:
        """Listen to what the program says after the mark, and to its end."""
        self._channel, self._mark, self._clock = channel, mark, clock
        channel.receive(self._on_data)
        channel.closed.addCallbacks(self._on_exit, self._on_failure)

    def give(self, data: bytes) -> None:
        """Give the program this as the whole of its input."""
        self._channel.write(data)
        self._channel.end_input()

    def end(self, error: DeliveryFailed) -> None:
        """End the program, unless it has ended, and whoever waits for it."""
        if not self._ended and self._error is None:
            self._error = error
        self._channel.lose()
        self._wake()

    @abstractmethod
    def take(self, data: bytes) -> None:
        """Take what the program says; raise `DeliveryFailed` if it is not what was expected."""

    async def changed(self) -> None:
        """Return when something was heard of the program; raise the error that it ended with."""
        self.check()
        self._changed = Deferred()
        await self._changed
        self.check()

    def check(self) -> None:
        """Raise the error that the program ended with, if it did."""
        if self._error is not None:
            raise self._error

    async def finished(self) -> None:
        """Return when the program has ended as it should."""
        while not self._ended:
            await self.changed()
        self.check()

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.called:
            changed.callback(None)

    def _on_data(self, data: bytes) -> None:
        if self._error is not None or self._ended:
            return
        try:
            data = self._after_mark(data)
            if data:
                self.take(data)
        except DeliveryFailed as error:
            self.end(error)
        self._wake()

    def _after_mark(self, data: bytes) -> bytes:
        if self._noise is None:
            return data
        noise, mark, rest = (self._noise + data).partition(self._mark)
        self._noise = None if mark else noise
        if len(noise) > _NOISE_LIMIT:
            raise _no_commands(f"it prints without end: {printable(noise)}")
        return rest

    def _on_exit(self, status: int | None) -> None:
        said = f": {self._channel.stderr}" if self._channel.stderr else ""
        if self._error is not None:
            return
        if self._noise is not None:
            heard = f" {printable(self._noise)}" if self._noise else ""
            self._error = _no_commands(f"exit status {status}{said}{heard}")
        elif status is None:
            self._error = Refused(packets.FAILURE, f"a program was killed{said}")
        elif status - 100 in _STATUSES:
            self._error = Refused(status - 100, self._channel.stderr)
        elif status:
            self._error = Refused(packets.FAILURE, f"exit status {status}{said}")
        else:
            self._ended = True
        self._wake()

    def _on_failure(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, DeliveryFailed):
            error = Away("The connection to the system broke.", detail=repr(error))
        self.end(error)


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
    """Runs programs over a connection. It is over once one fails by other means than `Refused`."""

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
            await within(seconds, self._clock, program.finished(), silent)
        return bytes(program.said)

    @asynccontextmanager
    async def started(self, program: P, text: str, *words: bytes) -> AsyncIterator[P]:
        """Start a program while the block lives; its errors leave the block as they are."""
        if self._error is not None:
            raise copy.copy(self._error)
        mark = secrets.token_hex(16)
        # Paths go as they came; what is no UTF-8 in them stays as it is.
        parameters = [word.decode("utf-8", "surrogateescape") for word in words]
        try:
            channel = await self._opened(["sh", "-c", _BEGIN + text, "sh", mark, *parameters])
            self._running.add(program)
            program.begin(channel, f"{mark}\n".encode(), self._clock)
            yield program
        except Full:
            raise
        except DeliveryFailed as error:
            self._fail(error)
            raise
        finally:
            if program in self._running:
                self._running.discard(program)
                program.end(DeliveryFailed("Nobody waits for it any more."))

    async def _opened(self, argv: Sequence[str]) -> Channel:
        """Start a program; wait a little where few may run: one that ended counts for a moment."""
        for seconds in _FULL_PAUSES:
            with suppress(Full):
                return await self._connection.open_command(argv)
            await pause(seconds, self._clock)
        return await self._connection.open_command(argv)

    def _fail(self, error: DeliveryFailed) -> None:
        """Be over, once."""
        if self._error is None:
            self._error = error
            for program in list(self._running):
                program.end(copy.copy(error))


def silent() -> Away:
    """Return the error for a system that owes an answer for too long."""
    return Away(
        "The system stopped answering.", detail="a program on the system did not end in time"
    )


def malformed(why: str) -> DeliveryFailed:
    """Return the error for an answer that is none."""
    return DeliveryFailed("The system's programs do not answer as they should.", detail=why)


def _no_commands(detail: str) -> DeliveryFailed:
    return DeliveryFailed(
        "The gateway's account on the system runs no commands.",
        remedy='Tell the site\'s support: "transfer": "scp" needs an account that may run commands'
        ' with `sh`; "sftp" does without.',
        detail=detail,
    )
