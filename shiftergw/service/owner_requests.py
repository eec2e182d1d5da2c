"""Answer the requests of users about images of their own, which admins may make about any image.

They remove images, and pin them so that they do not expire.
"""

from __future__ import annotations

from collections.abc import Callable

from shiftergw.config import Config
from shiftergw.errors import NotAllowed
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.ports import ImageStore
from shiftergw.rules.access import is_owner, may_remove
from shiftergw.service.image_requests import missing_image
from shiftergw.service.named_images import find_image


class OwnerRequests:
    """Answers the requests of owners and admins; each raises the errors of `find_image`."""

    def __init__(self, config: Config, store: ImageStore, wake: Callable[[], None]) -> None:
        """Call `wake` when there is new work for the workers."""
        self._config = config
        self._store = store
        self._wake = wake

    async def remove(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Remove an image of the session's system with all its tags; return its record.

        Raises `NotAllowed` if it is pinned, or if this user may not (`rules.access.may_remove`).
        """
        record = await self._find(session, itype, text)
        if not may_remove(session, record):
            raise NotAllowed(
                "Only an admin removes an image that another user has pulled or looked up, or may"
                " have used before the gateway kept account of it.",
                remedy="It expires by itself when nobody has used it for long enough.",
            )
        check_pin(record)
        if await self._store.expire(record.key) is None:
            raise missing_image(session, itype, text)
        self._wake()
        return record

    async def pin(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Have an image not expire, and return its record.

        Raises `NotAllowed` for an image of another user, or if only admins pin images, and
        `TooMany` if the user has pinned as many as `PinLimit` says.
        """
        record = await self._find(session, itype, text)
        limit = None if session.admin else self._config.pin_limit_of(session.system)
        if limit == 0:
            raise NotAllowed(
                f"Only admins of {session.system} pin images.",
                remedy="Ask the site's support; PinLimit lets users pin some of their own.",
            )
        if not (session.admin or is_owner(session, record)):
            raise NotAllowed("Only its owner and admins pin an image.")
        pinned_record = await self._store.pin(record.key, session.uid, limit)
        if pinned_record is None:
            raise missing_image(session, itype, text)
        return pinned_record

    async def unpin(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Let an image expire again, and return its record.

        Raises `NotAllowed` if somebody else has pinned it.
        """
        record = await self._find(session, itype, text)
        if record.pinned_by is not None and not (session.admin or record.pinned_by == session.uid):
            raise NotAllowed("Only admins unpin an image that another user has pinned.")
        unpinned_record = await self._store.unpin(record.key)
        if unpinned_record is None:
            raise missing_image(session, itype, text)
        return unpinned_record

    async def _find(self, session: Session, itype: str, text: str) -> ImageRecord:
        return await find_image(self._store, session, itype, text, admins_see_all=True)


def check_pin(record: ImageRecord) -> None:
    """Raise `NotAllowed` if an image is pinned: its removal must be meant."""
    if record.pinned_by is not None:
        raise NotAllowed(
            "The image is pinned, so it stays.", remedy="Unpin it first (`shiftergw unpin`)."
        )
