"""Decide whether a pull that got `RetryLater` waits, and until when, or fails at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from shiftergw.errors import PullError, RegistryUnavailable, RetryLater, duration
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Say
from shiftergw.postponement import Postponed, WaitLimits

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

LONGEST_STEP = 300.0
"""The longest wait in seconds where no registry has named a time."""

SHORTEST_STEP = 1.0
"""Seconds that each wait counts for at least.

The time that a source named may have passed before the attempt has ended; a pull whose waits count
nothing would never reach its limit.
"""


async def run_with_waits(
    work: Callable[[], Awaitable[T]], clock: IReactorTime, limits: WaitLimits, say: Say
) -> T:
    """Return what `work` returns; after `RetryLater`, wait here and run it again.

    For conversions outside the service, which occupy no slot of a worker. Raises as `decide`.
    """
    waited = 0.0
    while True:
        try:
            return await work()
        except RetryLater as later:
            now = clock.seconds()
            wait = decide(waited, later, now, limits)
        seconds = wait.not_before - now
        say(f"waiting {duration(seconds)} for {wait.why}")
        waited += seconds
        await pause(seconds, clock)


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
