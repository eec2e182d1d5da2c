"""Which worker machines there are, by what they tell, and how many jobs they can still take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from shiftergw.errors import printable
from shiftergw.model import WorkerMachine
from shiftergw.ports import JobEnd

STATUS_SECONDS = 2.0
"""A worker machine tells its state so often, and whenever it changes."""

SILENT_SECONDS = 15.0
"""A machine that has told nothing for so long gets no work."""

REPLACED_SECONDS = STATUS_SECONDS * 2.5
"""The same for one beside which another of its name has been heard later: a restart, mostly."""

FORGOTTEN_SECONDS = 3600.0
"""A machine that has told nothing for so long is no longer shown."""

OFFER_SECONDS = 30.0
"""An offer that no machine has begun for so long takes no slot any more."""

MOST_MACHINES = 1000
MOST_SLOTS = 1000
MOST_REPORTED = 5000
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """What a worker machine told of itself, and when it was heard."""

    name: str
    run: str
    """What tells two machines of one name apart, and one from itself before a restart."""
    version: str
    systems: Sequence[str]
    slots: int
    jobs: Mapping[str, str]
    """Messages in work, or taken from the broker for that: identifier and record's key."""
    ended: Sequence[str]
    """The last messages that are done."""
    leaving: bool
    heard: float
    lost: Mapping[str, JobEnd] = field(default_factory=dict)
    """The ends of jobs that were not done, by message, of the latest jobs."""
    fault: str = ""
    """Why no worker can start there."""

    @classmethod
    def parse(cls, told: Any, now: float) -> Self | None:
        """Return what a machine told; None if it makes no sense: anybody may write to a broker."""
        try:
            # Before anything is read: a message may be large, and this is the reactor's thread.
            lists = (told["systems"], told["jobs"], told["ended"], told.get("lost", {}))
            if any(len(one) > MOST_SLOTS for one in lists):
                return None
            slots = int(told["slots"])
            machine = cls(
                _name(told["hostname"]),
                _name(told.get("run", "")),
                _name(told["version"]),
                tuple(_name(one) for one in told["systems"]),
                slots,
                _names(told["jobs"]),
                tuple(_name(one) for one in told["ended"]),
                told["leaving"] is True,
                now,
                {_name(message): _lost(end) for message, end in told.get("lost", {}).items()},
                _name(told.get("fault", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return None
        return machine if 0 <= slots <= MOST_SLOTS else None

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

    def free_for(self, system: str, more: int = 0) -> int:
        """Return how many jobs of a system it can take beside so many `more` of any."""
        return max(0, self.free - more) if system in self.systems else 0


def _lost(told: Any) -> JobEnd:
    key, runner, loss, died = told
    return JobEnd(_name(key), _name(runner), _name(loss), died is True)


def _names(texts: Any) -> dict[str, str]:
    return {_name(one): _name(other) for one, other in dict(texts).items()}


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
class WorkerRegistry:
    """All machines, and the offers that none of them has taken yet."""

    _machines: dict[tuple[str, str], MachineStatus] = field(default_factory=dict)
    _offers: dict[str, _Offer] = field(default_factory=dict)
    _reported: dict[str, None] = field(default_factory=dict)
    """The messages whose ends were returned by `ends`, the oldest first."""

    def told(self, machine: MachineStatus) -> bool:
        """Take in what a machine has told; say whether it has more slots free than before."""
        place = (machine.name, machine.run)
        before = self._machines.get(place)
        if len(self._machines) >= MOST_MACHINES:
            list(self.machines(machine.heard))  # forgets
        if before is not None or len(self._machines) < MOST_MACHINES:
            self._machines[place] = machine
        for message in (*machine.jobs, *machine.ended):
            self._offers.pop(message, None)
        if before is None or machine.heard - before.heard >= SILENT_SECONDS:
            return machine.free > 0
        return any(machine.free_for(one) > before.free_for(one) for one in machine.systems)

    def ends(self, machine: MachineStatus) -> list[JobEnd]:
        """Return the ends of jobs that this status is the first to report; call it before `told`.

        The key of a message that is unknown here (another gateway offered it) comes with its loss;
        without a loss such a message has no end.
        """
        before = self._machines.get((machine.name, machine.run))
        keys = {message: offer.key for message, offer in self._offers.items()}
        keys |= before.jobs if before is not None else {}
        ends = []
        for message in machine.ended:
            key = keys.get(message)
            end = machine.lost.get(message) or (None if key is None else JobEnd(key))
            if end is None or message in self._reported:
                continue
            self._reported[message] = None
            ends.append(end)
        while len(self._reported) > MOST_REPORTED:
            del self._reported[next(iter(self._reported))]
        return ends

    def fault(self, system: str, now: float) -> str:
        """Return why no worker can start on any machine of a system; empty if one can."""
        there = [one for one in self._present(now) if system in one.systems and not one.leaving]
        faults = [one.fault for one in there if one.fault]
        return faults[0] if there and len(faults) == len(there) else ""

    def has_fault(self, machine: MachineStatus) -> bool:
        """Return whether this machine has told before that no worker can start there."""
        before = self._machines.get((machine.name, machine.run))
        return before is not None and bool(before.fault)

    def knows(self, machine: MachineStatus) -> bool:
        """Say whether this machine has told before, and of the same version."""
        before = self._machines.get((machine.name, machine.run))
        return before is not None and before.version == machine.version

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
        present = self._present(now)
        coming = [0 for _ in present]
        for offer in self._offers.values():
            able = [n for n, one in enumerate(present) if one.free_for(offer.system, coming[n]) > 0]
            if able:
                coming[min(able, key=lambda n: len(present[n].systems))] += 1
        return sum(one.free_for(system, more) for one, more in zip(present, coming, strict=True))

    def serves(self, system: str, now: float) -> bool:
        """Return whether a machine that is not silent, nor about to leave, serves a system."""
        return any(system in one.systems and not one.leaving for one in self._present(now))

    def messages_of(self, key: str, now: float) -> frozenset[str]:
        """Return the messages of the jobs that machines which are not silent have on a record."""
        return frozenset(
            message
            for machine in self._present(now)
            for message, job in machine.jobs.items()
            if job == key
        )

    def machines(self, now: float) -> Iterable[MachineStatus]:
        """Return the machines, by name; those that were silent for long are forgotten.

        So are those that were started again.
        """
        present = self._present(now)
        names = {one.name for one in present}
        self._machines = {
            place: one
            for place, one in self._machines.items()
            if now - one.heard < FORGOTTEN_SECONDS and (one in present or one.name not in names)
        }
        return sorted(self._machines.values(), key=lambda one: (one.name, one.run))

    def _present(self, now: float) -> list[MachineStatus]:
        """Return the machines that are there."""
        last: dict[str, float] = {}
        for one in self._machines.values():
            last[one.name] = max(one.heard, last.get(one.name, one.heard))
        return [
            one
            for one in self._machines.values()
            if now - one.heard < SILENT_SECONDS and last[one.name] - one.heard < REPLACED_SECONDS
        ]
