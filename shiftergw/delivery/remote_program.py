"""Run fixed shell texts on a system, with `sh`, behind the login shell of the account.

The exit status of a text is 0, or 100 plus a status of `SftpRefused`; other programs have their own
statuses. The status is part of the output (`FramedOutput`), because a forced command need not pass
on the exit status of the channel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from shiftergw.delivery.framed_output import FramedOutput, TooMuchNoise
from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.channel import FULL_BACKOFF, HostFull, SystemUnavailable, UnexplainedExit
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from shiftergw.plumbing.channel import Channel, Connection

LAST_SECONDS = 2.0
"""Seconds for which a channel may stay open after its program: the login shell may be busy."""

_FULL_TRIES = 4
_REFUSAL_OFFSET = 100
_STATUSES = frozenset(
    {packets.NO_SUCH_FILE, packets.PERMISSION_DENIED, packets.FAILURE, packets.UNSUPPORTED}
)


class NoCommands(DeliveryFailed):
    """The account cannot run commands; the detail says what happened instead."""

    def __init__(self, detail: str) -> None:
        """Name as the remedy what a system needs for SCP."""
        super().__init__(
            "The gateway's account on the system runs no commands.",
            remedy='Tell the site\'s support: "transfer": "scp" needs an account that may run'
            ' commands with `sh`; "sftp" does without.',
            detail=detail,
        )


class RemoteProgram(ABC):
    """A program on a system. Subclasses process its output in `take`."""

    _channel: Channel
    _clock: IReactorTime

    def __init__(self) -> None:
        """Prepare a program; `attach` connects it to its channel."""
        self.frame = FramedOutput()
        self._error: DeliveryFailed | SftpRefused | None = None
        self._has_succeeded = False
        self._close_timer: Any = None
        """Closes the channel `LAST_SECONDS` after the end of the program."""
        self._change: Deferred[None] | None = None

    def attach(self, channel: Channel, clock: IReactorTime) -> None:
        """Receive the output and the end of the program from this channel."""
        self._channel, self._clock = channel, clock
        channel.receive(self._on_data)
        channel.closed.addCallbacks(self._on_exit, self._on_failure)

    def send_input(self, data: bytes) -> None:
        """Send the whole input of the program."""
        self._channel.write(data)
        self._channel.end_input()

    def end(self, error: DeliveryFailed) -> None:
        """Close the channel; callers that wait for a result get `error` if there is none yet."""
        if not self._has_succeeded and self._error is None:
            self._error = error
        self._cancel_close_timer()
        self._channel.lose()
        self._wake()

    @abstractmethod
    def take(self, data: bytes) -> None:
        """Process output of the program; raise `DeliveryFailed` if it is invalid."""

    async def wait_for_change(self) -> None:
        """Wait for output or the end of the program; raise its error, if any."""
        self.check()
        self._change = Deferred()
        await self._change
        self.check()

    def check(self) -> None:
        """Raise the error of the program, if any."""
        if self._error is not None:
            raise self._error

    async def wait_for_end(self) -> None:
        """Return when the program has succeeded; raise its error if it has failed."""
        while not self._has_succeeded:
            await self.wait_for_change()
        self.check()

    def _wake(self) -> None:
        change, self._change = self._change, None
        if change is not None and not change.called:
            change.callback(None)

    def _on_data(self, data: bytes) -> None:
        if self._error is not None or self._has_succeeded:
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
        if self.frame.status is not None and self._close_timer is None and self._error is None:
            self._close_timer = self._clock.callLater(LAST_SECONDS, self._close_channel)
        self._wake()

    def _close_channel(self) -> None:
        """End a program whose channel stays open, because another process has its output open."""
        self._channel.lose()
        self._on_exit(None)

    def _cancel_close_timer(self) -> None:
        if self._close_timer is not None and self._close_timer.active():
            self._close_timer.cancel()

    def _on_exit(self, channel_status: int | None) -> None:
        self._cancel_close_timer()
        if self._error is not None or self._has_succeeded:
            return
        stderr = self._channel.stderr
        status = self.frame.status
        if not self.frame.has_begun:
            details = (f"exit status {channel_status}", stderr, printable(self.frame.noise))
            self._error = NoCommands(": ".join(filter(None, details)))
        elif status is None:
            detail = f"a program was killed, exit status {channel_status}: {stderr}"
            self._error = SftpRefused(packets.FAILURE, detail)
        elif status - _REFUSAL_OFFSET in _STATUSES:
            self._error = SftpRefused(status - _REFUSAL_OFFSET, stderr)
        elif status:
            self._error = SftpRefused(packets.FAILURE, f"exit status {status}: {stderr}")
        else:
            self._has_succeeded = True
        self._wake()

    def _on_failure(self, failure: Failure) -> None:
        if self.frame.status is not None:
            self._on_exit(None)
            return
        error = failure.value
        if not isinstance(error, DeliveryFailed):
            error = SystemUnavailable("The connection to the system broke.", detail=repr(error))
        elif isinstance(error, UnexplainedExit) and self.frame.has_begun:
            # The account can run commands, so this is no `NoCommands`, whatever ended the program.
            detail = ": ".join(filter(None, ("a program was killed", error.detail)))
            error = SystemUnavailable(error.what, remedy=error.remedy, detail=detail)
        self.end(error)


@asynccontextmanager
async def running_program(
    connection: Connection, clock: IReactorTime, program: RemoteProgram, text: str, *words: bytes
) -> AsyncIterator[None]:
    """Run the shell text with `words` as `$1`, `$2`, … until the block ends."""
    channel = await _open_command(connection, clock, program.frame.command(text, *words))
    program.attach(channel, clock)
    try:
        yield
    finally:
        program.end(DeliveryFailed("The gateway has ended the program."))


async def _open_command(
    connection: Connection, clock: IReactorTime, argv: Sequence[str]
) -> Channel:
    """Start a program; retry if the host is full: it still counts programs that have just ended."""
    for failures in range(1, _FULL_TRIES + 1):
        with suppress(HostFull):
            return await connection.open_command(argv)
        await FULL_BACKOFF.pause(failures, clock)
    return await connection.open_command(argv)


def invalid_reply(detail: str) -> DeliveryFailed:
    """Return the error for an invalid reply of a program."""
    return DeliveryFailed("A program on the system gave an invalid reply.", detail=detail)
