"""Decide whether a pull that got `RetryLater` waits, and until when, or fails at once."""

from __future__ import annotations

from shiftergw.errors import PullError, RegistryUnavailable, RetryLater, duration
from shiftergw.model import Postponement, WaitLimits

LONGEST_STEP = 300.0
"""Seconds of the longest wait if the registry named no time."""

SHORTEST_STEP = 1.0
"""Seconds that each wait counts for at least.

The time that a source named may have passed before the attempt has ended. If such waits counted
nothing, a pull would never reach its limit.
"""


def decide_wait(waited: float, later: RetryLater, now: float, limits: WaitLimits) -> Postponement:
    """Return until when a pull waits that has waited `waited` seconds before.

    If the registry named no time, each wait is as long as all waits before it together, at most
    `LONGEST_STEP`. Raises `PullError` if the pull would wait longer than its limit.
    """
    wait = max(SHORTEST_STEP, later.at - now)
    if not later.is_fixed:
        wait = max(wait, min(waited, LONGEST_STEP))
    limit = limits.delivery_seconds if later.system else limits.seconds
    if later.limit is not None:
        limit = later.limit
    if waited + wait > limit:
        raise _limit_error(waited, later, wait, limit)
    return Postponement(now + wait, later.why, later.cause)


def _limit_error(waited: float, later: RetryLater, wait: float, limit: float) -> PullError:
    """Return the error of a pull that would wait `wait` seconds more, and so beyond its limit."""
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
