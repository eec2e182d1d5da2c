"""What a request to pull becomes: an answer that is there, or new work for the workers.

A poll of `shifterimg` is a pull request like any other, so every rule below must find what the last
poll started, or how it ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from shiftergw.config import Config
from shiftergw.errors import BadRequest, NotAuthenticated, TooMany, Unavailable
from shiftergw.model import ANONYMOUS, ImageRecord, PullRequest, QueueLimits, Session
from shiftergw.names import ACL_LIMIT
from shiftergw.plumbing.seal import Seal
from shiftergw.ports import ImageStore, QueueTrouble
from shiftergw.rules.access import would_change_readers
from shiftergw.service.housekeeping import put_off
from shiftergw.service.polls import LastAnswers
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


LEAST_FRESH = 10.0
"""Seconds for which what is READY is fresh at least: whoever polls must find what he waited for."""


class Claims:
    """Answers pulls, in this order.

    Work in flight; a failure not older than `FailureHold`; the READY image if it is fresh and has
    the ACL asked for; else new work, which one of all callers creates.
    """

    def __init__(
        self,
        config: Config,
        store: ImageStore,
        seal: Callable[[], Seal],
        wake: Callable[[], None],
        clock: IReactorTime,
        trouble: Callable[[str], QueueTrouble | None],
    ) -> None:
        """Use `seal` for logins in flight; call `wake` when there is new work.

        `trouble` says what keeps all work from being done, see `JobQueue`.
        """
        self._config = config
        self._store = store
        self._seal = seal
        self._wake = wake
        self._clock = clock
        self._trouble = trouble
        self._limits = QueueLimits(config.queue_limit, config.waiting_per_user)
        self._polls = LastAnswers(clock)

    async def pull(self, session: Session, request: PullRequest, text: str) -> ImageRecord:
        """Return the record that answers a request for an image, which its asker called `text`.

        While the store is away, or when what he waited for has ended otherwise and there is no room
        for work of his own, who has polled before is told what he was told last: a poll that is
        refused would end his client's wait. Raises `TooMany` for new work alone.
        """
        location, _ = self._config.locate(request.reference)
        request = replace(request, location=location)
        _check_readers(session, request)
        poll = session.uid, request.claim
        try:
            record = await self._pulled(session, request, text, location)
        except (Unavailable, TooMany):
            last = self._polls.last(poll)
            if last is None:
                raise
            return last
        record = self.explained(record)
        self._polls.keep(poll, record)
        return record

    def last_answer(self, request: PullRequest) -> ImageRecord:
        """Return what the asker was told last of this pull; raise `Unavailable` if nothing was."""
        last = self._polls.last((request.requested_by, request.claim))
        if last is None:
            raise Unavailable("The gateway cannot do this at the moment.")
        return last

    async def _pulled(
        self, session: Session, request: PullRequest, text: str, location: str
    ) -> ImageRecord:
        login = self._login(session, location)
        known = await self._work(session, request, with_login=login is not None)
        known = known or await self._ready(session, request, text)
        if known is not None:
            return known
        self._check_workers()
        if login is not None:
            request = replace(request, sealed=self._seal().close(login, request.claim))
        if await self._is_about_readers(session, request, text):
            request = replace(request, kind="acl")
        record, created = await self._store.claim(request, self._clock.seconds(), self._limits)
        if not created:
            return _seen_by(session, record)
        # Between our look and our claim somebody else's pull of this image may have ended.
        known = await self._ready(session, request, text)
        if known is not None:
            await self._store.abandon(record.key)
            return known
        self._wake()
        return replace(record, status=State.INIT)

    def _check_workers(self) -> None:
        """Refuse new work that no worker would hear of now, if the site wants it refused."""
        trouble = self._trouble("") if self._config.broker_away == "refuse" else None
        if trouble is not None:
            raise Unavailable("No worker can be reached just now.", detail=str(trouble))

    def explained(self, record: ImageRecord) -> ImageRecord:
        """Return a record that waits with what keeps it from every worker, if anything does."""
        trouble = self._trouble(record.system) if record.status is State.PENDING else None
        if trouble is None:
            return record
        words = f"{record.status_message or ''} {trouble.what}".strip()
        return replace(record, status_message=words)

    async def _work(
        self, session: Session, request: PullRequest, *, with_login: bool
    ) -> ImageRecord | None:
        """Return work in flight, or a failure that still counts, for this request.

        What a user was refused without a login does not count once he has one: he was told to log
        in and to try again.
        """
        oldest = self._clock.seconds() - self._config.failure_hold
        for record in await self._store.find_work(request.system, request.itype, request.tag):
            if record.in_flight:
                return _seen_by(session, record)
            if record.own_failure and with_login and not record.with_login:
                continue
            if concerns(session, record) and (record.last_pull or 0) > oldest:
                return _seen_by(session, record)
        return None

    async def _ready(self, session: Session, request: PullRequest, text: str) -> ImageRecord | None:
        """Return the READY image if it needs no work for this request.

        Asked after `_work`: a pull that ends between the two looks is found READY by this one.
        """
        now = self._clock.seconds()
        record = await self._store.find(request.system, request.itype, [request.tag, text])
        if record is None or not record.may_be_read_by(session):
            return None
        fresh = max(self._config.pull_update_timeout, LEAST_FRESH)
        if (record.last_pull or 0) + fresh < now:
            return None
        if would_change_readers(session, request.user_acl, request.group_acl, record):
            return None
        await put_off(self._store, record, now, self._config.image_expiration_timeout)
        return record

    async def _is_about_readers(self, session: Session, request: PullRequest, text: str) -> bool:
        """Say whether the work is only to change who may read what lies there.

        For this the puller of record and admins need no login at the registry.
        """
        if not (request.user_acl or request.group_acl):
            return False
        record = await self._store.find(request.system, request.itype, [request.tag, text])
        return (
            record is not None
            and (session.admin or record.requested_by == session.uid)
            and would_change_readers(session, request.user_acl, request.group_acl, record)
        )

    def _login(self, session: Session, location: str) -> str | None:
        """Return the login text for a location; the `default` login is the default location's."""
        login = session.logins.get(location)
        if login is None and location == self._config.default_image_location:
            login = session.logins.get("default")
        return None if login is None else f"{login.user}:{login.password}"


def _check_readers(session: Session, request: PullRequest) -> None:
    """Refuse an ACL that could not be delivered, before there is any work."""
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


def concerns(session: Session, record: ImageRecord) -> bool:
    """Say whether this user may see work or a failure: his own, or one that needs no rights.

    The removal of an image concerns its readers.
    """
    if record.requested_by == session.uid:
        return True
    if record.status is State.EXPIRING:
        return record.may_be_read_by(session)
    return record.sealed is None and record.kind != "acl" and not record.own_failure


def _seen_by(session: Session, record: ImageRecord) -> ImageRecord:
    """Return work in flight as this user may see it.

    Whom another lets in is not his matter; nor, where the other uses a login, how far he is: that
    tells of an image which he may not see.
    """
    if session.admin or record.requested_by == session.uid:
        return record
    if not concerns(session, record):
        return ImageRecord(
            key=record.key,
            system=record.system,
            itype=record.itype,
            pulltag=record.pulltag,
            status=State.PENDING,
            status_message="Waiting for another user's pull of the same name",
            user_acl=(),
            group_acl=(),
        )
    return replace(record, user_acl=(), group_acl=(), request_id=None, requester=None)
