"""Values of work that waits for something outside: limits, postponements, breakers."""

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
    """A key of requests that are held back `until` a time, and `why`, in words for the user.

    `trips` counts how often in a row requests have failed since they last succeeded. `probed` says
    that only another's probe holds them back, which may succeed any moment.
    """

    key: str
    until: float
    why: str
    trips: int
    probed: bool = False


@dataclass(frozen=True, slots=True)
class Postponed:
    """The end of an attempt whose work waits until `not_before` for what `why` names.

    `for_pull`: for another pull of this site.
    """

    not_before: float
    why: str
    for_pull: bool = False
