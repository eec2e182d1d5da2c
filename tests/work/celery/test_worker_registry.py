"""Statuses of worker machines are recorded if they are valid, and slots are counted by them."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.ports import JobEnd
from shiftergw.work.celery.worker_registry import (
    FORGOTTEN_SECONDS,
    MOST_MACHINES,
    OFFER_SECONDS,
    REPLACED_SECONDS,
    SILENT_SECONDS,
    MachineStatus,
    WorkerRegistry,
)

STATUS: dict[str, Any] = {
    "hostname": "celery@node1",
    "version": "1.0",
    "systems": ["alpha"],
    "slots": 2,
    "jobs": {},
    "ended": [],
    "leaving": False,
}
"""A status message, without the members that machines of the first version did not send."""


def record(registry: WorkerRegistry, now: float = 0.0, **changes: Any) -> None:
    """Record a status that differs from STATUS in some members."""
    status = MachineStatus.parse(STATUS | changes, now)
    assert status is not None
    registry.record(status)


def test_slots_are_those_of_the_machines_of_a_system() -> None:
    """Machines add up, and each job takes a slot; machines of other systems do not count."""
    registry = WorkerRegistry()
    assert registry.slots("alpha", 0) == 0
    record(registry)
    record(registry, hostname="celery@node2", systems=["alpha", "beta"], jobs={"m": "k"})
    record(registry, hostname="celery@node3", systems=["beta"], slots=5)
    slots = [registry.slots(system, 0) for system in ("alpha", "beta", "gamma")]
    assert slots == [3, 6, 0]


def test_an_offer_takes_a_slot_until_a_machine_reports_its_job() -> None:
    """The slot counts as taken from the offer on; then the status of the machine counts."""
    registry = WorkerRegistry()
    record(registry)
    registry.add_offer("m1", "k1", "alpha", 0)
    assert registry.slots("alpha", 1) == 1
    record(registry, jobs={"m1": "k1"})
    assert registry.slots("alpha", 1) == 1
    record(registry, ended=["m1"])
    assert registry.slots("alpha", 1) == 2
    registry.add_offer("m2", "k2", "alpha", 1)
    registry.remove_offer("m2")
    assert registry.slots("alpha", 1) == 2


def test_the_end_of_a_short_job_frees_its_slot() -> None:
    """A job may begin and end between two statuses."""
    registry = WorkerRegistry()
    record(registry)
    registry.add_offer("m1", "k1", "alpha", 0)
    record(registry, ended=["m0", "m1"])
    assert registry.slots("alpha", 0) == 2


def test_an_offer_expires() -> None:
    """After `OFFER_SECONDS` the broker has dropped its message, and the slot is free."""
    registry = WorkerRegistry()
    record(registry)
    registry.add_offer("m1", "k1", "alpha", 0)
    record(registry, OFFER_SECONDS)
    assert registry.slots("alpha", OFFER_SECONDS - 0.1) == 1
    assert registry.slots("alpha", OFFER_SECONDS) == 2


def test_an_offer_takes_one_slot_of_machines_that_two_systems_share() -> None:
    """The offer takes the slot of the machine that serves the fewest systems."""
    registry = WorkerRegistry()
    record(registry, systems=["alpha", "beta"], slots=1)
    registry.add_offer("m1", "k1", "alpha", 0)
    assert (registry.slots("alpha", 0), registry.slots("beta", 0)) == (0, 0)
    record(registry, hostname="celery@node2", systems=["alpha"], slots=1)
    assert (registry.slots("alpha", 0), registry.slots("beta", 0)) == (1, 1)


def test_two_machines_of_the_same_name() -> None:
    """Both count; a machine that was restarted counts once, and its earlier jobs are dropped."""
    registry = WorkerRegistry()
    record(registry, run="a", jobs={"m1": "k1"})
    record(registry, run="b")
    assert (registry.slots("alpha", 0), len(registry.machines(0))) == (3, 2)
    assert registry.messages_of("k1", 0)
    record(registry, REPLACED_SECONDS, run="b")
    assert registry.slots("alpha", REPLACED_SECONDS) == 2
    assert not registry.messages_of("k1", REPLACED_SECONDS)
    assert len(registry.machines(REPLACED_SECONDS)) == 1


def test_a_silent_machine_has_no_slots() -> None:
    """A silent machine is shown for an hour; its slots count again with its next status."""
    registry = WorkerRegistry()
    record(registry)
    assert registry.slots("alpha", SILENT_SECONDS) == 0
    assert [status.name for status in registry.machines(SILENT_SECONDS)] == ["celery@node1"]
    record(registry, SILENT_SECONDS)
    assert registry.slots("alpha", SILENT_SECONDS) == 2
    assert registry.machines(SILENT_SECONDS + FORGOTTEN_SECONDS) == []


def test_the_messages_of_a_record() -> None:
    """The messages are those of the record's jobs on machines that are not silent."""
    registry = WorkerRegistry()
    record(registry, jobs={"m1": "k1"})
    assert registry.messages_of("k1", 1) == {"m1"}
    assert not registry.messages_of("m1", 1)
    assert not registry.messages_of("k1", SILENT_SECONDS)


def test_a_machine_that_leaves_has_no_slots() -> None:
    """A machine that leaves only finishes its jobs."""
    registry = WorkerRegistry()
    record(registry, leaving=True)
    assert registry.slots("alpha", 0) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"hostname": 1},
        {"hostname": "x" * 300},
        {"slots": "many"},
        {"slots": -1},
        {"slots": 10**9},
        {"slots": float("inf")},
        {"slots": float("nan")},
        {"jobs": ["k"]},
        {"jobs": {"m": 3}},
        {"jobs": {str(number): "k" for number in range(2000)}},
        {"jobs": [["m", "k"]] * 2000},
        {"systems": 3},
        {"ended": None},
        {"ended": [str(number) for number in range(2000)]},
        {"systems": [str(number) for number in range(2000)]},
    ],
)
def test_an_invalid_status_is_ignored(change: dict[str, Any]) -> None:
    """A member with a wrong type or size, or without a value, makes the whole status invalid."""
    assert MachineStatus.parse(STATUS, 0) is not None
    assert MachineStatus.parse(STATUS | change, 0) is None
    rest = {name: value for name, value in STATUS.items() if name not in change}
    assert MachineStatus.parse(rest, 0) is None


@pytest.mark.parametrize("change", [{"lost": {"m": 3}}, {"run": 3}])
def test_a_status_of_an_older_version_is_valid(change: dict[str, Any]) -> None:
    """Members that came later may be absent, but not invalid."""
    assert MachineStatus.parse(STATUS, 0) is not None
    assert MachineStatus.parse(STATUS | change, 0) is None


@pytest.mark.parametrize("document", [None, [], "x", 3, {}])
def test_a_status_that_is_not_an_object_is_ignored(document: Any) -> None:
    """Parsing returns None and raises nothing."""
    assert MachineStatus.parse(document, 0) is None


def test_names_are_printable() -> None:
    """Control characters are replaced, since names go into logs and onto terminals."""
    status = MachineStatus.parse(STATUS | {"hostname": "a\x1b[31m\nb"}, 0)
    assert status is not None
    assert status.name.isprintable()


def test_the_number_of_machines_is_bounded() -> None:
    """A flood of invented machines takes a bounded amount of memory."""
    registry = WorkerRegistry()
    for number in range(MOST_MACHINES + 5):
        record(registry, hostname=f"celery@{number}")
    assert len(registry.machines(0)) == MOST_MACHINES


def test_each_end_is_reported_once() -> None:
    """The end of a job with a known key is reported once, and each loss, of any gateway's job."""
    registry = WorkerRegistry()
    registry.add_offer("m1", "k1", "alpha", 0)
    record(registry, jobs={"m2": "k2"})
    losses = {"m3": ["k3", "node:1", "was killed by signal 9", True]}
    status = MachineStatus.parse(STATUS | {"ended": ["m0", "m1", "m2", "m3"], "lost": losses}, 1.0)
    assert status is not None
    loss = JobEnd("k3", "node:1", "was killed by signal 9", died=True)
    assert registry.take_ends(status) == [JobEnd("k1"), JobEnd("k2"), loss]
    registry.record(status)
    assert registry.take_ends(status) == []


def test_a_system_whose_machines_start_no_worker() -> None:
    """The fault counts once all its machines have one; a machine that leaves does not count."""
    registry = WorkerRegistry()
    assert registry.start_fault("alpha", 0) == ""
    record(registry, fault="ended with exit code 1", slots=0)
    assert registry.start_fault("alpha", 0) == "ended with exit code 1"
    assert registry.start_fault("beta", 0) == ""
    record(registry, hostname="celery@node2")
    assert registry.start_fault("alpha", 0) == ""
    record(registry, hostname="celery@node2", leaving=True)
    assert registry.start_fault("alpha", 0) == "ended with exit code 1"
    assert registry.serves("alpha", 0)
    assert not registry.serves("alpha", SILENT_SECONDS)


@pytest.mark.parametrize(
    "change",
    [
        {"lost": []},
        {"lost": {"m": ["k", "r", "x"]}},
        {"lost": {"m": ["k", "r", 1, True]}},
        {"lost": {"m": "a text"}},
        {"lost": {str(number): ["k", "r", "x", True] for number in range(2000)}},
        {"fault": 1},
        {"fault": "x" * 300},
    ],
)
def test_a_status_with_an_invalid_loss_is_ignored(change: dict[str, Any]) -> None:
    """The whole status is ignored, not just the loss."""
    assert MachineStatus.parse(STATUS | change, 0) is None
