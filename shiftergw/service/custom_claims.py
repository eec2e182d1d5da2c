"""Answer pulls of uploads: with the work on the upload, its result, or new work.

An image that is made of an upload has the type custom, so it never shadows an image of a registry.
Its name belongs to the user who made it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from shiftergw.config import Config
from shiftergw.errors import BadRequest, GatewayError, NotAllowed, NotAuthenticated, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import ANONYMOUS, PullRequest, Session
from shiftergw.model.uploads import ImageFile, UploadChoice
from shiftergw.ports import ImageStore
from shiftergw.rules.access import would_change_upload_readers
from shiftergw.service.claims import LEAST_FRESH, Claims, check_owner, check_readers
from shiftergw.service.housekeeping import extend_expiration
from shiftergw.service.image_uses import find_and_note
from shiftergw.service.redaction import hide
from shiftergw.service.uploads import Uploads
from shiftergw.states import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from twisted.internet.interfaces import IReactorTime


class CustomClaims:
    """Answers pulls of uploads. The order of the answers is that of `Claims`."""

    def __init__(
        self,
        config: Config,
        store: ImageStore,
        claims: Claims,
        uploads: Uploads | None,
        wake: Callable[[], None],
        clock: IReactorTime,
    ) -> None:
        """Create work in `store` as `claims` does; call `wake` when there is new work."""
        self._config = config
        self._store = store
        self._claims = claims
        self._uploads = uploads
        self._wake = wake
        self._clock = clock

    async def pull_upload(
        self, session: Session, request: PullRequest, choice: UploadChoice
    ) -> ImageRecord:
        """Return the record of the image that is made of an upload.

        Raises `BadRequest` for a name or type that such an image cannot have, `NotFound` and
        `UploadConflict` for an upload that is not there completely, and `NotAllowed` if the name
        belongs to another user.
        """
        if self._uploads is None:
            raise NotAllowed("This gateway takes no files of users.")
        check_name(session, request)
        _check_access(session, request, public=choice.public)
        file = ImageFile(choice.id, selector=choice.selector, public=choice.public)
        uploads = self._uploads

        async def describe() -> ImageFile:
            declaration = (await uploads.get_complete(session, choice.id)).declaration
            kind, size, sha256 = declaration.kind, declaration.size, declaration.sha256
            return replace(file, kind=kind, size=size, sha256=sha256)

        return await self.pull_file(session, request, file, describe)

    async def pull_file(
        self,
        session: Session,
        request: PullRequest,
        file: ImageFile,
        describe: Callable[[], Awaitable[ImageFile]],
    ) -> ImageRecord:
        """Return the record of the image that is made of a file.

        `describe` returns all that is known of the file; it is called before new work is created,
        and raises an error if the user may not have an image made of it.
        """
        request = replace(request, upload=file)
        return await self._claims.answer(
            session, request, lambda: self._find_or_create(session, request, file, describe)
        )

    async def _find_or_create(
        self,
        session: Session,
        request: PullRequest,
        file: ImageFile,
        describe: Callable[[], Awaitable[ImageFile]],
    ) -> ImageRecord:
        existing = await self._work(session, request)
        existing = existing or await self._ready(session, request, file)
        if existing is not None:
            return existing
        file = await describe()
        earlier = await self._image_of_tag(request)
        # Only now its digest is known: the last pull of the image may be of another upload of it.
        existing = await self._ready(session, request, file)
        if existing is not None:
            return existing
        self._claims.check_workers()
        request = replace(request, upload=file)
        record, is_new = await self._store.claim(
            request, self._clock.seconds(), self._claims.limits
        )
        if not is_new:
            return _shown_to(session, record, request)
        try:
            # Another pull of this name may have ended between our query and our claim. Without that
            # the image is not asked for again: the claim has removed failures, which count.
            latest = await self._image_of_tag(request)
            if latest is not None and (earlier is None or latest.last_pull != earlier.last_pull):
                existing = await self._ready(session, request, file)
            if existing is None and self._uploads is not None and file.id:
                await self._uploads.note_pull(file.id, record.key)
        except GatewayError:
            await self._store.abandon(record.key)
            raise
        if existing is not None:
            await self._store.abandon(record.key)
            return existing
        self._wake()
        return replace(record, status=State.INIT)

    async def _image_of_tag(self, request: PullRequest) -> ImageRecord | None:
        return await self._store.find(request.system, request.itype, [request.tag])

    async def _work(self, session: Session, request: PullRequest) -> ImageRecord | None:
        """Return work in flight on this name, or a recent failure of the same request."""
        oldest = self._clock.seconds() - self._config.failure_hold
        for record in await self._store.find_work(request.system, request.itype, request.tag):
            if record.in_flight:
                return _shown_to(session, record, request)
            if _is_own(session, record, request) and (record.last_pull or 0) > oldest:
                return record
        return None

    async def _ready(
        self, session: Session, request: PullRequest, file: ImageFile
    ) -> ImageRecord | None:
        """Return the READY image of the same file with the same access, and remove its upload.

        With another access the image is made again, so that no answer hides who may use it. A
        file that was imported may have changed since: it is read again once the image is not
        fresh. Users who upload one content share its image, whose record has the upload of the last
        pull; so an upload with the same content counts as the same file. Raises `NotAllowed` if
        another user's image has the name.
        """
        record = await self._image_of_tag(request)
        if record is None:
            return None
        now = self._clock.seconds()
        fresh = max(self._config.pull_update_timeout, LEAST_FRESH)
        is_current = bool(file.id) or (record.last_pull or 0) + fresh >= now
        if (
            is_current
            and _has_same_access(session, request, record)
            and await self._is_made_of(request, record, file)
            and await self._claims.is_accepted(record)
        ):
            timeout = self._config.image_expiration_timeout
            await extend_expiration(self._store, record, now, timeout)
            if self._uploads is not None and file.id:
                with suppress(Unavailable):
                    await self._uploads.cleanup.forget(session, file.id)
            return record
        check_owner(session, record, request.tag)
        return None

    async def _is_made_of(self, request: PullRequest, record: ImageRecord, file: ImageFile) -> bool:
        """Return whether a READY image is made of a file, or of one with the same content.

        The image does not count if work on it has failed since: its file may be gone from the
        system, and then the user uploads it again.
        """
        if not _is_same(file, record.upload):
            return False
        work = await self._store.find_work(request.system, request.itype, request.tag)
        return not any(
            failure.status is State.FAILURE
            and (failure.last_pull or 0) > (record.last_pull or 0)
            and (failure.upload is None or _is_same(file, failure.upload))
            for failure in work
        )

    async def find_image_of_content(
        self, session: Session, request: PullRequest, file: ImageFile
    ) -> ImageRecord | None:
        """Return the READY image of a name if a file with this content would change nothing.

        `file` needs no id, since nothing has been uploaded. Returns None for another content or
        access, and while there is work on the name. Raises the error that a pull of the file would
        end with at once. An upload of the file that was interrupted is of no more use, and removed.
        """
        return await find_and_note(
            self._store, session, lambda: self._find_image_of_content(session, request, file)
        )

    async def _find_image_of_content(
        self, session: Session, request: PullRequest, file: ImageFile
    ) -> ImageRecord | None:
        _check_access(session, request, public=file.public)
        await self.check_new_image(session, request)
        record = await self._image_of_tag(request)
        if record is None or not file.sha256:
            return None
        if not await self._is_made_of(request, record, file):
            return None
        if not _has_same_access(session, request, record):
            return None
        work = await self._store.find_work(request.system, request.itype, request.tag)
        if any(pull.in_flight for pull in work) or not await self._claims.is_accepted(record):
            return None
        timeout = self._config.image_expiration_timeout
        await extend_expiration(self._store, record, self._clock.seconds(), timeout)
        if self._uploads is not None:
            with suppress(Unavailable):
                await self._uploads.cleanup.forget_content(session, file)
        return record

    async def check_new_image(self, session: Session, request: PullRequest) -> None:
        """Raise an error if the user may not have an image of this name made of a file.

        A later pull may still be refused: the name is not reserved.
        """
        check_name(session, request)
        record = await self._image_of_tag(request)
        if record is not None:
            check_owner(session, record, request.tag)


def check_name(session: Session, request: PullRequest) -> None:
    """Raise an error for a name or type that an image made of a file cannot have."""
    if session.uid == ANONYMOUS:
        raise NotAuthenticated("Without a credential no image is made of an upload.")
    if request.itype != "custom":
        raise BadRequest(
            "An image that is made of an upload has the type custom.",
            remedy="Write custom:NAME, so that it does not shadow an image of a registry.",
        )
    request.reference.check_uploaded_name()


def _check_access(session: Session, request: PullRequest, *, public: bool) -> None:
    """Raise an error for readers that an image made of an upload cannot have."""
    check_readers(session, request)
    if public and (request.user_acl or request.group_acl):
        raise BadRequest("An image that everybody may use has no list of readers.")


def _is_same(file: ImageFile, other_file: ImageFile | None) -> bool:
    return other_file is not None and (
        file.is_same_file(other_file) or file.has_same_content(other_file)
    )


def _has_same_access(session: Session, request: PullRequest, ready: ImageRecord) -> bool:
    """Return whether a user may use a READY image, and a pull would not change who else may."""
    return ready.may_be_read_by(session) and not would_change_upload_readers(
        session, request.user_acl, request.group_acl, ready
    )


def _is_own(session: Session, record: ImageRecord, request: PullRequest) -> bool:
    """Return whether work, or a failure, is that of the same request of the same user."""
    return (
        record.requested_by == session.uid
        and request.upload is not None
        and request.upload.is_same_file(record.upload)
        and {*request.user_acl} == {*(record.user_acl or ())}
        and {*request.group_acl} == {*(record.group_acl or ())}
    )


def _shown_to(session: Session, record: ImageRecord, request: PullRequest) -> ImageRecord:
    """Return work in flight on a name as the user of an upload may see it."""
    if _is_own(session, record, request):
        return record
    owner = "your other pull" if record.requested_by == session.uid else "another user's pull"
    return hide(record, f"Waiting for {owner} of the same name")
