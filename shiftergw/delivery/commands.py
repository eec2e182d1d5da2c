"""Small programs of a system that are run for what they print, and how they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from shiftergw.errors import TimedOut
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.channel import Connection

_OUTPUT_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Ended:
    """A program that ended: its status (None: a signal), what it said, at most a few kilobytes.

    `stderr` is one printable line.
    """

    status: int | None
    stdout: bytes
    stderr: str


async def run_there(
    connection: Connection, argv: Sequence[str], seconds: float, clock: IReactorTime
) -> Ended:
    """Run a program that reads nothing; each of `argv` stays one word, whatever is in it.

    Raises `DeliveryFailed` where the account runs no commands, `TimedOut` if it takes too many
    seconds.
    """
    return await within(
        seconds,
        clock,
        _run(connection, argv),
        lambda: TimedOut("A program on the system did not end in time."),
    )


async def _run(connection: Connection, argv: Sequence[str]) -> Ended:
    channel = await connection.open_command(argv)
    ended: Deferred[int | None] = Deferred()
    channel.closed.addCallbacks(ended.callback, ended.errback)
    said = bytearray()

    def take(data: bytes) -> None:
        # An account that is restricted to SFTP answers with SFTP, and would wait for ever.
        said.extend(data[: _OUTPUT_LIMIT - len(said)])

    channel.receive(take)
    channel.end_input()
    try:
        status = await ended
    finally:
        channel.lose()
    return Ended(status, bytes(said), channel.stderr)
