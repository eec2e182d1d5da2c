"""The states of an image record and the one table of steps between them.

The words are those of the existing clients (contract of the HTTP interface): a client polls while
it reads one of `POLLED`, and takes every other word for the end.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

WaitCause = Literal["registry", "pull", "system"]
"""What a pull waits for: its registry, another pull of this site, or its system."""


class State(StrEnum):
    """What a record's `status` may say."""

    INIT = "INIT"  # claimed a moment ago; only the first answer of a pull shows it
    PENDING = "PENDING"  # waits for a worker
    PULLING = "PULLING"  # a worker resolves and fetches
    EXAMINATION = "EXAMINATION"  # layers are indexed and checked
    CONVERSION = "CONVERSION"  # mksquashfs runs
    TRANSFER = "TRANSFER"  # delivery into the image directory
    READY = "READY"
    FAILURE = "FAILURE"
    EXPIRING = "EXPIRING"  # a worker removes the files
    EXPIRED = "EXPIRED"


S = State

IN_FLIGHT = frozenset(
    {S.INIT, S.PENDING, S.PULLING, S.EXAMINATION, S.CONVERSION, S.TRANSFER, S.EXPIRING}
)
"""States in which a record carries a claim and belongs to at most one attempt."""

POLLED = frozenset({S.INIT, S.PENDING, S.PULLING, S.EXAMINATION, S.CONVERSION, S.TRANSFER})
"""States that keep a polling client waiting."""

_WORK = {S.PULLING, S.EXAMINATION, S.CONVERSION, S.TRANSFER}

STEPS: dict[State, frozenset[State]] = {
    S.INIT: frozenset({S.PENDING}),
    S.PENDING: frozenset({S.PULLING, S.FAILURE}),
    # Within one attempt work moves forward; a new attempt starts again at PULLING. An attempt that
    # ends without a result leads back to PENDING.
    S.PULLING: frozenset({*_WORK, S.PENDING, S.READY, S.FAILURE}),
    S.EXAMINATION: frozenset({*(_WORK - {S.PULLING}), S.PENDING, S.READY, S.FAILURE}),
    S.CONVERSION: frozenset({S.CONVERSION, S.TRANSFER, S.PENDING, S.READY, S.FAILURE}),
    S.TRANSFER: frozenset({S.TRANSFER, S.PENDING, S.READY, S.FAILURE}),
    S.READY: frozenset({S.EXPIRING}),
    S.EXPIRING: frozenset({S.EXPIRED, S.READY}),
    S.FAILURE: frozenset(),
    S.EXPIRED: frozenset(),
}
"""From each state, the states a single step may lead to."""


class IllegalStepError(Exception):
    """A step that the table does not have: a fault of this program, never of its input."""


def check_step(old: State, new: State) -> None:
    """Raise `IllegalStepError` unless the table leads from `old` to `new`."""
    if new not in STEPS[old]:
        raise IllegalStepError(f"no step leads from {old} to {new}")


def check_restart(old: State) -> None:
    """Raise `IllegalStepError` unless a new attempt may start on a record in state `old`."""
    if old not in IN_FLIGHT:
        raise IllegalStepError(f"a record that is {old} cannot be taken up again")
