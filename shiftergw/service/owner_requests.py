"""Answer the requests of users about images of their own, which admins may make about any image.

They remove images or names of images, and pin images so that they do not expire. A removal is
judged by the record that was read, and happens only if the store still has the same users, owners,
readers and pin; otherwise it is judged anew.
"""

from __future__ import annotations

from collections.abc import Callable

from shiftergw.config import Config
from shiftergw.errors import NotAllowed
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.ports import ImageStore
from shiftergw.rules.access import is_owner, may_expire, may_remove
from shiftergw.service.image_requests import missing_image
from shiftergw.service.image_uses import TRIES, changes_too_often
from shiftergw.service.named_images import find_image, tag_of


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
        for _ in range(TRIES):
            record = await self._find(session, itype, text)
            if not may_remove(session, record):
                raise NotAllowed(
                    "Only an admin removes an image that another user has pulled or looked up, or"
                    " may have used before the gateway kept account of it.",
                    remedy="It expires by itself when nobody has used it for long enough.",
                )
            _check_pin(record)
            if await self._store.expire(record.key, expected=record) is not None:
                self._wake()
                return record
        raise changes_too_often()

    async def expire(self, session: Session, itype: str, text: str) -> None:
        """Remove a tag; with its last tag, an image's files are removed too.

        Raises `NotAllowed` for a tag that this user may not remove (`rules.access.may_expire`), and
        for the last tag of a pinned image.
        """
        for _ in range(TRIES):
            record = await self._find(session, itype, text)
            tag = tag_of(record, itype, text)
            if not may_expire(session, record, tag):
                raise NotAllowed(
                    "Only an admin expires an image that others may use too, and only its owner"
                    " and admins expire the name of an uploaded image.",
                    remedy="It expires by itself when nobody has used it for long enough.",
                )
            if record.tags == (tag,):
                _check_pin(record)
            if await self._store.untag(record.key, tag, expected=record) is not None:
                self._wake()
                return
        raise changes_too_often()

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


def _check_pin(record: ImageRecord) -> None:
    """Raise `NotAllowed` if an image is pinned: its removal must be meant."""
    if record.pinned_by is not None:
        raise NotAllowed(
            "The image is pinned, so it stays.", remedy="Unpin it first (`shiftergw unpin`)."
        )
