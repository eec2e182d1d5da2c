"""Tries again, a bounded number of times, what may go better the next time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shiftergw.errors import RegistryUnavailable
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Say

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

PROGRESS = 1 << 20
"""Bytes that make a try count as progress: the tries before it are forgotten."""


class Interrupted(RegistryUnavailable):
    """This try failed and the next may not; `retry_after` is what the registry asked for."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long to try: times in seconds, `budget` for all waits together."""

    tries: int = 5
    first: float = 1.0
    longest: float = 300.0
    budget: float = 900.0


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    *,
    patience: Patience,
    clock: IReactorTime,
    random: Callable[[], float],
    say: Say,
    reached: Callable[[], int] = int,
) -> T:
    """Return what `attempt` returns; after `Interrupted`, wait and try again.

    Waits double, with a jitter by `random` (0 to 1), unless the registry says how long; `say` is
    told. `reached` is a download's furthest byte: a long one may be interrupted often, as long as
    it gets on.
    Raises the last `Interrupted` when tries or budget are spent, and anything else at once.
    """
    failed, waited, before = 0, 0.0, reached()
    while True:
        try:
            return await attempt()
        except Interrupted as error:
            if reached() - before >= PROGRESS:
                failed, before = 0, reached()
            failed += 1
            if error.retry_after is None:
                seconds = patience.first * 2 ** (failed - 1) * (0.5 + random())
            else:
                seconds = error.retry_after
            seconds = min(seconds, patience.longest)
            if failed >= patience.tries or waited + seconds > patience.budget:
                raise
            say(f"waiting {max(1, round(seconds))} s: {error.what}")
        waited += seconds
        await pause(seconds, clock)
