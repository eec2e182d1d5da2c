"""Whose turn it is: which of the work that waits may begin now, and in which order.

Two limits that cross, of a user and of a system, are more than a query can keep without leaving a
place empty that somebody could have. So the store reads who has what, and this chooses.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable
from operator import itemgetter
from typing import NamedTuple

NOBODY = -2
"""Whose turn it is when files are removed: no user has this uid, not even one without a name."""


class Flight(NamedTuple):
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


def in_turn(
    flights: Iterable[Flight],
    limit: int,
    running_per_user: int | None,
    running_per_system: int | None,
    offered: Collection[str],
    without: Collection[str] = (),
    share: int | None = None,
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
        return (
            system not in without
            and (running_per_user is None or uid == NOBODY or users[uid] < running_per_user)
            and (running_per_system is None or systems[system] < running_per_system)
        )

    def exceeds_share(uid: int, registry: str | None) -> bool:
        return share is not None and (
            (uid != NOBODY and users[uid] >= share)
            or (registry is not None and registries[registry] >= share)
        )

    while len(chosen) < limit:
        heads = [
            (exceeds_share(uid, registry), users[uid], served[uid], queue[0], place)
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
