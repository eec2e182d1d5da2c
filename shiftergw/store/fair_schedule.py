"""Choose which waiting work may begin now, and in which order.

The shares of users, systems and registries overlap. No single query can enforce all of them and
still leave no slot empty that some work could use. So the store reads what is in flight, and this
module chooses.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from operator import itemgetter
from typing import NamedTuple

REMOVALS_UID = -2
"""The uid under which removals of files are scheduled. No user has it, not even `anonymous`."""


class InFlight(NamedTuple):
    """A record in flight that is not postponed.

    `registry` is the location that it pulls from, or None if the work contacts no registry or the
    location is not recorded. `last_turn` is when the user's work was last begun, or None.
    """

    key: str
    waits: bool
    uid: int
    system: str
    registry: str | None
    last_turn: float | None


def fair_schedule(
    records: Iterable[InFlight],
    limit: int,
    running_per_user: int | None,
    offers: Collection[str],
    without: Collection[str] = (),
    share: int | None = None,
    system_shares: Mapping[str, int] | None = None,
) -> list[str]:
    """Return the keys of at most `limit` waiting records, as `ImageStore.waiting` promises.

    `records` are all records in flight that are not postponed, in the order of arrival.
    """
    users: Counter[int] = Counter()
    systems: Counter[str] = Counter()
    registries: Counter[str | None] = Counter()
    last_turns: dict[int, float] = {}
    keys: list[str] = []
    queues: dict[tuple[int, str, str | None], deque[str]] = {}

    def count(uid: int, system: str, registry: str | None) -> None:
        users[uid] += 1
        systems[system] += 1
        registries[registry] += 1

    for record in records:
        last_turns[record.uid] = -1.0 if record.last_turn is None else record.last_turn
        queue_id = record.uid, record.system, record.registry
        if record.waits and record.key not in offers:
            queues.setdefault(queue_id, deque()).append(record.key)
            continue
        count(*queue_id)
        if record.waits:
            keys.append(record.key)

    def may_begin(uid: int, system: str) -> bool:
        return system not in without and (
            running_per_user is None or uid == REMOVALS_UID or users[uid] < running_per_user
        )

    def shares_exceeded(uid: int, system: str, registry: str | None) -> int:
        limit, system_limit = share or math.inf, (system_shares or {}).get(system, math.inf)
        return (
            (uid != REMOVALS_UID and users[uid] >= limit)
            + (registry is not None and registries[registry] >= limit)
            + (systems[system] >= system_limit)
        )

    while len(keys) < limit:
        candidates = [
            (shares_exceeded(*queue_id), users[uid], last_turns[uid], queue[0], queue_id)
            for queue_id, queue in queues.items()
            for uid, system, _ in [queue_id]
            if queue and may_begin(uid, system)
        ]
        if not candidates:
            break
        *_, key, queue_id = min(candidates, key=itemgetter(0, 1, 2, 3))
        keys.append(key)
        queues[queue_id].popleft()
        count(*queue_id)
    return keys[:limit]
