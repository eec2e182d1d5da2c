"""Decide whether a pull that got `RetryLater` waits, and until when, or fails at once."""

from __future__ import annotations

from shiftergw.errors import PullError, RegistryUnavailable, RetryLater, duration
from shiftergw.model.postponement import Postponement, WaitLimits

LONGEST_STEP = 300.0
"""Seconds of the longest wait if the registry named no time."""

SHORTEST_STEP = 1.0
"""Seconds that each wait counts for at least.

The time that a source named may have passed before the attempt has ended. If such waits counted
nothing, a pull would never reach its limit.
"""


def decide_wait(
    past_wait: float, delay: RetryLater, now: float, limits: WaitLimits
) -> Postponement:
    """Return until when a pull waits that has waited `past_wait` before.

    If the registry named no time, each wait is as long as all waits before it together, at most
    `LONGEST_STEP`. Raises `PullError` if the pull would wait longer than its limit.
    """
    wait = max(SHORTEST_STEP, delay.at - now)
    if not delay.is_fixed:
        wait = max(wait, min(past_wait, LONGEST_STEP))
    limit = limits.delivery_seconds if delay.system else limits.seconds
    if delay.limit is not None:
        limit = delay.limit
    if past_wait + wait > limit:
        raise _limit_error(past_wait, delay, wait, limit)
    return Postponement(now + wait, delay.why, delay.cause)


def _limit_error(past_wait: float, delay: RetryLater, wait: float, limit: float) -> PullError:
    """Return the error of a pull that would wait `wait` seconds more, and so beyond its limit."""
    failure = delay.failure
    if delay.system:
        wait_text = f"The pull waited {duration(past_wait)} for it, and" if past_wait else "A pull"
        failure.remedy = (
            f"{wait_text} may wait {duration(limit)} (the site can raise `DeliveryWait`)."
            f" {failure.remedy}"
        )
        return failure
    if not delay.registry:
        if delay.limit is None:
            failure.remedy = (
                f"The pull waited {duration(past_wait)} for it, and may wait"
                f" {duration(limit)} (the site can raise `RegistryWait`). Try again later; if"
                " it lasts, tell the site's support."
            )
        return failure
    wait_text = f", and the pull waited {duration(past_wait)} before" if past_wait else ""
    return RegistryUnavailable(
        f"{delay.registry} asks to wait {duration(wait)}; at most {duration(limit)} are"
        f" waited{wait_text}.",
        remedy=f"Try again then. A login of your own (`shiftergw login {delay.registry}`) has a"
        " limit of its own. The site can raise `RegistryWait`.",
        detail=f"{delay.why}: {failure.what} {failure.detail}".strip(),
    )
