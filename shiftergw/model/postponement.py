"""Values of postponed pulls: limits, the end of a postponed attempt, circuit breakers."""

from __future__ import annotations

from dataclasses import dataclass

from shiftergw.states import WaitCause


@dataclass(frozen=True, slots=True)
class PostponeLimits:
    """How many pulls may wait for one registry or one system: of all users, and of each user."""

    total: int
    user: int


@dataclass(frozen=True, slots=True)
class WaitLimits:
    """How many seconds a pull may wait in total, and how many pulls may be postponed.

    `seconds` and `registry_pulls` limit waits for registries; `delivery_seconds` and
    `system_pulls` limit waits for systems.
    """

    seconds: float = 900.0
    registry_pulls: PostponeLimits | None = None
    delivery_seconds: float = 1800.0
    system_pulls: PostponeLimits | None = None

    def limits_of(self, cause: WaitCause) -> PostponeLimits | None:
        """Return how many pulls may wait for this cause; None means any number."""
        if cause == "pull":
            return None
        return self.registry_pulls if cause == "registry" else self.system_pulls


@dataclass(frozen=True, slots=True)
class Breaker:
    """A circuit breaker: it blocks requests with its `key` `until` a time.

    `why` names the cause in words for the user. `trips` counts the consecutive failures.
    `is_probed` means that the breaker is due and another process is probing, so that requests may
    succeed soon.
    """

    key: str
    until: float
    why: str
    trips: int
    is_probed: bool = False


@dataclass(frozen=True, slots=True)
class Postponement:
    """The end of an attempt whose work is to wait until `not_before`.

    `why` names the cause in words for the user.
    """

    not_before: float
    why: str
    cause: WaitCause = "registry"
