"""Quick retries of requests that may succeed the next time; longer waits are left to the caller."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shiftergw.errors import RegistryUnavailable, RetryLater
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Say

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

PROGRESS = 1 << 20
"""Bytes that make a try count as progress: the tries before it are forgotten."""


SLOW_TRY = 20.0
"""Seconds after which a try that brought nothing is not repeated at once."""

LONGEST_ASKED = 86400.0
"""Seconds that a registry is believed to want us to wait, whatever it says."""


class Interrupted(RegistryUnavailable):
    """This try failed and the next may not.

    `retry_after` is the number of seconds that the registry asked for. `why` says in a few words
    what a user waits for. `limited` tells that the registry asked this login to slow down,
    `unreachable` that no answer came. `lasting` marks answers that time does not mend.
    `breaker` is the key of the breaker that is to hold other requests back, if any.
    """

    def __init__(
        self,
        what: str,
        *,
        remedy: str | None = None,
        detail: str = "",
        retry_after: float | None = None,
        why: str = "interrupted",
        limited: bool = False,
        unreachable: bool = False,
        lasting: bool = False,
    ) -> None:
        """Keep what decides about the next try."""
        super().__init__(what, remedy=remedy, detail=detail, retry_after=retry_after)
        self.why = why
        self.limited = limited
        self.unreachable = unreachable
        self.lasting = lasting
        self.breaker = ""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often to try at once, and how waits grow; times in seconds.

    The first wait is `first`, and each further one twice as long. One longer than `quick` is not
    waited here. What nobody has named a time for is tried again after `longest` at most.
    """

    tries: int = 3
    first: float = 1.0
    quick: float = 2.0
    longest: float = 300.0

    def backoff(self, failures: int, random: float) -> float:
        """Return the seconds to wait after so many failures in a row; `random` is 0 to 1."""
        return min(self.first * 2.0 ** min(failures - 1, 20) * (0.5 + random), self.longest)


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    *,
    patience: Patience,
    clock: IReactorTime,
    random: Callable[[], float],
    say: Say,
    later: Callable[[Interrupted, float], Awaitable[RetryLater]],
    reached: Callable[[], int] = int,
) -> T:
    """Return what `attempt` returns; after `Interrupted`, wait for a moment and try again.

    The registry may ask for a longer wait than our own, never for a shorter one. `reached` is a
    download's furthest byte: one that gets on may be interrupted often. Raises what `later` makes
    of the failure and the seconds to wait if they are too long to wait here or the tries are spent;
    a lasting `Interrupted` itself once the tries are spent; and anything else at once.
    """
    failed, before = 0, reached()
    while True:
        began = clock.seconds()
        try:
            return await attempt()
        except Interrupted as error:
            if reached() - before >= PROGRESS:
                failed, before = 0, reached()
            elif clock.seconds() - began > SLOW_TRY and not error.lasting:
                failed = patience.tries  # the slot is worth more than another try at once
            failed += 1
            seconds = max(patience.backoff(failed, random()), error.retry_after or 0)
            if failed >= patience.tries and error.lasting:
                raise
            if failed >= patience.tries or seconds > patience.quick:
                raise await later(error, seconds) from error
            say(f"waiting {max(1, round(seconds))} s: {error.what}")
        await pause(seconds, clock)
