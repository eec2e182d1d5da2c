"""Take uploads from users: declare, receive in chunks, and keep them until images are made.

An upload is declared first, with its size and digest. The same declaration of the same user finds
the same upload again, so a client that was killed resumes it. The gateway only keeps the bytes: it
neither hashes nor parses them. A worker does that when an image is made of the upload.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from shiftergw.errors import (
    NoSpace,
    NotAuthenticated,
    NotFound,
    TooLarge,
    TooMany,
    UploadConflict,
    amount,
    printable,
)
from shiftergw.model.requests import ANONYMOUS, Session
from shiftergw.model.uploads import UploadDeclaration, UserUpload
from shiftergw.plumbing.timing import shield
from shiftergw.ports import ImageStore, UploadSpool, UploadWriter
from shiftergw.service.upload_chunks import Chunk
from shiftergw.service.upload_cleanup import UploadCleanup, is_owner, records_of
from shiftergw.service.upload_space import UploadLimits, UploadSpace

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

PULLS_PER_UPLOAD = 20
"""Images that may be made of one upload at the same time."""

CHUNKS_PER_USER = 8
"""Chunks that one user may send at the same time."""

CHUNKS = 64
"""Chunks of all users that may arrive at the same time; each one occupies a connection."""


class Uploads:
    """The uploads of all users, within limits."""

    _log = Logger()

    def __init__(
        self, spool: UploadSpool, store: ImageStore, limits: UploadLimits, clock: IReactorTime
    ) -> None:
        """Keep uploads in `spool`; `store` has the records of the images that are made of them."""
        self._spool = spool
        self._store = store
        self._limits = limits
        self._space = UploadSpace(spool, limits, clock)
        self._clock = clock
        self._chunks: dict[str, Chunk] = {}
        self.cleanup = UploadCleanup(
            spool, store, limits.keep_seconds, clock, lambda upload_id: upload_id in self._chunks
        )
        self._chunks_of_users: Counter[int] = Counter()
        self._declaring = DeferredLock()

    def expiration(self, upload: UserUpload) -> float:
        """Return the time at which an upload is removed unless it changes before."""
        return upload.last_write + self._limits.keep_seconds

    @property
    def largest_size(self) -> int:
        """Return the bytes of the largest upload."""
        return self._limits.upload

    def check_size(self, size: int) -> None:
        """Raise `TooLarge` if no upload may have this size in bytes."""
        self._space.check_size(size)

    async def declare(self, session: Session, declaration: UploadDeclaration) -> UserUpload:
        """Return the upload of this declaration, a new one unless the user has it already.

        Raises `TooLarge`, `TooMany` or `NoSpace` if a limit does not permit a new one.
        """
        if session.uid == ANONYMOUS:
            raise NotAuthenticated("Without a credential nothing can be uploaded.")
        self.check_size(declaration.size)
        async with self._declaring, self._spool.lock():
            uploads = await self._spool.list()
            for upload in uploads:
                if upload.declaration.is_same_upload(declaration):
                    resumed_upload = await self._resume(upload)
                    if resumed_upload is not None:
                        return resumed_upload
            await self._space.check_declaration(declaration, uploads)
            upload = await self._spool.add(declaration, self._clock.seconds())
        self._log.info(
            "upload {id} of {user}({uid}) for {system} begins: {size}, {kind} {filename}",
            id=upload.id,
            user=printable(session.user, 40),
            uid=session.uid,
            system=session.system,
            size=amount(declaration.size),
            kind=declaration.kind or "a file of unknown kind",
            filename=printable(declaration.filename, 100),
        )
        return upload

    async def _resume(self, upload: UserUpload) -> UserUpload | None:
        """Return an upload whose expiration begins anew, or None if it has just expired."""
        try:
            return await self._spool.touch(upload.id, self._clock.seconds())
        except NoSpace:
            return upload  # on a full disk a complete upload is still of use

    async def get(self, session: Session, upload_id: str) -> UserUpload:
        """Return an upload of the session's user; raise `NotFound` also for other users'."""
        upload = await self._spool.get(upload_id)
        if upload is None or not is_owner(session, upload):
            raise _no_upload(upload_id)
        return upload

    async def list_own(self, session: Session) -> Sequence[tuple[UserUpload, Sequence[str]]]:
        """Return the uploads of the session's user, the last changed one first.

        With each upload are the names of the images that are being made of it.
        """
        if session.uid == ANONYMOUS:
            raise NotAuthenticated("Without a credential there are no uploads.")
        uploads = [upload for upload in await self._spool.list() if is_owner(session, upload)]
        uploads.sort(key=lambda upload: upload.last_write, reverse=True)
        return [(upload, await self._images_in_flight(upload)) for upload in uploads]

    async def _images_in_flight(self, upload: UserUpload) -> Sequence[str]:
        records = await records_of(self._store, upload)
        return [record.pulltag for record in records if record.in_flight and record.pulltag]

    async def remove(self, session: Session, upload_id: str) -> None:
        """Remove an upload of the session's user."""
        upload = await self.get(session, upload_id)
        chunk = self._chunks.get(upload.id)
        if chunk is not None:
            await self._take_over(chunk)
        await self._spool.remove(upload.id)

    async def receive(self, session: Session, upload_id: str, offset: int, size: int) -> Chunk:
        """Open an upload to append a chunk of `size` bytes at `offset`.

        A chunk of the same upload that is still arriving is cut off: its client has usually been
        killed, and its connection has not ended yet. Raises `UploadConflict`, which has the true
        offset, `NotFound`, `NoSpace`, and `TooMany` while too many chunks are arriving.
        """
        upload = await self.get(session, upload_id)
        chunk = self._chunks.get(upload.id)
        if chunk is not None:
            await self._take_over(chunk)
        self._check_share(session)
        # Counted before the first wait, so that concurrent requests see one another.
        self._chunks_of_users[session.uid] += 1
        try:
            writer = await self._open(upload, offset, size)
        except BaseException:
            self._forget_chunk(session.uid)
            raise
        chunk = Chunk(
            writer,
            self._spool,
            self._clock,
            lambda chunk: self._end(upload.id, session.uid, chunk),
        )
        self._chunks[upload.id] = chunk
        return chunk

    async def _open(self, upload: UserUpload, offset: int, size: int) -> UploadWriter:
        """Open an upload for a chunk of `size` bytes at `offset`; raise an error if it differs."""
        writer = await self._spool.open(upload.id)
        if writer is None:
            raise UploadConflict("Another request is writing this upload.", upload.offset)
        try:
            _check_place(writer.upload, offset, size)
            await self._space.check_chunk(size)
        except BaseException:
            await writer.close()
            raise
        return writer

    def _check_share(self, session: Session) -> None:
        if (
            self._chunks_of_users[session.uid] >= CHUNKS_PER_USER
            or self._chunks_of_users.total() >= CHUNKS
        ):
            raise TooMany(
                f"Too many uploads are arriving: {CHUNKS_PER_USER} of one user and {CHUNKS} of all"
                " users may arrive at the same time.",
                remedy="Continue in a moment.",
            )

    async def _take_over(self, chunk: Chunk) -> None:
        """Cut a chunk off and wait until its bytes are durable and its file is closed."""
        await shield(Deferred.fromCoroutine(chunk.abort()))

    def _end(self, upload_id: str, uid: int, chunk: Chunk) -> None:
        if self._chunks.get(upload_id) is chunk:
            del self._chunks[upload_id]
        self._forget_chunk(uid)

    def _forget_chunk(self, uid: int) -> None:
        self._chunks_of_users[uid] -= 1
        if self._chunks_of_users[uid] <= 0:
            del self._chunks_of_users[uid]

    async def get_complete(self, session: Session, upload_id: str) -> UserUpload:
        """Return an upload of the session's user, of which all bytes have arrived.

        Raises `UploadConflict` if bytes are missing, and `NotFound`.
        """
        upload = await self.get(session, upload_id)
        if not upload.is_complete:
            raise UploadConflict(
                f"Only {amount(upload.offset)} of {amount(upload.declaration.size)} of the upload"
                " have arrived.",
                upload.offset,
            )
        return upload

    async def note_pull(self, upload_id: str, key: str) -> None:
        """Note that the record `key` is being made of an upload, which stays until that ends.

        Raises `NotFound` if the upload is gone, and `TooMany` if it has too many pulls already.
        """
        upload = await self._spool.get(upload_id)
        pulls = () if upload is None else upload.pulls
        records = {pull: await self._store.get(pull) for pull in pulls}
        old_pulls = {
            pull for pull, record in records.items() if record is None or not record.in_flight
        }
        if len(pulls) - len(old_pulls) >= PULLS_PER_UPLOAD:
            raise TooMany(f"{PULLS_PER_UPLOAD} images are being made of this upload already.")
        if not await self._spool.note_pull(upload_id, key, self._clock.seconds(), old_pulls):
            raise _no_upload(upload_id)


def _check_place(upload: UserUpload, offset: int, size: int) -> None:
    """Raise an error for a chunk that does not begin at the offset, or ends behind the upload."""
    if offset != upload.offset:
        raise UploadConflict(
            f"The upload continues at offset {upload.offset}, not at {offset}.", upload.offset
        )
    if offset + size > upload.declaration.size:
        raise TooLarge(
            f"The chunk ends behind the declared size of {upload.declaration.size} bytes.",
            remedy="Declare the upload again with its true size.",
        )


def _no_upload(upload_id: str) -> NotFound:
    return NotFound(
        f"There is no upload {printable(upload_id, 40)}.",
        remedy="Declare it again: uploads are removed once their image is made, and when they have"
        " not changed for too long.",
    )
