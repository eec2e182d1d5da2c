"""Where the file protocols meet the transports: programs on the far side, and byte streams to them.

Two things keep these: our own SSH connection, and the site's `ssh` as a child process.
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


class Away(DeliveryFailed):
    """The host is not there now: down, cut off, silent. Another host or another time may do."""


class UnexplainedExit(Away):
    """`ssh` ended with 255 and no known message: its connection or the far program failed."""


class HostFull(DeliveryFailed):
    """The host starts no more programs on this connection now; those that run go on."""


class HostBusy(HostFull):
    """The host starts no more programs while others of this gateway run on it."""


class ProgramNotStarted(DeliveryFailed):
    """The host starts no such program for this account, now or later."""


FULL_BACKOFF = Backoff(0.05, factor=4)
"""The pauses before a program is started again on a host that was full.

A program that has just ended counts for a moment.
"""


def no_answer() -> Away:
    """Return the error for a host that does not answer within a time limit."""
    return Away(
        "The system does not answer.",
        remedy="Try again later; if it lasts, tell the site's support.",
    )


def stopped_answering(detail: str = "") -> Away:
    """Return the error for a host that answered before and now exceeds a time limit."""
    return Away("The system stopped answering.", detail=detail)


class Channel(Protocol):
    """One program on the far side, with its standard input, output and error.

    What is written waits here while the far side is slow: a producer is told. The end is told once,
    by `closed`: with the program's exit status, or None where there is none (a subsystem, a
    signal), or with `DeliveryFailed` when the connection ends first, or was never made. Who opened
    the channel adds callbacks to it, and leaves nothing unhandled.
    """

    closed: Deferred[int | None]
    stderr: str
    """The last that the program said on its standard error: one printable line, a few hundred
    characters."""

    def write(self, data: Buffer) -> None:
        """Send bytes, which must not be changed afterwards; nothing once closed."""
        ...

    def writeSequence(self, data: Iterable[Buffer]) -> None:
        """Send buffers one after the other, large ones without gluing them together."""
        ...

    def registerProducer(self, producer: IPushProducer | IPullProducer, streaming: bool) -> None:
        """As `IConsumer`: pause the producer while much is waiting to be sent."""
        ...

    def unregisterProducer(self) -> None:
        """As `IConsumer`."""
        ...

    def receive(self, data: Callable[[bytes], None], eof: Callable[[], None] | None = None) -> None:
        """Give what the program says to `data`, also what waited; call `eof` at its end."""
        ...

    def end_input(self) -> None:
        """Tell the program that nothing more comes, after what is waiting is sent."""
        ...

    def lose(self) -> None:
        """Close the channel now, whatever is waiting; `closed` tells when it is."""
        ...


class Connection(Protocol):
    """A host that programs can be started on. Opening raises `DeliveryFailed`; it can be cancelled.

    A connection that broke stays broken: whoever keeps one makes another.
    """

    @property
    def usable(self) -> bool:
        """Say whether it is not known to have broken."""
        ...

    @property
    def window(self) -> int:
        """Return how many bytes one channel can have under way, if many channels share one login.

        Zero: each is a login of its own, and more of them would cost more than they gain.
        """
        ...

    async def open_subsystem(self, name: str) -> Channel:
        """Start what the server calls `name`, such as "sftp"."""
        ...

    async def open_command(self, argv: Sequence[str]) -> Channel:
        """Start a program; each of `argv` stays one word, whatever is in it."""
        ...

    async def close(self) -> None:
        """Close every channel, and return when nothing is left; never fails."""
        ...
