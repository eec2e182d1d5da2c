"""Record which worker machines there are, by their status messages, and count their free slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from shiftergw.errors import printable
from shiftergw.model.records import WorkerMachine
from shiftergw.ports import JobEnd

STATUS_SECONDS = 2.0
"""A worker machine publishes its status at this interval, and at each change."""

SILENT_SECONDS = 15.0
"""A machine whose latest status is older than this gets no work."""

REPLACED_SECONDS = STATUS_SECONDS * 2.5
"""The same limit for a machine if a newer status of its name came from another run of Celery.

Mostly the machine was restarted.
"""

FORGOTTEN_SECONDS = 3600.0
"""A machine whose latest status is older than this is no longer shown."""

OFFER_SECONDS = 30.0
"""An offer takes a slot for this long if no machine begins its job."""

MOST_MACHINES = 1000
"""The largest number of machines that are recorded."""

MOST_SLOTS = 1000
"""The largest number of slots of a machine, and of entries in each list of its status."""

MOST_REPORTED = 5000
"""Messages whose ends are remembered, so that each end is reported once."""

_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """The status that a worker machine has published, and when it was received.

    Jobs are identified by the message that offered them, since a record may be offered twice.
    """

    name: str
    run: str
    """An identifier of the run of Celery: it differs after a restart, and between namesakes."""
    version: str
    systems: Sequence[str]
    slots: int
    jobs: Mapping[str, str]
    """The keys of the records in work or about to be, by message."""
    done: Sequence[str]
    """The messages of the latest jobs that have ended."""
    leaving: bool
    received_at: float
    losses: Mapping[str, JobEnd] = field(default_factory=dict)
    """The ends of those of the latest jobs that were not done, by message."""
    fault: str = ""
    """A phrase that says why no worker can start on the machine; empty if one can."""

    @classmethod
    def parse(cls, document: Any, now: float) -> Self | None:
        """Return the status in a message, or None if it is invalid.

        Anybody with an account on the broker may send such messages, so nothing in them is trusted.
        """
        try:
            # The sizes come first: a message may be large, and this is the reactor's thread.
            lists = (
                document["systems"], document["jobs"], document["ended"], document.get("lost", {})
            )  # fmt: skip
            if any(len(entries) > MOST_SLOTS for entries in lists):
                return None
            slots = int(document["slots"])
            losses = document.get("lost", {}).items()
            status = cls(
                _parse_name(document["hostname"]),
                _parse_name(document.get("run", "")),
                _parse_name(document["version"]),
                tuple(_parse_name(system) for system in document["systems"]),
                slots,
                {
                    _parse_name(message): _parse_name(key)
                    for message, key in dict(document["jobs"]).items()
                },
                tuple(_parse_name(message) for message in document["ended"]),
                document["leaving"] is True,
                now,
                {_parse_name(message): _parse_loss(loss) for message, loss in losses},
                _parse_name(document.get("fault", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return None
        return status if 0 <= slots <= MOST_SLOTS else None

    def to_machine(self) -> WorkerMachine:
        """Return the machine as admins see it."""
        jobs, systems = tuple(self.jobs.values()), tuple(self.systems)
        return WorkerMachine(
            self.name, self.version, systems, self.slots, jobs, self.leaving, self.received_at
        )

    @property
    def free_slots(self) -> int:
        """Return how many more jobs the machine can take."""
        return 0 if self.leaving else max(0, self.slots - len(self.jobs))

    def free_slots_for(self, system: str, reserved_slots: int = 0) -> int:
        """Return how many more jobs of a system the machine can take beside `reserved_slots`."""
        return max(0, self.free_slots - reserved_slots) if system in self.systems else 0


def _parse_loss(values: Any) -> JobEnd:
    key, runner, loss, is_death = values
    return JobEnd(_parse_name(key), _parse_name(runner), _parse_name(loss), is_death is True)


def _parse_name(text: Any) -> str:
    if not isinstance(text, str) or len(text) > _LONGEST_NAME:
        raise ValueError(type(text))
    return printable(text, _LONGEST_NAME)


@dataclass(frozen=True, slots=True)
class _Offer:
    key: str
    system: str
    offered_at: float


@dataclass(slots=True)
class WorkerRegistry:
    """All worker machines, and the offers that no machine has begun yet."""

    _statuses: dict[tuple[str, str], MachineStatus] = field(default_factory=dict)
    """The latest status of each machine, by its name and run."""
    _offers: dict[str, _Offer] = field(default_factory=dict)
    """The offers by message."""
    _reported_ends: dict[str, None] = field(default_factory=dict)
    """The messages whose ends `take_ends` has returned, the oldest first."""

    def record(self, status: MachineStatus) -> bool:
        """Record a status; return whether the machine has more free slots than before."""
        machine = (status.name, status.run)
        previous = self._statuses.get(machine)
        if len(self._statuses) >= MOST_MACHINES:
            self._remove_old(status.received_at)
        if previous is not None or len(self._statuses) < MOST_MACHINES:
            self._statuses[machine] = status
        for message in (*status.jobs, *status.done):
            self._offers.pop(message, None)
        if previous is None or status.received_at - previous.received_at >= SILENT_SECONDS:
            return status.free_slots > 0
        return any(
            status.free_slots_for(system) > previous.free_slots_for(system)
            for system in status.systems
        )

    def take_ends(self, status: MachineStatus) -> list[JobEnd]:
        """Return the ends of jobs that this status is the first to report; call before `record`.

        A job that was done is reported only if its offer, or an earlier status, had its key. A
        loss comes with the key, so it is reported even if another gateway offered the job.
        """
        previous = self.previous(status)
        keys = {message: offer.key for message, offer in self._offers.items()}
        keys |= previous.jobs if previous is not None else {}
        ends = []
        for message in status.done:
            key = keys.get(message)
            end = status.losses.get(message) or (None if key is None else JobEnd(key))
            if end is None or message in self._reported_ends:
                continue
            self._reported_ends[message] = None
            ends.append(end)
        while len(self._reported_ends) > MOST_REPORTED:
            del self._reported_ends[next(iter(self._reported_ends))]
        return ends

    def previous(self, status: MachineStatus) -> MachineStatus | None:
        """Return the recorded status of the same machine, if there is one."""
        return self._statuses.get((status.name, status.run))

    def start_fault(self, system: str, now: float) -> str:
        """Return why no worker can start on any machine of a system; empty if one can."""
        faults = [status.fault for status in self._serving(system, now)]
        return faults[0] if faults and all(faults) else ""

    def add_offer(self, message: str, key: str, system: str, now: float) -> None:
        """Count a slot of a system as taken until a machine begins the job of a message."""
        self._offers[message] = _Offer(key, system, now)

    def remove_offer(self, message: str) -> None:
        """Give back the slot of an offer that was not sent."""
        self._offers.pop(message, None)

    def slots(self, system: str, now: float) -> int:
        """Return how many more jobs of a system the machines can take.

        Each offer that no machine has begun takes one slot. Of several machines that serve its
        system, it takes that of the machine that serves the fewest systems.
        """
        self._offers = {
            message: offer
            for message, offer in self._offers.items()
            if now - offer.offered_at < OFFER_SECONDS
        }
        machines = self._active(now)
        reserved_slots = [0 for _ in machines]
        for offer in self._offers.values():
            candidates = [
                index
                for index, machine in enumerate(machines)
                if machine.free_slots_for(offer.system, reserved_slots[index]) > 0
            ]
            if candidates:
                reserved_slots[min(candidates, key=lambda index: len(machines[index].systems))] += 1
        return sum(
            machine.free_slots_for(system, number)
            for machine, number in zip(machines, reserved_slots, strict=True)
        )

    def serves(self, system: str, now: float) -> bool:
        """Return whether an active machine that is not about to leave serves a system."""
        return bool(self._serving(system, now))

    def messages_of(self, key: str, now: float) -> frozenset[str]:
        """Return the messages of the jobs that active machines have on a record."""
        return frozenset(
            message
            for machine in self._active(now)
            for message, job_key in machine.jobs.items()
            if job_key == key
        )

    def machines(self, now: float) -> Sequence[MachineStatus]:
        """Return the latest status of each machine, by name, after removing old ones."""
        self._remove_old(now)
        return sorted(self._statuses.values(), key=lambda status: (status.name, status.run))

    def _remove_old(self, now: float) -> None:
        """Remove machines that were silent for long, and earlier runs of active ones."""
        active = self._active(now)
        names = {status.name for status in active}
        self._statuses = {
            machine: status
            for machine, status in self._statuses.items()
            if now - status.received_at < FORGOTTEN_SECONDS
            and (status in active or status.name not in names)
        }

    def _serving(self, system: str, now: float) -> list[MachineStatus]:
        return [
            status
            for status in self._active(now)
            if system in status.systems and not status.leaving
        ]

    def _active(self, now: float) -> list[MachineStatus]:
        """Return the machines whose status is recent."""
        newest: dict[str, float] = {}
        for status in self._statuses.values():
            newest[status.name] = max(
                status.received_at, newest.get(status.name, status.received_at)
            )
        return [
            status
            for status in self._statuses.values()
            if now - status.received_at < SILENT_SECONDS
            and newest[status.name] - status.received_at < REPLACED_SECONDS
        ]
