"""Quick retries of requests that may succeed the next time; longer waits are left to the caller."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shiftergw.errors import RegistryUnavailable, RetryLater
from shiftergw.plumbing.backoff import Backoff
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Notify

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

PROGRESS = 1 << 20
"""Bytes that make a try count as progress: the tries before it are forgotten."""


SLOW_TRY = 20.0
"""Seconds after which a try without progress is not repeated at once."""

LONGEST_RETRY_AFTER = 86400.0
"""The longest `Retry-After` in seconds; registries that name more count as naming this."""


class Interruption(RegistryUnavailable):
    """A try failed, and the next one may succeed.

    `retry_after` is the `Retry-After` of the registry in seconds. `why` names the cause in a few
    words for a user who waits. `is_rate_limit` means that the registry limits this login (429),
    `unreachable` that the host did not answer, `slow` that it sends too little: no quick try
    follows. `lasting` means that waiting will not help: when the quick tries are spent, the pull
    fails. `breaker` is the key of the breaker to trip, if any.
    """

    def __init__(
        self,
        what: str,
        *,
        remedy: str | None = None,
        detail: str = "",
        retry_after: float | None = None,
        why: str = "interrupted",
        is_rate_limit: bool = False,
        unreachable: bool = False,
        slow: bool = False,
        lasting: bool = False,
    ) -> None:
        """Take the sentence for the user, and what decides about the next try."""
        super().__init__(what, remedy=remedy, detail=detail, retry_after=retry_after)
        self.why = why
        self.is_rate_limit = is_rate_limit
        self.unreachable = unreachable
        self.slow = slow
        self.lasting = lasting
        self.breaker = ""


class UnprovenEnd(Interruption):
    """A body ended with its connection, and no length was named: it may be incomplete.

    HTTP allows this (RFC 9112, section 6.3, rule 8). Only the content can prove that it is whole:
    by its digest and size, or as JSON that parses.
    """

    def __init__(self, subject: str) -> None:
        """Blame `subject`, which begins the sentence."""
        super().__init__(f"{subject} closed the connection, perhaps in the middle of a transfer.")


@dataclass(frozen=True, slots=True)
class Patience:
    """The number of quick tries, and how the waits between them grow; times in seconds.

    The first wait is `first`, and each further one twice as long, up to `longest`. After a wait
    longer than `quick` the caller tries again, not `with_retries`.
    """

    tries: int = 3
    first: float = 1.0
    quick: float = 2.0
    longest: float = 300.0

    def backoff(self, failures: int, random: float) -> float:
        """Return the seconds to wait after a number of failures in a row; `random` is 0 to 1."""
        return Backoff(self.first, self.longest).seconds(failures, 0.5 + random)


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    *,
    patience: Patience,
    clock: IReactorTime,
    random: Callable[[], float],
    notify: Notify,
    postpone: Callable[[Interruption, float], Awaitable[RetryLater]],
    progress: Callable[[], int] = int,
) -> T:
    """Return what `attempt` returns; after `Interruption`, wait for a moment and try again.

    A `Retry-After` can make a wait longer, never shorter: one of 0, or in the past, changes
    nothing. `progress` returns the furthest byte of a download: the tries are counted anew after
    each `PROGRESS` bytes. When the tries are spent, or the wait is longer than `patience.quick`,
    raises the error that `postpone` makes of the failure and the seconds to wait; a lasting
    `Interruption` is raised as it is. Other errors are raised at once.
    """
    failures, start = 0, progress()
    while True:
        began = clock.seconds()
        try:
            return await attempt()
        except Interruption as error:
            if progress() - start >= PROGRESS:
                failures, start = 0, progress()
            elif error.slow or (clock.seconds() - began > SLOW_TRY and not error.lasting):
                failures = patience.tries  # the slot is worth more than another try at once
            failures += 1
            seconds = max(patience.backoff(failures, random()), error.retry_after or 0)
            if failures >= patience.tries and error.lasting:
                raise
            if failures >= patience.tries or seconds > patience.quick:
                raise await postpone(error, seconds) from error
            notify(f"waiting {max(1, round(seconds))} s: {error.what}")
        await pause(seconds, clock)
