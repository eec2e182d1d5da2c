"""Find what is known of one image, for a user who may read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shiftergw.config import Config
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.ports import ImageStore
from shiftergw.service.named_images import find_image
from shiftergw.service.redaction import hide_owner


@dataclass(frozen=True, slots=True)
class InspectedImage:
    """The record of a READY image, and the systems that have the same image, sorted by name."""

    record: ImageRecord
    systems: Sequence[str]


class ImageInspections:
    """Describes images; unlike a look-up that renews no expiration and leaves no trace."""

    def __init__(self, config: Config, store: ImageStore) -> None:
        """Describe the images of the systems of `config`."""
        self._config = config
        self._store = store

    async def inspect(self, session: Session, itype: str, text: str) -> InspectedImage:
        """Return the READY image of this name, or id, on the session's system; see `find_image`."""
        record = await find_image(self._store, session, itype, text)
        systems = await self._systems_of(session, record)
        return InspectedImage(hide_owner(session, record), systems)

    async def _systems_of(self, session: Session, record: ImageRecord) -> Sequence[str]:
        """Return the systems that have an image, as far as this user may know.

        A uid may mean another user on another system. So of private images only those count that
        have the same files, and so the same readers.
        """
        _, shared_systems = self._config.directory_of(session.system)
        records = await self._store.find_id(self._config.systems.keys(), record.id or "")
        systems = {
            copy.system for copy in records if not copy.is_private or copy.system in shared_systems
        }
        return sorted(systems | {session.system})
