"""Whose turn it is: which of the work that waits may begin now, and in which order.

Shares that cross, of users, systems and registries, are more than a query can keep without leaving
a slot empty that somebody could have. So the store reads who has what, and this chooses.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from operator import itemgetter
from typing import NamedTuple

REMOVALS_UID = -2
"""Whose turn it is when files are removed: no user has this uid, not even one without a name."""


class InFlight(NamedTuple):
    """A record in flight that is not postponed.

    `registry` is the location that it pulls from, if that is recorded and the work contacts it;
    `served` is when the user's work was last begun, if it ever was.
    """

    key: str
    waits: bool
    uid: int
    system: str
    registry: str | None
    served: float | None


def fair_schedule(
    flights: Iterable[InFlight],
    limit: int,
    running_per_user: int | None,
    offered: Collection[str],
    without: Collection[str] = (),
    share: int | None = None,
    system_shares: Mapping[str, int] | None = None,
) -> list[str]:
    """Return the keys of at most `limit` records that wait, as `ImageStore.waiting` says.

    `flights` are all records in flight that are not postponed, in the order of arrival.
    """
    users: Counter[int] = Counter()
    systems: Counter[str] = Counter()
    registries: Counter[str | None] = Counter()
    served: dict[int, float] = {}
    chosen: list[str] = []
    queues: dict[tuple[int, str, str | None], deque[str]] = {}
    for flight in flights:
        served[flight.uid] = -1.0 if flight.served is None else flight.served
        if flight.waits and flight.key not in offered:
            queue = queues.setdefault((flight.uid, flight.system, flight.registry), deque())
            queue.append(flight.key)
            continue
        users[flight.uid] += 1
        systems[flight.system] += 1
        registries[flight.registry] += 1
        if flight.waits:
            chosen.append(flight.key)

    def may_begin(uid: int, system: str) -> bool:
        return system not in without and (
            running_per_user is None or uid == REMOVALS_UID or users[uid] < running_per_user
        )

    def shares_exceeded(uid: int, system: str, registry: str | None) -> int:
        most, most_of_system = share or math.inf, (system_shares or {}).get(system, math.inf)
        return (
            (uid != REMOVALS_UID and users[uid] >= most)
            + (registry is not None and registries[registry] >= most)
            + (systems[system] >= most_of_system)
        )

    while len(chosen) < limit:
        heads = [
            (shares_exceeded(uid, system, registry), users[uid], served[uid], queue[0], place)
            for place, queue in queues.items()
            for uid, system, registry in [place]
            if queue and may_begin(uid, system)
        ]
        if not heads:
            break
        *_, key, place = min(heads, key=itemgetter(0, 1, 2, 3))
        chosen.append(key)
        queues[place].popleft()
        uid, system, registry = place
        users[uid] += 1
        systems[system] += 1
        registries[registry] += 1
    return chosen[:limit]
