"""Answer the requests of a session: list, lookup, pull, queue, expire; `admin` has those of admins.

Nothing here touches images: a pull becomes a record in the store, and a worker does the work.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shiftergw.config import Config
from shiftergw.errors import (
    NotAllowed,
    NotAuthenticated,
    NoWorkers,
    Unavailable,
)
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import ANONYMOUS, Session
from shiftergw.model.uploads import ImageFile, UploadChoice
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.timing import within
from shiftergw.ports import ImageStore, JobQueue, LoginChecker, QueueTrouble
from shiftergw.service.admin_requests import AdminRequests
from shiftergw.service.claims import Claims, IsJudged, judges_nothing
from shiftergw.service.custom_claims import CustomClaims
from shiftergw.service.explanations import Explanations
from shiftergw.service.housekeeping import extend_expiration
from shiftergw.service.image_requests import pull_request
from shiftergw.service.image_uses import find_and_note
from shiftergw.service.imports import FileImports, ImportChoice
from shiftergw.service.inspection import ImageInspections
from shiftergw.service.login_checks import LoginChecks
from shiftergw.service.named_images import find_image
from shiftergw.service.owner_requests import OwnerRequests
from shiftergw.service.page_sessions import PageSessions
from shiftergw.service.redaction import hide_owner, may_see, redact
from shiftergw.service.user_files import UserFileServices
from shiftergw.service.work_queue import WorkQueue

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


PAGE = 250
"""Records of a list that are processed at once; other requests are answered between two pages."""

READY_SECONDS = 5.0
"""Seconds for the database to show that it is ready: monitoring does not wait for long."""


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What not every gateway has.

    Without `files` no images are made of files of users. `is_judged` knows the policies of systems.
    Without `explanations` no pulls are explained, and without a `login_checker` no logins are
    tried.
    """

    files: UserFileServices | None = None
    is_judged: IsJudged = judges_nothing
    explanations: Explanations | None = None
    login_checker: LoginChecker | None = None


DEFAULT_OPTIONS = GatewayOptions()


class Gateway:
    """Answers the requests of sessions, from the store."""

    def __init__(
        self,
        config: Config,
        store: ImageStore,
        seal: Callable[[], Seal],
        wake: Callable[[], None],
        clock: IReactorTime,
        queue: JobQueue,
        options: GatewayOptions = DEFAULT_OPTIONS,
    ) -> None:
        """Encrypt logins with `seal`; call `wake` when there is new work for the `queue`."""
        self._config = config
        self._store = store
        self._wake = wake
        self._clock = clock
        self._queue = queue
        self.admin = AdminRequests(config, store, wake, clock, queue)
        self.owner = OwnerRequests(config, store, wake)
        self._files = options.files
        self._explanations = options.explanations
        checker = options.login_checker
        self._logins = None if checker is None else LoginChecks(config, checker, clock)
        self._claims = Claims(config, store, seal, wake, clock, queue.trouble, options.is_judged)
        self.work = WorkQueue(store, self._claims.waiting)
        self.page_sessions = PageSessions(seal, store.used_credentials, clock)
        self.inspections = ImageInspections(config, store)
        uploads = None if options.files is None else options.files.uploads
        self._custom_claims = CustomClaims(config, store, self._claims, uploads, wake, clock)

    @property
    def systems(self) -> Collection[str]:
        """Return the names of the configured systems."""
        return self._config.systems.keys()

    @property
    def allows_anonymous(self) -> bool:
        """Return whether requests without a credential are answered, for public images."""
        return self._config.allow_anonymous

    @property
    def files(self) -> UserFileServices:
        """Return what is needed for files of users; raise `NotAllowed` if none are taken."""
        if self._files is None:
            raise NotAllowed("This gateway takes no files of users.")
        return self._files

    @property
    def explanations(self) -> Explanations:
        """Return what explains pulls; raise `NotAllowed` if this gateway does not."""
        if self._explanations is None:
            raise NotAllowed(
                "This gateway explains no pulls: other machines do its work.",
                remedy="Ask the site's support, who can run `shiftergw explain` there.",
            )
        return self._explanations

    @property
    def logins(self) -> LoginChecks:
        """Return what tries logins; raise `NotAllowed` if this gateway does not."""
        if self._logins is None:
            raise NotAllowed("This gateway tries no logins.")
        return self._logins

    @property
    def shows_labels(self) -> bool:
        """Return whether answers contain the labels of images."""
        return self._config.enable_labels

    async def ready(self) -> None:
        """Return if the gateway can do its work; raise `Unavailable` with the reason.

        Unreachable worker machines are not a reason: another gateway could not reach them either,
        and this one still answers look-ups.
        """
        await within(READY_SECONDS, self._clock, self._store.ready(), _database_is_late)
        trouble = self._queue.trouble() if self._config.broker_url is None else None
        if trouble is not None and trouble.grave:
            raise NoWorkers(trouble.what, detail=trouble.detail)

    async def list(self, session: Session) -> AsyncIterator[Sequence[ImageRecord]]:
        """Yield pages of the READY images on the session's system that its user may read."""
        page = await self._store.list(session.system, limit=PAGE)
        while page:
            yield [hide_owner(session, record) for record in page if record.may_be_read_by(session)]
            page = await self._store.list(session.system, page[-1].key, PAGE)

    async def lookup(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Return the READY image of this name, and extend its expiration.

        Raises the errors of `find_image` and of `find_and_note`.
        """
        now = self._clock.seconds()
        record = await find_and_note(
            self._store, session, lambda: find_image(self._store, session, itype, text)
        )
        await extend_expiration(self._store, record, now, self._config.image_expiration_timeout)
        if self._config.metrics:
            await self._store.record_lookup(
                {
                    "user": session.user,
                    "uid": session.uid,
                    "system": session.system,
                    "type": itype,
                    "tag": text,
                    "id": record.id,
                    "time": now,
                }
            )
        return record

    async def pull(
        self,
        session: Session,
        itype: str,
        text: str,
        user_acl: tuple[int, ...],
        group_acl: tuple[int, ...],
        request_id: str,
        upload: UploadChoice | None = None,
    ) -> ImageRecord:
        """Return the record of this image, starting work on it if necessary (see `Claims`).

        With an `upload` the image is made of it, and its type is `custom`. Raises `BadRequest`
        before anything is stored.
        """
        request = pull_request(session, itype, text, request_id, user_acl, group_acl)
        if upload is not None:
            return await self._custom_claims.pull_upload(session, request, upload)
        return await self._claims.pull(session, request, text)

    async def check_new_image(self, session: Session, text: str) -> None:
        """Raise the error that a pull of an upload under this name would end with at once."""
        request = pull_request(session, "custom", text, request_id="")
        await self._custom_claims.check_new_image(session, request)

    async def find_image_of_content(
        self,
        session: Session,
        text: str,
        user_acl: tuple[int, ...],
        group_acl: tuple[int, ...],
        file: ImageFile,
    ) -> ImageRecord | None:
        """Return the READY image of this name if an upload of `file` would change nothing."""
        request = pull_request(session, "custom", text, "", user_acl, group_acl)
        return await self._custom_claims.find_image_of_content(session, request, file)

    async def import_file(
        self,
        session: Session,
        itype: str,
        text: str,
        user_acl: tuple[int, ...],
        group_acl: tuple[int, ...],
        request_id: str,
        choice: ImportChoice,
    ) -> ImageRecord:
        """Return the record of the image that is made of a file (see `FileImports`)."""
        imports = FileImports(self._config, self._custom_claims, self.files.check_file)
        request = pull_request(session, itype, text, request_id, user_acl, group_acl)
        return await imports.import_file(session, request, choice)

    def last_answer(self, session: Session, itype: str, text: str, request_id: str) -> ImageRecord:
        """Return the last answer to this user's poll of a pull; start no work.

        Raises `Unavailable` if there was no such poll.
        """
        return self._claims.last_answer(pull_request(session, itype, text, request_id))

    def registries(self, session: Session) -> Mapping[str, str]:
        """Return the host (and port) of each registry by the name of its location.

        Raises `NotAuthenticated` for callers without a credential: hosts may be internal.
        """
        if session.uid == ANONYMOUS:
            raise NotAuthenticated(
                "The gateway's registries are shown to known users only.",
                remedy="Send a fresh munge credential.",
            )
        return {
            name: urlsplit(location.url).netloc.rpartition("@")[2]
            for name, location in self._config.locations.items()
            if location.is_registry
        }

    async def queue(self, session: Session) -> AsyncIterator[Sequence[ImageRecord]]:
        """Yield pages of the work and failures that this user may see, oldest first."""
        async for page in self.work.pages(session.system):
            yield [
                redact(session, record)
                for record in page
                if session.admin or may_see(session, record)
            ]

    def trouble(self, session: Session) -> QueueTrouble | None:
        """Return why no work of the session's system reaches a worker now; None if work does."""
        return self._queue.trouble(session.system)

    def tag_of(self, session: Session, itype: str, text: str) -> str:
        """Return the tag of the pull of an image; raise `BadRequest` for an invalid name."""
        return pull_request(session, itype, text, request_id="").tag


def _database_is_late() -> Unavailable:
    return Unavailable("The gateway's database does not answer.")
