"""What users see of the images and the pulls of other users."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.service.redaction import hide_owner, redact
from shiftergw.states import State
from tests.service.gateway_bench import ADMIN, ALICE, ANONYMOUS_SESSION, BOB

IMAGE = ImageRecord(status=State.READY, private=False, requested_by=ALICE.uid)


@pytest.mark.parametrize("session", [BOB, ANONYMOUS_SESSION])
def test_nobody_sees_who_pulled_a_public_image(session: Session) -> None:
    """An image of a registry that everybody may use shows its owner to nobody else."""
    assert hide_owner(session, IMAGE) == replace(IMAGE, requested_by=None)


@pytest.mark.parametrize(
    ("session", "image"),
    [
        (ALICE, IMAGE),
        (ADMIN, IMAGE),
        (BOB, replace(IMAGE, private=True)),
        (BOB, replace(IMAGE, itype="custom")),
    ],
)
def test_who_sees_the_owner_of_an_image(session: Session, image: ImageRecord) -> None:
    """The owner and admins do, readers of private images, and everybody for uploads."""
    assert hide_owner(session, image) is image


def test_who_sees_whose_a_pull_is() -> None:
    """The user and admins see the user of a pull; to all others it is a pull of somebody."""
    work = ImageRecord(requested_by=ALICE.uid, requester="alice", request_id="1a2b3c4d")
    assert redact(ALICE, work) is work
    assert redact(ADMIN, work) is work
    row = redact(BOB, work)
    assert (row.requested_by, row.requester, row.request_id) == (None, None, None)
