"""Answer pull requests: with a record that exists already, or with new work for the workers.

A poll of `shifterimg` is a pull request like any other. So every rule below must find the work that
the first request started, or its result.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from shiftergw.config import Config
from shiftergw.errors import BadRequest, NotAllowed, NotAuthenticated, TooMany, Unavailable
from shiftergw.model.names import ACL_LIMIT
from shiftergw.model.records import ImageRecord
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import ANONYMOUS, PullRequest, QueueLimits, Session
from shiftergw.plumbing.seal import Seal
from shiftergw.ports import ImageStore, QueueTrouble
from shiftergw.rules.access import may_replace_tag, would_change_readers
from shiftergw.service.housekeeping import extend_expiration
from shiftergw.service.image_uses import find_and_note
from shiftergw.service.polls import LastAnswers
from shiftergw.service.redaction import may_see, redact
from shiftergw.service.registry_logins import login_for
from shiftergw.service.waiting import WaitingWork
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


LEAST_FRESH = 10.0
"""The least seconds for which a READY image is fresh: a polling client must see its result."""


IsJudged = Callable[[ImageRecord], Awaitable[bool]]
"""Returns whether the present policy of a record's system has given the record its verdict.

Raises `ImageRefused` for an image of a user's file that the policy refuses: no worker can judge it
anew, because the file is gone.
"""


async def judges_nothing(_: ImageRecord) -> bool:
    """Return that an image is judged, where no system has a policy."""
    return True


class Claims:
    """Answers pull requests with the first of these that exists.

    1. work in flight,
    2. a failure not older than `FailureHold`,
    3. the READY image, if it is fresh, has the requested access list, and was accepted by the
       present policy of its system,
    4. new work, which exactly one of several concurrent callers creates.
    """

    def __init__(
        self,
        config: Config,
        store: ImageStore,
        seal: Callable[[], Seal],
        wake: Callable[[], None],
        clock: IReactorTime,
        trouble: Callable[[str], QueueTrouble | None],
        is_judged: IsJudged = judges_nothing,
    ) -> None:
        """Encrypt logins with `seal`; call `wake` when there is new work.

        `trouble` returns what keeps the workers of a system from starting, see `JobQueue`.
        """
        self.waiting = WaitingWork(store, trouble, clock)
        self._config = config
        self._store = store
        self._seal = seal
        self._wake = wake
        self._clock = clock
        self._trouble = trouble
        self._is_judged = is_judged
        self.limits = QueueLimits(config.queue_limit, config.waiting_per_user)
        self._last_answers = LastAnswers(clock)

    async def pull(self, session: Session, request: PullRequest, text: str) -> ImageRecord:
        """Return the record that answers a request; `text` is the image name as the user wrote it.

        If the store is unavailable or the queue is full, repeat the last answer to clients that are
        already polling: an error would end their wait. Raises `TooMany` for new work only.
        """
        location, _ = self._config.locate(request.reference)
        request = replace(request, location=location)
        check_readers(session, request)
        return await self.answer(
            session, request, lambda: self._find_or_create(session, request, text, location)
        )

    async def answer(
        self, session: Session, request: PullRequest, find: Callable[[], Awaitable[ImageRecord]]
    ) -> ImageRecord:
        """Return the record that `find` finds or creates, or else the last answer; see `pull`.

        A user's first answer waits until the store has noted the use (see `image_uses`).
        """
        poll = session.uid, request.claim
        try:
            record = await find_and_note(self._store, session, find)
        except (Unavailable, TooMany):
            answer = self._last_answers.get(poll)
            if answer is None:
                raise
            return answer
        record = await self.waiting.describe(record)
        self._last_answers.remember(poll, record)
        return record

    def last_answer(self, request: PullRequest) -> ImageRecord:
        """Return the last answer to this user's poll of this pull.

        Raises `Unavailable` if there was none.
        """
        answer = self._last_answers.get((request.requested_by, request.claim))
        if answer is None:
            raise Unavailable("The gateway cannot do this at the moment.")
        return answer

    async def _find_or_create(
        self, session: Session, request: PullRequest, text: str, location: str
    ) -> ImageRecord:
        login = login_for(self._config, session, location)
        existing = await self._work(session, request, with_login=login is not None)
        existing = existing or await self._ready(session, request, text)
        if existing is not None:
            return existing
        await self._check_owner(session, request, text)
        self.check_workers()
        if login is not None:
            text_of_login = f"{login.user}:{login.password}"
            request = replace(request, sealed=self._seal().close(text_of_login, request.claim))
        if await self._changes_readers_only(session, request, text):
            request = replace(request, kind="acl")
        record, is_new = await self._store.claim(request, self._clock.seconds(), self.limits)
        if not is_new:
            return redact(session, record)
        # Another user's pull of this image may have ended between our query and our claim.
        existing = await self._ready(session, request, text)
        if existing is not None:
            await self._store.abandon(record.key)
            return existing
        self._wake()
        return replace(record, status=State.INIT)

    def check_workers(self) -> None:
        """Raise `Unavailable` if no worker can be reached, and the site refuses new work then."""
        trouble = self._trouble("") if self._config.broker_away == "refuse" else None
        if trouble is not None:
            raise Unavailable("No worker can be reached just now.", detail=str(trouble))

    async def _check_owner(self, session: Session, request: PullRequest, text: str) -> None:
        """Raise `NotAllowed` if a registry's image would replace another user's uploaded image."""
        if request.itype == "custom":
            ready = await self._store.find(request.system, request.itype, [request.tag, text])
            if ready is not None and ready.upload is not None:
                check_owner(session, ready, request.tag)

    async def _work(
        self, session: Session, request: PullRequest, *, with_login: bool
    ) -> ImageRecord | None:
        """Return work in flight, or a recent failure, that answers this request.

        A failure of a user without a login does not count once the user has one: its remedy was to
        log in and to pull again.
        """
        oldest = self._clock.seconds() - self._config.failure_hold
        for record in await self._store.find_work(request.system, request.itype, request.tag):
            if record.in_flight:
                return redact(session, record)
            if record.own_failure and with_login and not record.with_login:
                continue
            if may_see(session, record) and (record.last_pull or 0) > oldest:
                return redact(session, record)
        return None

    async def _ready(self, session: Session, request: PullRequest, text: str) -> ImageRecord | None:
        """Return the READY image if this request needs no work.

        Called after `_work`: if a pull ends between the two queries, this one finds it READY.
        """
        now = self._clock.seconds()
        record = await self._find_ready(request, text)
        if record is None or not record.may_be_read_by(session):
            return None
        fresh = max(self._config.pull_update_timeout, LEAST_FRESH)
        # An image of an upload has no registry that could have a newer one.
        if record.upload is None and (record.last_pull or 0) + fresh < now:
            return None
        if would_change_readers(session, request.user_acl, request.group_acl, record):
            return None
        if not await self.is_accepted(record):
            return None
        await extend_expiration(self._store, record, now, self._config.image_expiration_timeout)
        return record

    async def is_accepted(self, record: ImageRecord) -> bool:
        """Return whether the present policy has accepted a READY image; raise as `IsJudged`.

        The client whose pull has just ended must see its result, whatever the policy is by now.
        """
        is_result = (record.last_pull or 0) + LEAST_FRESH >= self._clock.seconds()
        return is_result or await self._is_judged(record)

    async def _find_ready(self, request: PullRequest, text: str) -> ImageRecord | None:
        """Return the READY image with this name, however an earlier gateway has stored it."""
        tags = [request.tag, *ImageReference.stored_tags(text)]
        return await self._store.find(request.system, request.itype, list(dict.fromkeys(tags)))

    async def _changes_readers_only(
        self, session: Session, request: PullRequest, text: str
    ) -> bool:
        """Return whether the work only changes the access list of a delivered image.

        For this, the puller of record and admins need no login at the registry.
        """
        if not (request.user_acl or request.group_acl):
            return False
        record = await self._find_ready(request, text)
        return (
            record is not None
            and (session.admin or record.requested_by == session.uid)
            and would_change_readers(session, request.user_acl, request.group_acl, record)
        )


def check_readers(session: Session, request: PullRequest) -> None:
    """Raise an error for an access list that could not be delivered, before work is created."""
    if not (request.user_acl or request.group_acl):
        return
    if session.uid == ANONYMOUS:
        raise NotAuthenticated(
            "Without a credential nobody can be let in.", remedy="Send a fresh munge credential."
        )
    if len({*request.user_acl, session.uid}) > ACL_LIMIT:
        raise BadRequest(
            f"Together with you more than {ACL_LIMIT} users would be let in.",
            remedy="Name a group instead of its members.",
        )


def check_owner(session: Session, ready: ImageRecord, tag: str) -> None:
    """Raise `NotAllowed` unless a user may give a tag of a READY image to another image."""
    if not may_replace_tag(session, ready, tag):
        raise NotAllowed(
            "This name belongs to an image of another user.",
            remedy="Use another name or tag; only its owner and admins replace the image.",
        )
