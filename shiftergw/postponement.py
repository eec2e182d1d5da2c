"""Value types of postponed pulls: their limits, their ends, and circuit breakers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PostponeLimits:
    """How many pulls from one registry may be postponed: of all users together, and of each."""

    registry: int
    user: int


@dataclass(frozen=True, slots=True)
class WaitLimits:
    """How many seconds one pull may wait altogether, and how many pulls may be postponed."""

    seconds: float = 900.0
    postponed: PostponeLimits | None = None


@dataclass(frozen=True, slots=True)
class Breaker:
    """A circuit breaker: requests with its `key` are held back `until` a time.

    `why` names the cause in words for the user. `trips` counts the failures in a row. `probed`
    means that the requests wait for the probe of another process only, which may succeed soon.
    """

    key: str
    until: float
    why: str
    trips: int
    probed: bool = False


@dataclass(frozen=True, slots=True)
class Postponed:
    """The end of an attempt at work that is to wait until `not_before`.

    `why` names the cause in words for the user. `for_pull` means that it is another pull here.
    """

    not_before: float
    why: str
    for_pull: bool = False
