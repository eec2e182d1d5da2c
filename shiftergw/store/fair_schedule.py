"""Choose which waiting work may begin now, and in which order.

The shares of users, systems and registries overlap. No single query can enforce all of them and
still leave no slot empty that some work could use. So the store reads what is in flight, and this
module chooses.
"""

from __future__ import annotations

import heapq
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


class _Origin(NamedTuple):
    """What the limits on work count: its user, its system and its registry."""

    uid: int
    system: str
    registry: str | None


class _Load:
    """The work that has begun, and the limits that it counts towards."""

    def __init__(
        self,
        running_per_user: int | None,
        without: Collection[str],
        share: int | None,
        system_shares: Mapping[str, int] | None,
    ) -> None:
        """Start without work; the arguments are those of `ImageStore.waiting`."""
        self.users: Counter[int] = Counter()
        self._systems: Counter[str] = Counter()
        self._registries: Counter[str | None] = Counter()
        self._running_per_user = running_per_user
        self._without = without
        self._share = share or math.inf
        self._system_shares = system_shares or {}

    def add(self, origin: _Origin) -> None:
        """Count one more record that has begun."""
        self.users[origin.uid] += 1
        self._systems[origin.system] += 1
        self._registries[origin.registry] += 1

    def has_room(self, origin: _Origin) -> bool:
        """Return whether work of this origin may begin."""
        return origin.system not in self._without and (
            self._running_per_user is None
            or origin.uid == REMOVALS_UID
            or self.users[origin.uid] < self._running_per_user
        )

    def exceeded_shares(self, origin: _Origin) -> int:
        """Return how many of the shares of user, registry and system are used up."""
        uid, system, registry = origin
        return (
            (uid != REMOVALS_UID and self.users[uid] >= self._share)
            + (registry is not None and self._registries[registry] >= self._share)
            + (self._systems[system] >= self._system_shares.get(system, math.inf))
        )


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
    load = _Load(running_per_user, without, share, system_shares)
    last_turns: dict[int, float] = {}
    keys: list[str] = []
    queues: dict[_Origin, deque[str]] = {}
    for record in records:
        last_turns[record.uid] = -1.0 if record.last_turn is None else record.last_turn
        origin = _Origin(record.uid, record.system, record.registry)
        if record.waits and record.key not in offers:
            queues.setdefault(origin, deque()).append(record.key)
            continue
        load.add(origin)
        if record.waits:
            keys.append(record.key)

    while len(keys) < limit:
        candidates = [
            (
                load.exceeded_shares(origin),
                load.users[origin.uid],
                last_turns[origin.uid],
                queue[0],
                origin,
            )
            for origin, queue in queues.items()
            if queue and load.has_room(origin)
        ]
        if not candidates:
            break
        *_, key, origin = min(candidates, key=itemgetter(0, 1, 2, 3))
        keys.append(key)
        queues[origin].popleft()
        load.add(origin)
    return keys[:limit]


def fair_order(records: Iterable[InFlight]) -> list[str]:
    """Return the keys of all waiting records, as `ImageStore.schedule` promises.

    The order is that of `fair_schedule` without limits and shares, in less time.
    """
    running: Counter[int] = Counter()
    last_turns: dict[int, float] = {}
    queues: dict[int, deque[str]] = {}
    for record in records:
        last_turns[record.uid] = -1.0 if record.last_turn is None else record.last_turn
        if record.waits:
            queues.setdefault(record.uid, deque()).append(record.key)
        else:
            running[record.uid] += 1
    turns = [(running[uid], last_turns[uid], queue[0], uid) for uid, queue in queues.items()]
    heapq.heapify(turns)
    keys: list[str] = []
    while turns:
        count, last_turn, key, uid = turns[0]
        keys.append(key)
        queues[uid].popleft()
        if queues[uid]:
            heapq.heapreplace(turns, (count + 1, last_turn, queues[uid][0], uid))
        else:
            heapq.heappop(turns)
    return keys
