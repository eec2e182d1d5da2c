"""Programs on a system: fixed shell texts, run by `sh` behind the account's login shell.

The exit status of a text is 0, or 100 plus a status of `SftpRefused`; those of other programs
depend on their makers. It is part of the output (`FramedOutput`), because a forced command need
not pass on the exit status of the channel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from shiftergw.delivery.framed_output import FramedOutput, TooMuchNoise
from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import FULL_BACKOFF, Away, HostFull, UnexplainedExit
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from shiftergw.plumbing.channel import Channel, Connection

LAST_SECONDS = 2.0
"""Seconds from the end of a program to that of its channel: its shell may still be busy."""

_FULL_TRIES = 4
_STATUSES = frozenset(
    {packets.NO_SUCH_FILE, packets.PERMISSION_DENIED, packets.FAILURE, packets.UNSUPPORTED}
)


class NoCommands(DeliveryFailed):
    """The account runs no commands; the detail says what happened instead."""

    def __init__(self, detail: str) -> None:
        """Explain what a system without SFTP needs."""
        super().__init__(
            "The gateway's account on the system runs no commands.",
            remedy='Tell the site\'s support: "transfer": "scp" needs an account that may run'
            ' commands with `sh`; "sftp" does without.',
            detail=detail,
        )


class Program(ABC):
    """A program that runs. Subclasses process its output in `take`."""

    _channel: Channel
    _clock: IReactorTime

    def __init__(self) -> None:
        """Make a program that has not begun."""
        self.frame = FramedOutput()
        self._error: DeliveryFailed | SftpRefused | None = None
        self._ended = False
        self._late_end: Any = None
        self._changed: Deferred[None] | None = None

    def begin(self, channel: Channel, clock: IReactorTime) -> None:
        """Receive the output and the end of the program from this channel."""
        self._channel, self._clock = channel, clock
        channel.receive(self._on_data)
        channel.closed.addCallbacks(self._on_exit, self._on_failure)

    def give(self, data: bytes) -> None:
        """Send the program its whole input."""
        self._channel.write(data)
        self._channel.end_input()

    def end(self, error: DeliveryFailed) -> None:
        """End the program unless it has ended; coroutines that wait for it raise `error`."""
        if not self._ended and self._error is None:
            self._error = error
        self._stop_waiting_for_end()
        self._channel.lose()
        self._wake()

    @abstractmethod
    def take(self, data: bytes) -> None:
        """Process output of the program; raise `DeliveryFailed` if it is invalid."""

    async def changed(self) -> None:
        """Wait for output or the end of the program; raise the error that it ended with."""
        self.check()
        self._changed = Deferred()
        await self._changed
        self.check()

    def check(self) -> None:
        """Raise the error that the program ended with, if any."""
        if self._error is not None:
            raise self._error

    async def finished(self) -> None:
        """Wait for the end of the program; raise the error that it ended with."""
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
            output = self.frame.feed(data)
            if output:
                self.take(output)
        except TooMuchNoise:
            noise = printable(self.frame.noise)
            self.end(NoCommands(f"its start-up files print without end: {noise}"))
        except DeliveryFailed as error:
            self.end(error)
        if self.frame.status is not None and self._late_end is None and self._error is None:
            self._late_end = self._clock.callLater(LAST_SECONDS, self._on_late_end)
        self._wake()

    def _on_late_end(self) -> None:
        """End a program whose channel stays open: another process has its output open."""
        self._channel.lose()
        self._on_exit(None)

    def _stop_waiting_for_end(self) -> None:
        if self._late_end is not None and self._late_end.active():
            self._late_end.cancel()

    def _on_exit(self, channel_status: int | None) -> None:
        self._stop_waiting_for_end()
        if self._error is not None or self._ended:
            return
        stderr = self._channel.stderr
        status = self.frame.status
        if not self.frame.has_begun:
            details = (f"exit status {channel_status}", stderr, printable(self.frame.noise))
            self._error = NoCommands(": ".join(filter(None, details)))
        elif status is None:
            detail = f"a program was killed, exit status {channel_status}: {stderr}"
            self._error = SftpRefused(packets.FAILURE, detail)
        elif status - 100 in _STATUSES:
            self._error = SftpRefused(status - 100, stderr)
        elif status:
            self._error = SftpRefused(packets.FAILURE, f"exit status {status}: {stderr}")
        else:
            self._ended = True
        self._wake()

    def _on_failure(self, failure: Failure) -> None:
        if self.frame.status is not None:
            self._on_exit(None)
            return
        error = failure.value
        if not isinstance(error, DeliveryFailed):
            error = Away("The connection to the system broke.", detail=repr(error))
        elif isinstance(error, UnexplainedExit) and self.frame.has_begun:
            # The account does run commands, whatever ended this one.
            detail = ": ".join(filter(None, ("a program was killed", error.detail)))
            error = Away(error.what, remedy=error.remedy, detail=detail)
        self.end(error)


@asynccontextmanager
async def started(
    connection: Connection, clock: IReactorTime, program: Program, text: str, *words: bytes
) -> AsyncIterator[None]:
    """Run the shell program `text` with `words` while the block lives."""
    channel = await _opened(connection, clock, program.frame.command(text, *words))
    program.begin(channel, clock)
    try:
        yield
    finally:
        program.end(DeliveryFailed("Nobody waits for it any more."))


async def _opened(connection: Connection, clock: IReactorTime, argv: Sequence[str]) -> Channel:
    """Start a program; retry if the host has no room: an ended program counts for a moment."""
    for failures in range(1, _FULL_TRIES + 1):
        with suppress(HostFull):
            return await connection.open_command(argv)
        await FULL_BACKOFF.pause(failures, clock)
    return await connection.open_command(argv)


def malformed(why: str) -> DeliveryFailed:
    """Return the error for an invalid answer."""
    return DeliveryFailed("The system's programs do not answer as they should.", detail=why)
