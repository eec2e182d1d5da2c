"""Value types of postponed pulls: their limits, their ends, and circuit breakers."""

from __future__ import annotations

from dataclasses import dataclass

from shiftergw.states import WaitCause


@dataclass(frozen=True, slots=True)
class PostponeLimits:
    """How many pulls may wait for one registry, or for one system: of all users, and of each."""

    together: int
    user: int


@dataclass(frozen=True, slots=True)
class WaitLimits:
    """How many seconds one pull may wait altogether, and how many pulls may be postponed.

    `seconds` and `postponed` are for waits for registries, the others for waits for systems.
    """

    seconds: float = 900.0
    postponed: PostponeLimits | None = None
    delivery_seconds: float = 1800.0
    postponed_deliveries: PostponeLimits | None = None

    def limits_of(self, cause: WaitCause) -> PostponeLimits | None:
        """Return how many pulls may wait for this cause; None: any number."""
        if cause == "pull":
            return None
        return self.postponed if cause == "registry" else self.postponed_deliveries


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

    `why` names the cause in words for the user.
    """

    not_before: float
    why: str
    cause: WaitCause = "registry"
