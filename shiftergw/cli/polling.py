"""Poll gateways for the end of work, with patience while no gateway answers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from shiftergw.cli.exits import NoGateway

INTERVAL = 0.5
"""Seconds between two polls of a pull."""

EAGER_PULLS = 8
"""Pulls of one command that are polled at `INTERVAL`; more of them are polled less often.

So a command sends at most 16 polls a second, each with a credential of its own.
"""

SILENCE_LIMIT = 60.0
"""Seconds for which all gateways may be silent during work, since they may be restarting."""


async def pause(clock: Any, pulls: int = 1) -> None:
    """Wait for the time between two polls of one of `pulls` pulls."""
    await deferLater(clock, INTERVAL * max(1.0, pulls / EAGER_PULLS), int)


async def retry_while_silent(
    call: Callable[[], Coroutine[Any, Any, dict[str, Any]]],
    clock: Any,
    notify: Callable[[str], None],
) -> dict[str, Any]:
    """Return the result of a request; try for `SILENCE_LIMIT` seconds while no gateway answers.

    `notify` gets a line for each attempt that fails, also if it is the same line again.
    """
    deadline = clock.seconds() + SILENCE_LIMIT
    while True:
        try:
            return await call()
        except CancelledError:
            raise
        except NoGateway as error:
            if clock.seconds() > deadline:
                raise
            notify(f"{error.message} Still trying.")
            await pause(clock)
