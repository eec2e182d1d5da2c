"""Time limits of the look-ups of `explain`: a part that hangs keeps no other one.

A thread in a system call of a file system that hangs cannot be interrupted, so it is left behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from shiftergw.delivery.disk_calls import HANG_SECONDS
from shiftergw.errors import TimedOut
from shiftergw.plumbing.services import OrderedServices
from shiftergw.plumbing.timing import abandonable, shield, within

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

T = TypeVar("T")

SECONDS = 70.0
"""The time limit of all look-ups together."""

FILE_SECONDS = 10.0
"""The time limit of a look-up in the database, or in files of this machine, whose disk may hang."""

DIRECTORY_SECONDS = HANG_SECONDS + 5
"""The time limit of a look-up in the image directory: its own limit comes first, and trips the
breaker of the system."""

REGISTRY_SECONDS = 62.0
"""The time limit of all requests for the manifest, or for signatures. A registry that is silent
meets the limit of a single request first (`Limits.header`), so that the explanation names it, and
says until when a pull would wait."""

STOP_SECONDS = 5.0
"""Seconds for the end of the services; threads that hang are left behind."""


@dataclass(frozen=True, slots=True)
class LookUpPlace:
    """Where something is looked up: its name in messages, and the time limit in seconds."""

    name: str
    seconds: float


GATEWAY_FILES = LookUpPlace(
    "The gateway's directory (StateDirectory, CacheDirectory)", FILE_SECONDS
)
DATABASE = LookUpPlace("The database", FILE_SECONDS)
DATABASE_START = LookUpPlace("The database", 2 * FILE_SECONDS)
CACHE = LookUpPlace("The cache", FILE_SECONDS)
DIRECTORY = LookUpPlace("The system's image directory", DIRECTORY_SECONDS)
REGISTRY = LookUpPlace("The registry", REGISTRY_SECONDS)
POLICY = LookUpPlace("The policy of the system", REGISTRY_SECONDS)


async def look_up(
    place: LookUpPlace,
    reactor: Reactor,
    work: Coroutine[Deferred[Any], Any, T] | Deferred[T],
    seconds: float | None = None,
) -> T:
    """Return the result of a look-up; raise `TimedOut` after the place's limit.

    `seconds` is the limit if less time is left. Work that does not end when it is canceled is left
    behind.
    """
    running = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
    limit = place.seconds if seconds is None else min(place.seconds, seconds)
    return await within(max(0.0, limit), reactor, abandonable(running), partial(_late, place))


@asynccontextmanager
async def running(reactor: Reactor, services: Sequence[Service]) -> AsyncIterator[None]:
    """Run services for the time of the context; start and stop have time limits.

    Raises `TimedOut` if the start takes too long, which is that of the database.
    """
    ordered_services = OrderedServices(services)
    try:
        await look_up(DATABASE_START, reactor, ordered_services.startService())
        yield
    finally:
        stopping = shield(ordered_services.stopService())
        with suppress(TimedOut):
            await within(STOP_SECONDS, reactor, stopping, lambda: TimedOut("A thread hangs."))


def _late(place: LookUpPlace) -> TimedOut:
    return TimedOut(
        f"{place.name} did not answer in time: a look-up may take {place.seconds:g} s, and all"
        f" together {SECONDS:g} s.",
        remedy="Try again. If it lasts, tell the site's support: `shiftergw check` finds out what"
        " hangs.",
    )
