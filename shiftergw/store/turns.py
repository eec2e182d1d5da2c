"""Whose turn it is: which of the work that waits may begin now, and in which order.

Two limits that cross, of a user and of a system, are more than a query can keep without leaving a
place empty that somebody could have. So the store reads who has what, and this chooses.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable
from typing import NamedTuple

NOBODY = -2
"""Whose turn it is when files are removed: no user has this uid, not even one without a name."""


class Flight(NamedTuple):
    """A record in flight; `served` is when the user's work was last begun, if it ever was."""

    key: str
    waits: bool
    uid: int
    system: str
    served: float | None


def in_turn(
    flights: Iterable[Flight],
    limit: int,
    running_per_user: int | None,
    running_per_system: int | None,
    offered: Collection[str],
    without: Collection[str] = (),
) -> list[str]:
    """Return the keys of at most `limit` records that wait, as `ImageStore.waiting` says.

    `flights` are all records in flight, in the order of arrival.
    """
    users: Counter[int] = Counter()
    systems: Counter[str] = Counter()
    served: dict[int, float] = {}
    chosen: list[str] = []
    queues: dict[tuple[int, str], deque[str]] = {}
    for flight in flights:
        served[flight.uid] = -1.0 if flight.served is None else flight.served
        if flight.waits and flight.key not in offered:
            queues.setdefault((flight.uid, flight.system), deque()).append(flight.key)
            continue
        users[flight.uid] += 1
        systems[flight.system] += 1
        if flight.waits:
            chosen.append(flight.key)

    def may_begin(uid: int, system: str) -> bool:
        return (
            system not in without
            and (running_per_user is None or uid == NOBODY or users[uid] < running_per_user)
            and (running_per_system is None or systems[system] < running_per_system)
        )

    while len(chosen) < limit:
        heads = [
            (users[uid], served[uid], queue[0], uid, system)
            for (uid, system), queue in queues.items()
            if queue and may_begin(uid, system)
        ]
        if not heads:
            break
        _, _, key, uid, system = min(heads)
        chosen.append(key)
        queues[uid, system].popleft()
        users[uid] += 1
        systems[system] += 1
    return chosen[:limit]
