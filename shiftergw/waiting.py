"""What a pull does when a source says "later": it waits until a time, or fails at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from shiftergw.errors import PullError, RegistryUnavailable, RetryLater
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Say
from shiftergw.postponement import Postponed, WaitLimits

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

LONGEST_STEP = 300.0
"""Seconds by which a pull is put off at most where nobody has named a time."""

SHORTEST_STEP = 1.0
"""Seconds that each wait counts for at least.

The time that a source named may have passed before the attempt has ended; a pull whose waits count
nothing would never reach its limit.
"""

_UNITS = (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0))


async def waiting_in_between(
    work: Callable[[], Awaitable[T]], clock: IReactorTime, limits: WaitLimits, say: Say
) -> T:
    """Return what `work` returns; where it is to wait, wait here and do it once more.

    For conversions outside the service, which hold nobody's slot. Raises as `decide`.
    """
    waited = 0.0
    while True:
        try:
            return await work()
        except RetryLater as later:
            now = clock.seconds()
            wait = decide(waited, later, now, limits)
        seconds = wait.not_before - now
        say(f"waiting {span_in_words(seconds)} for {wait.why}")
        waited += seconds
        await pause(seconds, clock)


def decide(waited: float, later: RetryLater, now: float, limits: WaitLimits) -> Postponed:
    """Return until when a pull waits that has `waited` before; raise `PullError` if too long.

    Where nobody has named a time, a pull waits as long again as it has waited before.
    """
    wait = max(SHORTEST_STEP, later.at - now)
    if not later.fixed:
        wait = max(wait, min(waited, LONGEST_STEP))
    limit = limits.seconds if later.limit is None else later.limit
    if waited + wait > limit:
        raise _too_long(waited, later, wait, limit)
    return Postponed(now + wait, later.why, for_pull=later.limit is not None)


def _too_long(waited: float, later: RetryLater, wait: float, limit: float) -> PullError:
    """Return the error of a pull that would wait too long."""
    failure = later.failure
    if not later.asker:
        if later.limit is None:
            failure.remedy = (
                f"The pull waited {span_in_words(waited)} for it, and may wait"
                f" {span_in_words(limit)} (the site can raise `RegistryWait`). Try again later; if"
                " it lasts, tell the site's support."
            )
        return failure
    spent = f", and the pull waited {span_in_words(waited)} before" if waited else ""
    return RegistryUnavailable(
        f"{later.asker} asks to wait {span_in_words(wait)}; at most {span_in_words(limit)} are"
        f" waited{spent}.",
        remedy=f"Try again then. A login of your own (`shiftergw login {later.asker}`) has a limit"
        " of its own. The site can raise `RegistryWait`.",
        detail=f"{later.why}: {failure.what} {failure.detail}".strip(),
    )


def span_in_words(seconds: float) -> str:
    """Return a time span as people say it: `45 seconds`, `15 minutes`, `6 hours`, `1.5 hours`."""
    for unit, size in _UNITS:
        amount = round(seconds / size, 1)
        if amount >= 1 or size == 1:
            return f"{amount:g} {unit}{'' if amount == 1 else 's'}"
    raise AssertionError("seconds are the last unit")
