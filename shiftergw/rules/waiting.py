"""Decide whether a pull that got `RetryLater` waits, and until when, or fails at once."""

from __future__ import annotations

from shiftergw.errors import PullError, RegistryUnavailable, RetryLater, duration
from shiftergw.model import Postponed, WaitLimits

LONGEST_STEP = 300.0
"""The longest wait in seconds where no registry has named a time."""

SHORTEST_STEP = 1.0
"""Seconds that each wait counts for at least.

The time that a source named may have passed before the attempt has ended; a pull whose waits count
nothing would never reach its limit.
"""


def decide(waited: float, later: RetryLater, now: float, limits: WaitLimits) -> Postponed:
    """Return how long a pull waits now that has waited `waited` seconds before.

    Where no registry has named a time, the pull waits as long as all its waits before together.
    Raises `PullError` if the pull would wait longer than its limit.
    """
    wait = max(SHORTEST_STEP, later.at - now)
    if not later.fixed:
        wait = max(wait, min(waited, LONGEST_STEP))
    limit = limits.delivery_seconds if later.system else limits.seconds
    if later.limit is not None:
        limit = later.limit
    if waited + wait > limit:
        raise _too_long(waited, later, wait, limit)
    return Postponed(now + wait, later.why, later.cause)


def _too_long(waited: float, later: RetryLater, wait: float, limit: float) -> PullError:
    """Return the error of a pull that would wait too long."""
    failure = later.failure
    if later.system:
        spent = f"The pull waited {duration(waited)} for it, and" if waited else "A pull"
        failure.remedy = (
            f"{spent} may wait {duration(limit)} (the site can raise `DeliveryWait`)."
            f" {failure.remedy}"
        )
        return failure
    if not later.registry:
        if later.limit is None:
            failure.remedy = (
                f"The pull waited {duration(waited)} for it, and may wait"
                f" {duration(limit)} (the site can raise `RegistryWait`). Try again later; if"
                " it lasts, tell the site's support."
            )
        return failure
    spent = f", and the pull waited {duration(waited)} before" if waited else ""
    return RegistryUnavailable(
        f"{later.registry} asks to wait {duration(wait)}; at most {duration(limit)} are"
        f" waited{spent}.",
        remedy=f"Try again then. A login of your own (`shiftergw login {later.registry}`) has a"
        " limit of its own. The site can raise `RegistryWait`.",
        detail=f"{later.why}: {failure.what} {failure.detail}".strip(),
    )
