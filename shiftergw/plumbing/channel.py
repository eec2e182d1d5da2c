"""Programs on a remote host, and the byte streams to them.

The file protocols (SFTP, SCP) use these interfaces. Our own SSH connection and the site's `ssh` as
a child process implement them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.backoff import Backoff

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IPullProducer, IPushProducer

Buffer = bytes | bytearray | memoryview


class SystemUnavailable(DeliveryFailed):
    """A host or a disk does not answer; another host, or a later attempt, may succeed."""


class UnexplainedExit(SystemUnavailable):
    """`ssh` exited with 255 and no known message: its connection or the remote program failed."""


class HostFull(DeliveryFailed):
    """The host starts no more programs on this connection now; running programs are unaffected."""


class HostBusy(HostFull):
    """The host starts no more programs while other programs of this gateway run on it."""


class ProgramNotStarted(DeliveryFailed):
    """The host does not allow this account to start this program, now or later."""


FULL_BACKOFF = Backoff(0.05, factor=4)
"""The pauses before a program is started again on a host that was full.

A program that has just ended counts for a moment.
"""


def no_answer() -> SystemUnavailable:
    """Return the error for a host that does not answer within a time limit."""
    return SystemUnavailable(
        "The system does not answer.",
        remedy="Try again later; if it lasts, tell the site's support.",
    )


def stopped_answering(detail: str = "") -> SystemUnavailable:
    """Return the error for a host that answered before and now exceeds a time limit."""
    return SystemUnavailable("The system stopped answering.", detail=detail)


class Channel(Protocol):
    """One remote program with its standard input, output and error.

    Written data is buffered here while the remote side is slow, and the producer is paused.
    `closed` fires once, at the end: with the program's exit status; with None if there is no status
    (a subsystem, a signal); with `DeliveryFailed` if the connection ended first or was never made.
    The caller that opened the channel must handle this failure.
    """

    closed: Deferred[int | None]
    stderr: str
    """The end of the program's standard error: one printable line of a few hundred characters."""

    def write(self, data: Buffer) -> None:
        """Send bytes, which must not change afterwards. Does nothing once closed."""
        ...

    def writeSequence(self, data: Iterable[Buffer]) -> None:
        """Send buffers in order, without joining large ones."""
        ...

    def registerProducer(self, producer: IPushProducer | IPullProducer, streaming: bool) -> None:
        """Pause the producer while much data waits to be sent (`IConsumer`)."""
        ...

    def unregisterProducer(self) -> None:
        """Stop pausing and resuming the producer (`IConsumer`)."""
        ...

    def receive(self, data: Callable[[bytes], None], eof: Callable[[], None] | None = None) -> None:
        """Pass the program's output, buffered output first, to `data`; call `eof` at its end."""
        ...

    def end_input(self) -> None:
        """Close the program's standard input once the waiting data is sent."""
        ...

    def lose(self) -> None:
        """Close the channel at once and drop the waiting data; `closed` fires when it is closed."""
        ...


class Connection(Protocol):
    """A connection to a host that starts programs. Opening raises `DeliveryFailed`. Cancellable.

    A broken connection stays broken: its owner must make a new one.
    """

    @property
    def usable(self) -> bool:
        """Return whether the connection is not known to be broken."""
        ...

    @property
    def window(self) -> int:
        """Return how many bytes of one channel can be in flight, if channels share one login.

        Zero means that each channel is a login of its own: further channels cost more than they
        gain.
        """
        ...

    async def open_subsystem(self, name: str) -> Channel:
        """Start a subsystem of the server, such as "sftp"."""
        ...

    async def open_command(self, argv: Sequence[str]) -> Channel:
        """Start a program; each item of `argv` stays one word, whatever characters it has."""
        ...

    async def close(self) -> None:
        """Close every channel, and return when all are closed. Never fails."""
        ...
