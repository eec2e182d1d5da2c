"""Note who uses images, so that no user removes one that somebody else relies on.

`ImageRecord.only_user` is the user of an image's first pull, until another user asks for it. The
answer to that other user waits for the note: if it were sent without one, the image would still
count as one user's alone. The order of the note and of a removal is that of the store. A note that
comes too late finds no image, and then the request is answered as if it had come after the removal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from shiftergw.errors import Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.ports import ImageStore

TRIES = 10
"""How often a request is tried whose image other requests change in between."""

Record = TypeVar("Record", ImageRecord, ImageRecord | None)


async def find_and_note(
    store: ImageStore, session: Session, find: Callable[[], Awaitable[Record]]
) -> Record:
    """Return the record that `find` returns, once it is noted that a user has asked for it.

    Only the first use by another user is written. Raises `Unavailable` if the store cannot write
    it.
    """
    for _ in range(TRIES):
        record = await find()
        if record is None or await _note_use(store, session, record):
            return record
    raise changes_too_often()


async def _note_use(store: ImageStore, session: Session, record: ImageRecord) -> bool:
    """Note the use of an image, or of a pull in flight; return whether it still exists."""
    is_usable = record.is_ready or record.is_polled
    if not is_usable or record.only_user in {None, session.uid}:
        return True
    return await store.note_use(record.key, session.uid)


def changes_too_often() -> Unavailable:
    """Return the error for a request whose image other requests changed at each try."""
    return Unavailable("Other requests change the image at the moment.")
