"""Poll gateways for the end of work, with patience while no gateway answers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from shiftergw.cli.exits import NoGateway

INTERVAL = 0.5
"""Seconds between two polls."""

SILENCE_LIMIT = 60.0
"""Seconds for which all gateways may be silent during work, since they may be restarting."""


async def pause(clock: Any) -> None:
    """Wait for the time between two polls."""
    await deferLater(clock, INTERVAL, int)


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
