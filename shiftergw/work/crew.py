"""Which worker machines there are, by what they tell, and how many jobs they can still take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from shiftergw.errors import printable
from shiftergw.model import WorkerMachine

TELL_SECONDS = 2.0
"""A worker machine tells its state so often, and whenever it changes."""

SILENT_SECONDS = 15.0
"""A machine that has told nothing for so long gets no work."""

FORGOTTEN_SECONDS = 3600.0
"""A machine that has told nothing for so long is no longer shown."""

OFFER_SECONDS = 30.0
"""An offer that no machine has begun for so long takes no slot any more."""

MOST_MACHINES = 1000
MOST_SLOTS = 1000
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class Machine:
    """What a worker machine told of itself, and when it was heard."""

    name: str
    version: str
    systems: Sequence[str]
    slots: int
    jobs: Mapping[str, str]
    """Messages in work, or taken from the broker for that: identifier and record's key."""
    ended: Sequence[str]
    """The last messages that are done."""
    leaving: bool
    heard: float

    @classmethod
    def parse(cls, told: Any, now: float) -> Self | None:
        """Return what a machine told; None if it makes no sense: anybody may write to a broker."""
        try:
            slots = int(told["slots"])
            machine = cls(
                _name(told["hostname"]),
                _name(told["version"]),
                tuple(_name(one) for one in told["systems"]),
                slots,
                {_name(one): _name(key) for one, key in dict(told["jobs"]).items()},
                tuple(_name(one) for one in told["ended"]),
                told["leaving"] is True,
                now,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return machine if 0 <= slots <= MOST_SLOTS and len(machine.jobs) <= MOST_SLOTS else None

    def seen(self) -> WorkerMachine:
        """Return it as admins see it."""
        jobs, systems = tuple(self.jobs.values()), tuple(self.systems)
        return WorkerMachine(
            self.name, self.version, systems, self.slots, jobs, self.leaving, self.heard
        )

    @property
    def free(self) -> int:
        """Return how many more jobs it can take."""
        return 0 if self.leaving else max(0, self.slots - len(self.jobs))


def _name(text: Any) -> str:
    if not isinstance(text, str) or len(text) > _LONGEST_NAME:
        raise ValueError(type(text))
    return printable(text, _LONGEST_NAME)


@dataclass(frozen=True, slots=True)
class _Offer:
    key: str
    system: str
    made: float


@dataclass(slots=True)
class Crew:
    """All machines, and the offers that none of them has taken yet."""

    _machines: dict[str, Machine] = field(default_factory=dict)
    _offers: dict[str, _Offer] = field(default_factory=dict)

    def told(self, machine: Machine) -> bool:
        """Take in what a machine has told; say whether it has more slots free than before."""
        before = self._machines.get(machine.name)
        if machine.name in self._machines or len(self._machines) < MOST_MACHINES:
            self._machines[machine.name] = machine
        for message in (*machine.jobs, *machine.ended):
            self._offers.pop(message, None)
        silent = before is None or machine.heard - before.heard >= SILENT_SECONDS
        return machine.free > (0 if silent or before is None else before.free)

    def offered(self, message: str, key: str, system: str, now: float) -> None:
        """Count an offer that is on its way."""
        self._offers[message] = _Offer(key, system, now)

    def withdrawn(self, message: str) -> None:
        """Count an offer no longer."""
        self._offers.pop(message, None)

    def slots(self, system: str, now: float) -> int:
        """Return how many more jobs of a system the machines can take.

        Offers on their way each take a slot of a machine that serves their system; of several, one
        that has the least choice of systems.
        """
        self._offers = {
            message: one for message, one in self._offers.items() if now - one.made < OFFER_SECONDS
        }
        present = [one for one in self._machines.values() if now - one.heard < SILENT_SECONDS]
        free = {one.name: one.free for one in present}
        for offer in self._offers.values():
            able = [one for one in present if offer.system in one.systems and free[one.name]]
            if able:
                free[min(able, key=lambda one: len(one.systems)).name] -= 1
        return sum(free[one.name] for one in present if system in one.systems)

    def works_on(self, key: str, now: float) -> bool:
        """Say whether a machine that is not silent has a job on a record."""
        return any(
            key in one.jobs.values() and now - one.heard < SILENT_SECONDS
            for one in self._machines.values()
        )

    def machines(self, now: float) -> Iterable[Machine]:
        """Return the machines, by name; those that were silent for long are forgotten."""
        self._machines = {
            name: one for name, one in self._machines.items() if now - one.heard < FORGOTTEN_SECONDS
        }
        return sorted(self._machines.values(), key=lambda one: one.name)
