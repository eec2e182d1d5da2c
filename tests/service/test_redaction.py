"""What users see of the images and the pulls of other users."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.service.redaction import hide_owner
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
