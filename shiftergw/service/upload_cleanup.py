"""Remove uploads that are of no more use: their image is made, or they were abandoned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from twisted.logger import Logger

from shiftergw.errors import GatewayError
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import ANONYMOUS, Session
from shiftergw.model.uploads import ImageFile, UploadDeclaration, UserUpload
from shiftergw.ports import ImageStore, UploadSpool

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

PAUSE_SECONDS = 60.0
"""Seconds without a change after which nobody is sending an upload: clients retry for so long."""


class UploadCleanup:
    """Removes uploads, except those of which an image is being made or that are changing."""

    _log = Logger()

    def __init__(
        self,
        spool: UploadSpool,
        store: ImageStore,
        keep_seconds: float,
        clock: IReactorTime,
        is_arriving: Callable[[str], bool],
    ) -> None:
        """Keep uploads for `keep_seconds` after their last change.

        `is_arriving` returns whether a chunk of the upload with this id is arriving.
        """
        self._spool = spool
        self._store = store
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._is_arriving = is_arriving

    async def forget(self, session: Session, upload_id: str) -> None:
        """Remove an upload of the session's user, of which an image has been made.

        It stays while another image is being made of it.
        """
        upload = await self._spool.get(upload_id)
        if upload is not None and is_owner(session, upload):
            await self._remove_unused(upload)

    async def forget_content(self, session: Session, file: ImageFile) -> None:
        """Remove the upload of a file of the session's user, whose image is there without it.

        It stays while an image is being made of it, and for `PAUSE_SECONDS` after its last change:
        another command may be sending it.
        """
        newest = self._clock.seconds() - PAUSE_SECONDS
        declaration = UploadDeclaration(
            session.system, session.uid, file.size, file.sha256, file.kind
        )
        for upload in await self._spool.list():
            is_idle = upload.last_write < newest and not self._is_arriving(upload.id)
            if is_idle and upload.declaration.is_same_upload(declaration):
                await self._remove_unused(upload)

    async def _remove_unused(self, upload: UserUpload) -> None:
        records = await records_of(self._store, upload)
        if not any(record.in_flight for record in records):
            await self._spool.remove(upload.id, upload)

    async def tidy_up(self) -> None:
        """Remove uploads whose image is made, and those that have not changed for too long.

        An upload stays while a pull of it waits or works, and after a failure, so that its user can
        try again.
        """
        oldest = self._clock.seconds() - self._keep_seconds
        for upload in await self._spool.list():
            records = await records_of(self._store, upload)
            if any(record.in_flight for record in records):
                continue
            is_made = any(record.is_ready for record in records)
            if is_made or (upload.last_write < oldest and not self._is_arriving(upload.id)):
                await self._discard(upload, "its image is made" if is_made else "it was abandoned")
        await self._spool.sweep(oldest)

    async def _discard(self, upload: UserUpload, reason: str) -> None:
        """Remove an upload unless it has changed; log errors, so that the others are removed."""
        try:
            is_gone = await self._spool.remove(upload.id, upload)
        except GatewayError as error:
            self._log.error(
                "upload {id} of uid {uid} cannot be removed: {error} {detail}",
                id=upload.id,
                uid=upload.declaration.uid,
                error=str(error),
                detail=error.detail,
            )
            return
        if is_gone:
            self._log.info(
                "upload {id} of uid {uid} is removed: {reason}",
                id=upload.id,
                uid=upload.declaration.uid,
                reason=reason,
            )


def is_owner(session: Session, upload: UserUpload) -> bool:
    """Return whether an upload is of the session's user, on the session's system."""
    declaration = upload.declaration
    return session.uid != ANONYMOUS and (declaration.system, declaration.uid) == (
        session.system,
        session.uid,
    )


async def records_of(store: ImageStore, upload: UserUpload) -> Sequence[ImageRecord]:
    """Return the records of the pulls of an upload."""
    records = [await store.get(key) for key in upload.pulls]
    return [record for record in records if record is not None]
