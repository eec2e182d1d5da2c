"""The table of steps."""

from __future__ import annotations

import pytest

from shiftergw.states import (
    IN_FLIGHT,
    POLLED,
    STEPS,
    IllegalStepError,
    State,
    check_restart,
    check_step,
)

EVERY_PAIR = [(old, new) for old in State for new in State]


@pytest.mark.parametrize(("old", "new"), EVERY_PAIR)
def test_a_step_is_in_the_table_or_raises(old: State, new: State) -> None:
    """Exactly the steps of the table are let through; the error names both states."""
    if new in STEPS[old]:
        check_step(old, new)
    else:
        with pytest.raises(IllegalStepError, match=f"{old} to {new}"):
            check_step(old, new)


def test_every_state_is_in_the_table() -> None:
    """No state is forgotten, and each can be reached except the first."""
    assert set(STEPS) == set(State)
    reachable = set().union(*STEPS.values())
    assert reachable == set(State) - {State.INIT}


def test_work_moves_forward() -> None:
    """No stage of work leads back to an earlier one."""
    stages = [State.PULLING, State.EXAMINATION, State.CONVERSION, State.TRANSFER]
    for n, later in enumerate(stages):
        for earlier in stages[:n]:
            assert earlier not in STEPS[later]


def test_the_end_is_the_end() -> None:
    """Nothing leads out of FAILURE and EXPIRED, and work in flight can always fail."""
    assert STEPS[State.FAILURE] == STEPS[State.EXPIRED] == frozenset()
    for state in POLLED - {State.INIT}:
        assert State.FAILURE in STEPS[state]


def test_the_clients_words() -> None:
    """A client polls exactly while it reads one of these words."""
    words = "INIT PENDING PULLING EXAMINATION CONVERSION TRANSFER"
    assert sorted(POLLED) == sorted(words.split())
    assert set(IN_FLIGHT) - POLLED == {State.EXPIRING}


@pytest.mark.parametrize("state", list(State))
def test_restart(state: State) -> None:
    """A new attempt may start on what is in flight, and on nothing else."""
    if state in IN_FLIGHT:
        check_restart(state)
    else:
        with pytest.raises(IllegalStepError, match=str(state)):
            check_restart(state)
