"""Tests of the table of steps between states."""

from __future__ import annotations

import pytest

from shiftergw.states import (
    IN_FLIGHT,
    POLLING_STATES,
    STEPS,
    IllegalStepError,
    State,
    check_restart,
    check_step,
)

EVERY_PAIR = [(old, new) for old in State for new in State]


@pytest.mark.parametrize(("old", "new"), EVERY_PAIR)
def test_a_step_is_in_the_table_or_raises(old: State, new: State) -> None:
    """Exactly the steps of the table are allowed; the error names both states."""
    if new in STEPS[old]:
        check_step(old, new)
    else:
        with pytest.raises(IllegalStepError, match=f"{old} to {new}"):
            check_step(old, new)


def test_every_state_is_in_the_table() -> None:
    """Every state is in the table, and each but the first can be reached."""
    assert set(STEPS) == set(State)
    reachable = set().union(*STEPS.values())
    assert reachable == set(State) - {State.INIT}


def test_work_moves_forward() -> None:
    """No stage of work leads back to an earlier one."""
    stages = [State.PULLING, State.EXAMINATION, State.CONVERSION, State.TRANSFER]
    for n, next_stage in enumerate(stages):
        for earlier in stages[:n]:
            assert earlier not in STEPS[next_stage]


def test_final_states_have_no_steps() -> None:
    """FAILURE and EXPIRED have no steps, and work in flight can always fail."""
    assert STEPS[State.FAILURE] == STEPS[State.EXPIRED] == frozenset()
    for state in POLLING_STATES - {State.INIT}:
        assert State.FAILURE in STEPS[state]


def test_the_states_that_clients_poll() -> None:
    """A client polls exactly while it reads one of these states."""
    words = "INIT PENDING PULLING EXAMINATION CONVERSION TRANSFER"
    assert sorted(POLLING_STATES) == sorted(words.split())
    assert set(IN_FLIGHT) - POLLING_STATES == {State.EXPIRING}


@pytest.mark.parametrize("state", list(State))
def test_restart(state: State) -> None:
    """A new attempt can start on a record in flight only."""
    if state in IN_FLIGHT:
        check_restart(state)
    else:
        with pytest.raises(IllegalStepError, match=str(state)):
            check_restart(state)
