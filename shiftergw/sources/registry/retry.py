"""Quick retries of requests that may succeed the next time; longer waits are left to the caller."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
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


class InterruptionKind(Enum):
    """What a failed try means for the next one."""

    BRIEF = auto()
    """A quick try may succeed."""

    RATE_LIMIT = auto()
    """The registry limits the requests of this login (429)."""

    UNREACHABLE = auto()
    """The host did not answer."""

    SLOW = auto()
    """The host sends too little: no quick try follows."""

    LASTING = auto()
    """Waiting will not help: when the quick tries are spent, the pull fails."""


class Interruption(RegistryUnavailable):
    """A try failed, and the next one may succeed.

    `retry_after` is the `Retry-After` of the registry in seconds. `why` names the cause in a few
    words for a user who waits. `breaker` is the key of the breaker to trip, if any.
    """

    def __init__(
        self,
        what: str,
        *,
        kind: InterruptionKind = InterruptionKind.BRIEF,
        why: str = "interrupted",
        remedy: str | None = None,
        detail: str = "",
        retry_after: float | None = None,
    ) -> None:
        """Take the sentence for the user, and what decides about the next try."""
        super().__init__(what, remedy=remedy, detail=detail, retry_after=retry_after)
        self.kind = kind
        self.why = why
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
    longer than `quick` the caller tries again, not `RegistryRetries`.
    """

    tries: int = 3
    first: float = 1.0
    quick: float = 2.0
    longest: float = 300.0

    def backoff(self, failures: int, random: float) -> float:
        """Return the seconds to wait after a number of failures in a row; `random` is 0 to 1."""
        return Backoff(self.first, self.longest).seconds(failures, 0.5 + random)


@dataclass(frozen=True, slots=True)
class RegistryRetries:
    """Repeats the requests of one pull to one registry.

    `random` returns numbers from 0 to 1. `notify` tells the user of waits. When the tries are
    spent, `postpone` makes the error of the last failure and the seconds to wait.
    """

    patience: Patience
    clock: IReactorTime
    random: Callable[[], float]
    notify: Notify
    postpone: Callable[[Interruption, float], Awaitable[RetryLater]]

    async def run(
        self, attempt: Callable[[], Awaitable[T]], progress: Callable[[], int] = int
    ) -> T:
        """Return what `attempt` returns; after `Interruption`, wait for a moment and try again.

        A `Retry-After` can make a wait longer, never shorter: one of 0, or in the past, changes
        nothing. `progress` returns the furthest byte of a download: the tries are counted anew
        after each `PROGRESS` bytes. When the tries are spent, or the wait is longer than
        `patience.quick`, raises the error of `postpone`; a lasting `Interruption` is raised as it
        is. Other errors are raised at once.
        """
        patience, failures, start = self.patience, 0, progress()
        while True:
            began = self.clock.seconds()
            try:
                return await attempt()
            except Interruption as error:
                is_lasting = error.kind is InterruptionKind.LASTING
                is_long = self.clock.seconds() - began > SLOW_TRY and not is_lasting
                if progress() - start >= PROGRESS:
                    failures, start = 0, progress()
                elif error.kind is InterruptionKind.SLOW or is_long:
                    failures = patience.tries  # the slot is worth more than another try at once
                failures += 1
                wait = patience.backoff(failures, self.random())
                seconds = max(wait, error.retry_after or 0)
                if failures >= patience.tries and is_lasting:
                    raise
                if failures >= patience.tries or seconds > patience.quick:
                    raise await self.postpone(error, seconds) from error
                self.notify(f"waiting {max(1, round(seconds))} s: {error.what}")
            await pause(seconds, self.clock)
