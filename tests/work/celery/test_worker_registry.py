"""What worker machines tell is believed as far as it makes sense; slots are counted carefully."""

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

TOLD: dict[str, Any] = {
    "hostname": "celery@node1",
    "version": "1.0",
    "systems": ["alpha"],
    "slots": 2,
    "jobs": {},
    "ended": [],
    "leaving": False,
}


def told(crew: WorkerRegistry, now: float = 0.0, **changes: Any) -> None:
    """Take in what a machine tells."""
    machine = MachineStatus.parse(TOLD | changes, now)
    assert machine is not None
    crew.told(machine)


def test_slots_are_those_of_the_machines_for_a_system() -> None:
    """Machines add up; a job takes a slot; what another system's machines have is no help."""
    crew = WorkerRegistry()
    assert crew.slots("alpha", 0) == 0
    told(crew)
    told(crew, hostname="celery@node2", systems=["alpha", "beta"], jobs={"m": "k"})
    told(crew, hostname="celery@node3", systems=["beta"], slots=5)
    assert (crew.slots("alpha", 0), crew.slots("beta", 0), crew.slots("gamma", 0)) == (3, 6, 0)


def test_an_offer_takes_a_slot_until_it_is_taken() -> None:
    """From the moment it is made; once a machine has it, the machine's word counts."""
    crew = WorkerRegistry()
    told(crew)
    crew.offered("m1", "k1", "alpha", 0)
    assert crew.slots("alpha", 1) == 1
    told(crew, jobs={"m1": "k1"})
    assert crew.slots("alpha", 1) == 1
    told(crew, ended=["m1"])
    assert crew.slots("alpha", 1) == 2
    crew.offered("m2", "k2", "alpha", 1)
    crew.withdrawn("m2")
    assert crew.slots("alpha", 1) == 2


def test_a_short_job_is_noticed_by_its_end() -> None:
    """Also when nobody heard that it began."""
    crew = WorkerRegistry()
    told(crew)
    crew.offered("m1", "k1", "alpha", 0)
    told(crew, ended=["m0", "m1"])
    assert crew.slots("alpha", 0) == 2


def test_an_offer_that_nobody_takes_is_forgotten() -> None:
    """Its message has gone from the broker by then."""
    crew = WorkerRegistry()
    told(crew)
    crew.offered("m1", "k1", "alpha", 0)
    told(crew, OFFER_SECONDS)
    assert crew.slots("alpha", OFFER_SECONDS - 0.1) == 1
    assert crew.slots("alpha", OFFER_SECONDS) == 2


def test_a_slot_that_two_systems_share_is_given_once() -> None:
    """An offer takes the slot of a machine without choice first, so that the other stays free."""
    crew = WorkerRegistry()
    told(crew, systems=["alpha", "beta"], slots=1)
    crew.offered("m1", "k1", "alpha", 0)
    assert (crew.slots("alpha", 0), crew.slots("beta", 0)) == (0, 0)
    told(crew, hostname="celery@node2", systems=["alpha"], slots=1)
    assert (crew.slots("alpha", 0), crew.slots("beta", 0)) == (1, 1)


def test_two_machines_of_one_name() -> None:
    """Both count; one that was started again counts once, and its old job is nobody's."""
    crew = WorkerRegistry()
    told(crew, run="a", jobs={"m1": "k1"})
    told(crew, run="b")
    assert (crew.slots("alpha", 0), len(list(crew.machines(0)))) == (3, 2)
    assert crew.messages_of("k1", 0)
    told(crew, REPLACED_SECONDS, run="b")
    assert crew.slots("alpha", REPLACED_SECONDS) == 2
    assert not crew.messages_of("k1", REPLACED_SECONDS)
    assert len(list(crew.machines(REPLACED_SECONDS))) == 1


def test_a_silent_machine_has_no_slots() -> None:
    """It is shown for a while, and back when it tells again."""
    crew = WorkerRegistry()
    told(crew)
    assert crew.slots("alpha", SILENT_SECONDS) == 0
    assert [one.name for one in crew.machines(SILENT_SECONDS)] == ["celery@node1"]
    told(crew, SILENT_SECONDS)
    assert crew.slots("alpha", SILENT_SECONDS) == 2
    assert list(crew.machines(SILENT_SECONDS + FORGOTTEN_SECONDS)) == []


def test_who_works_on_what() -> None:
    """A machine's word counts, while it says something."""
    crew = WorkerRegistry()
    told(crew, jobs={"m1": "k1"})
    assert crew.messages_of("k1", 1)
    assert not crew.messages_of("m1", 1)
    assert not crew.messages_of("k1", SILENT_SECONDS)


def test_a_machine_that_leaves_takes_no_more() -> None:
    """It only finishes what it has."""
    crew = WorkerRegistry()
    told(crew, leaving=True)
    assert crew.slots("alpha", 0) == 0


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
        {"jobs": {str(n): "k" for n in range(2000)}},
        {"jobs": [["m", "k"]] * 2000},
        {"systems": 3},
        {"ended": None},
        {"ended": [str(n) for n in range(2000)]},
        {"systems": [str(n) for n in range(2000)]},
    ],
)
def test_nonsense_is_not_believed(change: dict[str, Any]) -> None:
    """Whoever may write to the broker may tell anything."""
    assert MachineStatus.parse(TOLD, 0) is not None
    assert MachineStatus.parse(TOLD | change, 0) is None
    assert MachineStatus.parse({key: TOLD[key] for key in TOLD if key not in change}, 0) is None


@pytest.mark.parametrize("change", [{"lost": {"m": 3}}, {"run": 3}])
def test_nonsense_that_may_be_absent(change: dict[str, Any]) -> None:
    """Machines of an older version do not tell it, and are shown with theirs."""
    assert MachineStatus.parse(TOLD, 0) is not None
    assert MachineStatus.parse(TOLD | change, 0) is None


@pytest.mark.parametrize("said", [None, [], "x", 3, {}])
def test_what_is_no_object_is_not_believed(said: Any) -> None:
    """Nor does it raise anything."""
    assert MachineStatus.parse(said, 0) is None


def test_names_are_printable() -> None:
    """They go into logs and onto terminals."""
    machine = MachineStatus.parse(TOLD | {"hostname": "a\x1b[31m\nb"}, 0)
    assert machine is not None
    assert machine.name.isprintable()


def test_machines_are_bounded() -> None:
    """A flood of made-up machines takes no more memory than this."""
    crew = WorkerRegistry()
    for n in range(MOST_MACHINES + 5):
        told(crew, hostname=f"celery@{n}")
    assert len(list(crew.machines(0))) == MOST_MACHINES


def test_ends_are_told_once() -> None:
    """Of jobs that were offered or seen before; those that were lost, whoever offered them."""
    crew = WorkerRegistry()
    crew.offered("m1", "k1", "alpha", 0)
    told(crew, jobs={"m2": "k2"})
    lost = {"m3": ["k3", "node:1", "was killed by signal 9", True]}
    machine = MachineStatus.parse(TOLD | {"ended": ["m0", "m1", "m2", "m3"], "lost": lost}, 1.0)
    assert machine is not None
    killed = JobEnd("k3", "node:1", "was killed by signal 9", died=True)
    assert crew.ends(machine) == [JobEnd("k1"), JobEnd("k2"), killed]
    crew.told(machine)
    assert crew.ends(machine) == []


def test_a_system_whose_machines_are_broken() -> None:
    """It is, once all that serve it are; one that leaves is no help."""
    crew = WorkerRegistry()
    assert crew.fault("alpha", 0) == ""
    told(crew, fault="ended with exit code 1", slots=0)
    assert crew.fault("alpha", 0) == "ended with exit code 1"
    assert crew.fault("beta", 0) == ""
    told(crew, hostname="celery@node2")
    assert crew.fault("alpha", 0) == ""
    told(crew, hostname="celery@node2", leaving=True)
    assert crew.fault("alpha", 0) == "ended with exit code 1"
    assert crew.serves("alpha", 0)
    assert not crew.serves("alpha", SILENT_SECONDS)


@pytest.mark.parametrize(
    "change",
    [
        {"lost": []},
        {"lost": {"m": ["k", "r", "x"]}},
        {"lost": {"m": ["k", "r", 1, True]}},
        {"lost": {"m": "a text"}},
        {"lost": {str(n): ["k", "r", "x", True] for n in range(2000)}},
        {"fault": 1},
        {"fault": "x" * 300},
    ],
)
def test_nonsense_about_losses(change: dict[str, Any]) -> None:
    """What cannot be read is thrown away as a whole."""
    assert MachineStatus.parse(TOLD | change, 0) is None
