"""The rules of the service for one session: list, lookup, pull, queue, expire, metrics.

Nothing here works on images: a pull becomes a record in the store, and a worker takes it from
there. A poll of `shifterimg` is a pull request like any other, so every rule below must find what
the last poll started, or how it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shiftergw.access import asks_for_change, may_expire
from shiftergw.config import Config
from shiftergw.errors import (
    BadRequest,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    Unavailable,
    printable,
)
from shiftergw.housekeeping import expire_due
from shiftergw.model import (
    ANONYMOUS,
    IMAGE_TYPES,
    ImageRecord,
    ImageReference,
    PullRequest,
    QueueLimits,
    Session,
)
from shiftergw.oci.meta import ACL_LIMIT
from shiftergw.plumbing.seal import Seal
from shiftergw.polls import LastAnswers
from shiftergw.ports import ImageStore
from shiftergw.states import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

RENEWAL_STEP = 3600.0
"""Seconds by which an expiration must move before a lookup writes it: a lookup is one read."""


class Gateway:
    """Answers the requests of sessions from the store."""

    def __init__(
        self,
        config: Config,
        store: ImageStore,
        seal: Callable[[], Seal],
        wake: Callable[[], None],
        clock: IReactorTime,
    ) -> None:
        """Use `seal` for logins in flight; call `wake` when there is new work."""
        self._config = config
        self._store = store
        self._seal = seal
        self._wake = wake
        self._clock = clock
        self._limits = QueueLimits(config.queue_limit, config.user_limits.waiting)
        self._polls = LastAnswers(clock)

    @property
    def systems(self) -> Collection[str]:
        """Return the names of the configured systems."""
        return self._config.systems.keys()

    @property
    def allows_anonymous(self) -> bool:
        """Say whether requests without a credential are answered, about public images."""
        return self._config.allow_anonymous

    async def ready(self) -> None:
        """Return if requests can be answered; raise `Unavailable` with the reason."""
        await self._store.waiting(1)

    async def list(self, session: Session) -> Sequence[ImageRecord]:
        """Return the READY images of the session's system that its user may read."""
        records = await self._store.list(session.system)
        return [record for record in records if record.may_be_read_by(session)]

    async def lookup(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Return the READY image of this name and put off its expiration.

        Raises `NotFound` also for an image that this user may not read.
        """
        _check_type(itype)
        now = self._clock.seconds()
        record = await self._store.find(session.system, itype, _names(text))
        if record is None or not record.may_be_read_by(session):
            raise _no_image(session, text)
        await self._renew(record, now)
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
    ) -> ImageRecord:
        """Return the state of this image, starting work on it if there is reason to.

        In this order: work in flight; a failure not older than `FailureHold`; the READY image if
        it is fresh and has the ACL asked for; else new work, which one of all callers creates.

        While the store is away, who has polled before is told what he was told last: a poll that is
        refused would end his client's wait. Raises `TooMany` for new work alone.
        """
        _check_type(itype)
        request = PullRequest(
            system=session.system,
            itype=itype,
            reference=ImageReference.parse(text),
            requested_by=session.uid,
            user_acl=user_acl,
            group_acl=group_acl,
            request_id=request_id,
            by_admin=session.admin,
        )
        location, _ = self._config.locate(request.reference)
        _check_readers(session, request)
        poll = session.uid, request.claim
        try:
            record = await self._pulled(session, request, text, location)
        except Unavailable:
            last = self._polls.last(poll)
            if last is None:
                raise
            return last
        self._polls.keep(poll, record)
        return record

    async def _pulled(
        self, session: Session, request: PullRequest, text: str, location: str
    ) -> ImageRecord:
        known = await self._work(session, request) or await self._ready(session, request, text)
        if known is not None:
            return known
        login = self._login(session, location)
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

    async def expire(self, session: Session, itype: str, text: str) -> None:
        """Take a tag away; with its last tag an image's files are removed.

        Raises `NotFound` also for an image that this user may not read, and `NotAllowed` for one
        that others may read too.
        """
        _check_type(itype)
        names = _names(text)
        record = await self._store.find(session.system, itype, names)
        if record is None or not (session.admin or record.may_be_read_by(session)):
            raise _no_image(session, text)
        if not may_expire(session, record):
            raise NotAllowed(
                "Only an admin expires an image that others may use too.",
                remedy="It expires by itself when nobody has used it for long enough.",
            )
        tag = next(name for name in names if name in record.tags)
        left = await self._store.untag(record.key, tag)
        if left is None:
            raise _no_image(session, text)
        self._wake()

    async def autoexpire(self, session: Session) -> Sequence[str]:
        """Expire the system's images whose time is up; return their ids. For admins."""
        _check_admin(session)
        expired = await expire_due(self._store, self._clock.seconds(), session.system)
        if expired:
            self._wake()
        return [record.id or "" for record in expired]

    async def take_down(self, session: Session, image_id: str) -> Sequence[str]:
        """Remove an image with all its tags now, and refuse it from now on. For admins.

        On all systems that share the image directory: the files are the same. Returns what it was
        called, as `type:tag`.
        """
        _check_admin(session)
        directory, systems = self._config.directory_of(session.system)
        await self._store.block(directory, image_id, session.uid, self._clock.seconds())
        names: list[str] = []
        for record in await self._store.find_id(systems, image_id):
            if await self._store.expire(record.key) is not None:
                names += [f"{record.itype}:{tag}" for tag in record.tags]
        self._wake()
        return names

    async def allow(self, session: Session, image_id: str) -> None:
        """Take back what `take_down` forbids; raise `NotFound` if it does not. For admins."""
        _check_admin(session)
        directory, _ = self._config.directory_of(session.system)
        if not await self._store.allow(directory, image_id):
            raise NotFound(
                "This image is not blocked.", remedy="Check the id: 64 hexadecimal digits."
            )

    async def metrics(self, session: Session, limit: int) -> Sequence[Mapping[str, Any]]:
        """Return the last `limit` look-ups of the session's system, oldest first. For admins."""
        _check_admin(session)
        if not self._config.metrics or limit <= 0:
            return []
        return await self._store.lookups(session.system, limit)

    async def queue(self, session: Session) -> Sequence[ImageRecord]:
        """Return work in flight and failures that this user may see, oldest first."""
        return [
            record
            for record in await self._store.queue(session.system)
            if session.admin or _concerns(session, record)
        ]

    async def _work(self, session: Session, request: PullRequest) -> ImageRecord | None:
        """Return work in flight, or a failure that still counts, for this request."""
        oldest = self._clock.seconds() - self._config.failure_hold
        for record in await self._store.find_work(request.system, request.itype, request.tag):
            if record.in_flight:
                return _seen_by(session, record)
            if _concerns(session, record) and (record.last_pull or 0) > oldest:
                return record
        return None

    async def _ready(self, session: Session, request: PullRequest, text: str) -> ImageRecord | None:
        """Return the READY image if it needs no work for this request.

        Asked after `_work`: a pull that ends between the two looks is found READY by this one.
        """
        now = self._clock.seconds()
        record = await self._store.find(request.system, request.itype, [request.tag, text])
        if record is None or not record.may_be_read_by(session):
            return None
        if (record.last_pull or 0) + self._config.pull_update_timeout < now:
            return None
        if asks_for_change(session, request.user_acl, request.group_acl, record):
            return None
        await self._renew(record, now)
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
            and asks_for_change(session, request.user_acl, request.group_acl, record)
        )

    async def _renew(self, record: ImageRecord, now: float) -> None:
        """Put off the expiration, or leave that to the next look-up: what was asked is known."""
        timeout = self._config.image_expiration_timeout
        if timeout is not None and now + timeout - (record.expiration or 0) > RENEWAL_STEP:
            with suppress(Unavailable):
                await self._store.renew(record.key, now + timeout)

    def _login(self, session: Session, location: str) -> str | None:
        """Return the login text for a location; the `default` login is the default location's."""
        login = session.logins.get(location)
        if login is None and location == self._config.default_image_location:
            login = session.logins.get("default")
        return None if login is None else f"{login.user}:{login.password}"


def _no_image(session: Session, text: str) -> NotFound:
    return NotFound(
        f"There is no image {printable(text)} on {session.system}.",
        remedy="Pull it first, or check its name in the list of images.",
    )


def _check_admin(session: Session) -> None:
    if not session.admin:
        raise NotAllowed(f"Only admins of {session.system} may do this.")


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


def _check_type(itype: str) -> None:
    if itype not in IMAGE_TYPES:
        raise BadRequest(
            f"{printable(itype, 40)!r} is not an image type.",
            remedy=f"Image types are {' and '.join(sorted(IMAGE_TYPES))}.",
        )


def _names(text: str) -> list[str]:
    """Return what an image of this name may be stored as: normalised first, then literally."""
    try:
        normalised = str(ImageReference.parse(text))
    except BadRequest:
        return [text]
    return list(dict.fromkeys([normalised, text]))


def _concerns(session: Session, record: ImageRecord) -> bool:
    """Say whether this user may see work or a failure: his own, or one without any login."""
    if record.requested_by == session.uid:
        return True
    return record.sealed is None and not record.own_failure


def _seen_by(session: Session, record: ImageRecord) -> ImageRecord:
    """Return work in flight as this user may see it.

    Whom another lets in is not his matter; nor, where the other uses a login, how far he is: that
    tells of an image which he may not see.
    """
    if session.admin or record.requested_by == session.uid:
        return record
    if not _concerns(session, record):
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
    return replace(record, user_acl=(), group_acl=())
