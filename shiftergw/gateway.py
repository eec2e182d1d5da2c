"""The rules of the service for one session: list, lookup, pull, queue.

Nothing here works on images: a pull becomes a record in the store, and a worker takes it from
there. A poll of `shifterimg` is a pull request like any other, so every rule below must find what
the last poll started, or how it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shiftergw.config import Config
from shiftergw.errors import BadRequest, NotFound, printable
from shiftergw.model import IMAGE_TYPES, ImageRecord, ImageReference, PullRequest, Session
from shiftergw.plumbing.seal import Seal
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

    @property
    def systems(self) -> Collection[str]:
        """Return the names of the configured systems."""
        return self._config.systems.keys()

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
            raise NotFound(
                f"There is no image {printable(text)} on {session.system}.",
                remedy="Pull it first, or check its name in the list of images.",
            )
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
        )
        location, _ = self._config.locate(request.reference)
        known = await self._work(session, request) or await self._ready(session, request, text)
        if known is not None:
            return known
        login = self._login(session, location)
        if login is not None:
            request = replace(request, sealed=self._seal().close(login, request.claim))
        record, created = await self._store.claim(request, self._clock.seconds())
        if not created:
            return _seen_by(session, record)
        # Between our look and our claim somebody else's pull of this image may have ended.
        known = await self._ready(session, request, text)
        if known is not None:
            await self._store.abandon(record.key)
            return known
        self._wake()
        return replace(record, status=State.INIT)

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
        if record.private and (request.user_acl or request.group_acl):
            # The puller himself is always among the readers, whether he names himself or not.
            wanted = {*request.user_acl, session.uid}, set(request.group_acl)
            if wanted != ({*(record.user_acl or ()), session.uid}, set(record.group_acl or ())):
                return None
        await self._renew(record, now)
        return record

    async def _renew(self, record: ImageRecord, now: float) -> None:
        timeout = self._config.image_expiration_timeout
        if timeout is not None and now + timeout - (record.expiration or 0) > RENEWAL_STEP:
            await self._store.renew(record.key, now + timeout)

    def _login(self, session: Session, location: str) -> str | None:
        """Return the login text for a location; the `default` login is the default location's."""
        login = session.logins.get(location)
        if login is None and location == self._config.default_image_location:
            login = session.logins.get("default")
        return None if login is None else f"{login.user}:{login.password}"


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
    """Return work in flight as this user may see it: whom another lets in is not his matter."""
    if session.admin or record.requested_by == session.uid:
        return record
    return replace(record, user_acl=(), group_acl=())
