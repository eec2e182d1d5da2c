"""The states of an image record, and the table of allowed steps between them.

The names are part of the HTTP interface: an existing client polls while it reads a state of
`POLLING_STATES`, and treats every other state as final.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

WaitCause = Literal["registry", "pull", "system"]
"""What a pull waits for: its registry, another pull of this site, or its system."""


class State(StrEnum):
    """The values of a record's `status`."""

    INIT = "INIT"  # just claimed; only the first response to a pull shows it
    PENDING = "PENDING"  # waits for a worker
    PULLING = "PULLING"  # a worker resolves the reference and downloads
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
"""States in which a record has a claim and at most one attempt."""

POLLING_STATES = frozenset({S.INIT, S.PENDING, S.PULLING, S.EXAMINATION, S.CONVERSION, S.TRANSFER})
"""States in which clients poll."""

_WORK = {S.PULLING, S.EXAMINATION, S.CONVERSION, S.TRANSFER}

STEPS: dict[State, frozenset[State]] = {
    S.INIT: frozenset({S.PENDING}),
    S.PENDING: frozenset({S.PULLING, S.FAILURE}),
    # Within an attempt the stages move forward; the next attempt starts at PULLING again. An
    # attempt that ends without a result leads back to PENDING.
    S.PULLING: frozenset({*_WORK, S.PENDING, S.READY, S.FAILURE}),
    S.EXAMINATION: frozenset({*(_WORK - {S.PULLING}), S.PENDING, S.READY, S.FAILURE}),
    S.CONVERSION: frozenset({S.CONVERSION, S.TRANSFER, S.PENDING, S.READY, S.FAILURE}),
    S.TRANSFER: frozenset({S.TRANSFER, S.PENDING, S.READY, S.FAILURE}),
    S.READY: frozenset({S.EXPIRING}),
    S.EXPIRING: frozenset({S.EXPIRED, S.READY}),
    S.FAILURE: frozenset(),
    S.EXPIRED: frozenset(),
}
"""The states that a single step may lead to, from each state."""


class IllegalStepError(Exception):
    """A step that is not in the table: always a fault of this program, never of its input."""


def check_step(old: State, new: State) -> None:
    """Raise `IllegalStepError` unless the table leads from `old` to `new`."""
    if new not in STEPS[old]:
        raise IllegalStepError(f"no step leads from {old} to {new}")


def check_restart(old: State) -> None:
    """Raise `IllegalStepError` unless a new attempt may start on a record in state `old`."""
    if old not in IN_FLIGHT:
        raise IllegalStepError(f"a record that is {old} cannot be taken up again")
