"""The seam to the one truth about images and work."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from shiftergw.model import (
        Breaker,
        Expired,
        Failed,
        ImageRecord,
        PostponeLimits,
        Progress,
        PullRequest,
        QueueLimits,
        Ready,
    )
    from shiftergw.ports.people import UsedCredentials
    from shiftergw.states import State, WaitCause


class BreakerStore(Protocol):
    """Requests that are held back for a while, shared by all processes of a site."""

    async def check_breaker(self, key: str, now: float, seconds: float) -> Breaker | None:
        """Return the breaker that holds requests with this key back, or None if there is none.

        If its `until` is later than `now`, the caller must not send any. Otherwise its time has
        come and the caller is its probe: for `seconds` from now all others are still held back, and
        read that as its `until`, with `probed`. Times that only a clock far ahead can have written
        count as no breaker.
        """
        ...

    async def trip_breaker(self, key: str, until: float, why: str, now: float) -> None:
        """Hold requests with this key back until a time; one that is open is never shortened.

        `trips` rises if the breaker was due, which means that its probe has failed. An entry is
        forgotten an hour after its time. No key may hold a login in clear.
        """
        ...

    async def close_breaker(self, key: str, now: float) -> None:
        """Remove a breaker whose time has come, after its probe has succeeded.

        One that was tripped again meanwhile stays.
        """
        ...

    async def end_probe(self, key: str, end: float, at: float) -> None:
        """Let the next probe follow from `at` on: the one that would run until `end` has no result.

        A breaker with another probe, or that was tripped again meanwhile, stays as it is.
        """
        ...


class ImageStore(BreakerStore, Protocol):
    """The one truth about images and work. Each method is atomic.

    A *step* names the attempt that makes it; when a newer attempt has taken over, or the record is
    no longer in flight, it changes nothing and raises `Superseded`. A store that cannot be reached
    raises `Unavailable`. A step against the table of `states` raises `IllegalStepError`.
    """

    @property
    def used_credentials(self) -> UsedCredentials | None:
        """Return the used credentials that all gateways on this store share.

        None if the store serves a single gateway, which can remember them in its own memory.
        """
        ...

    async def ready(self) -> None:
        """Return if records can be read and written; raise `Unavailable` with the reason.

        A database that is found damaged raises `DatabaseDamaged` until it has been replaced.
        """
        ...

    async def claim(
        self, request: PullRequest, now: float, limits: QueueLimits | None = None
    ) -> tuple[ImageRecord, bool]:
        """Return the record in flight for `request.claim`, made now (PENDING) if there was none.

        The flag says that this caller created it. Creating it removes older FAILURE records of
        the same system, type and tag that `request.requested_by` could see. Raises `TooMany`
        instead of creating one record more than `limits` allow to wait.
        """
        ...

    async def begin(self, key: str, runner: str, now: float, limit: float) -> ImageRecord | None:
        """Start the next attempt on a record and return it, or None if there is nothing to do.

        Nothing to do: no such record, not in flight, a heartbeat younger than `limit` seconds, or
        postponed until later (a few seconds are allowed for clocks that differ).
        The attempt rises by one, the heartbeat is `now`, the state becomes PULLING; a record that
        is EXPIRING stays so. If the attempt before has a runner but no living heartbeat, its worker
        has vanished: `deaths` rises by one.
        """
        ...

    async def requeue(self, key: str, attempt: int, message: str, *, died: bool) -> ImageRecord:
        """End an attempt without a result, and return the record, which `begin` takes at once.

        Runner, heartbeat and progress are removed, and later steps of this attempt are
        `Superseded`, as is a second `requeue`. A pull becomes PENDING, with a message for the user.
        `died` raises `deaths` by one: the worker died, and perhaps the image killed it. An orderly
        stop does not count. A removal stays EXPIRING; if its worker died it keeps its heartbeat,
        and is tried again when that is old.
        """
        ...

    async def postpone(
        self,
        key: str,
        attempt: int,
        not_before: float,
        why: str,
        now: float,
        limits: PostponeLimits | None = None,
        cause: WaitCause = "registry",
    ) -> ImageRecord:
        """End an attempt at a pull and have the work wait until `not_before`.

        The record is PENDING again, without runner and heartbeat, and `begin` may take it up at
        that time on any machine. Later steps of this attempt are `Superseded`, and its leases are
        free. `why` names what the work waits for, in words for the user. `waited` grows by the time
        until `not_before`; by `cause` it is `waited_for_pulls` or `waited_for_system` that grows.
        The postponed record counts neither as a death nor towards `QueueLimits`.

        Raises `TooMany`, and changes nothing, if as many pulls of the record's registry
        (`location`), or of its system where that is the cause, are postponed as `limits` allow.
        """
        ...

    async def advance(self, key: str, attempt: int, state: State, message: str, now: float) -> None:
        """Step to `state` with a message for the user; counts as a heartbeat."""
        ...

    async def heartbeat(
        self, key: str, attempt: int, progress: Progress, now: float, message: str | None = None
    ) -> None:
        """Say that the attempt lives and how far it is; `message` replaces the user's if given."""
        ...

    async def finish(
        self, key: str, attempt: int, outcome: Ready | Expired | Failed, now: float
    ) -> ImageRecord:
        """End the work and return the record that remains.

        Ready: the one READY record of (system, type, id) gets the tag first; then the tag is taken
        from every other record of the same system and type. A record that loses its last tag so
        keeps its files until `outcome.untagged_until` at least. An EXPIRING record of the same id
        is READY again, and its removal superseded. Claim, sealed credentials, runner and progress
        go. `last_pull` is `now`.

        Expired: a record that is EXPIRING becomes EXPIRED, and `last_pull` is `now`.

        Failed: a pull becomes a FAILURE. A removal stays EXPIRING, because its files are still
        there: its runner is removed, its heartbeat is `now`, and `stale` lists it for the next
        attempt once that heartbeat is old.

        A record that becomes READY again loses the tags that another READY record has got
        meanwhile.
        """
        ...

    async def abandon(self, key: str) -> None:
        """Remove a record that was claimed and that no attempt has begun."""
        ...

    async def get(self, key: str) -> ImageRecord | None:
        """Return the record with this key."""
        ...

    async def find(self, system: str, itype: str, tags: Sequence[str]) -> ImageRecord | None:
        """Return the newest READY record that carries the first of `tags` that any carries."""
        ...

    async def find_id(
        self, systems: Collection[str], image_id: str, *, expiring: bool = False
    ) -> Sequence[ImageRecord]:
        """Return the READY records of this image id on these systems, of any type.

        With `expiring` also those whose files are about to go, after the others.
        """
        ...

    async def find_work(self, system: str, itype: str, tag: str) -> Sequence[ImageRecord]:
        """Return the record in flight and the FAILUREs of this tag, newest first."""
        ...

    async def list(
        self, system: str, after: str = "", limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """Return the READY records of a system in the order of their keys, those after a key.

        No more than `limit`, and with a limit fewer where they are large, and very large ones
        perhaps without environment, commands and labels: what is in memory at once is bounded. The
        page after the last one is empty.
        """
        ...

    async def queue(
        self, system: str, after: str = "", limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """Return the records of a system in flight or failed, oldest first, those after a key.

        With a `limit`, a store may return the first of them only, about so many. The page after
        the last one is empty.
        """
        ...

    async def waiting(
        self,
        now: float,
        limit: int,
        running_per_user: int | None = None,
        offers: Collection[str] = (),
        without: Collection[str] = (),
        share: int | None = None,
        system_shares: Mapping[str, int] | None = None,
    ) -> Sequence[ImageRecord]:
        """Return at most `limit` records in flight that no attempt works on, fairest first.

        Those that are postponed beyond `now` are left out.

        Fair: the users take turns, each user's own in the order of arrival, and none has more than
        `running_per_user` begun. Removals (`kind` expire) are nobody's: this limit is not theirs.
        What it holds back is passed over, and holds up nothing else; so is the work of the systems
        `without` workers.

        With `share`, work of a user, or of a registry, that has as many pulls begun comes after
        other work, and so does that of a system with its share of `system_shares`; the more shares
        it exceeds, the later. While others wait, none of them holds more slots than its share.

        `offers` are keys of records on their way to a worker: they count as begun, and those that
        are not begun yet come first.
        """
        ...

    async def stale(self, now: float, limit: float) -> Sequence[ImageRecord]:
        """Return begun work in flight whose heartbeat is older than `limit` seconds, or missing."""
        ...

    async def renew(self, key: str, expiration: float) -> None:
        """Set the expiration of a READY record, never to an earlier time."""
        ...

    async def expired(
        self, now: float, systems: Collection[str] | None = None, limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """Return READY records whose expiration has passed, the earliest first.

        Those of these systems (None: of all), and no more than `limit`.
        """
        ...

    async def untag(self, key: str, tag: str) -> ImageRecord | None:
        """Take a tag from a READY record and return it; None if it is not READY or has no such tag.

        With its last tag the record becomes EXPIRING, as by `expire`, but that tag is gone.
        """
        ...

    async def expire(self, key: str, expired_at: float | None = None) -> ImageRecord | None:
        """Make a READY record EXPIRING: work, of kind expire, that waits for a worker.

        Its tags stay written in it; no attempt at it gets the number of one that there was before.
        None, and nothing happens, if it is not READY, or if `expired_at` is given and its
        expiration is not that early (it was renewed meanwhile).
        """
        ...

    async def set_access(
        self,
        systems: Collection[str],
        image_id: str,
        private: bool,
        user_acl: Sequence[int],
        group_acl: Sequence[int],
    ) -> None:
        """Set who may read an image in all its READY records on these systems, of any type.

        Also in those that are EXPIRING: they may be READY again.
        """
        ...

    async def block(self, directory: str, image_id: str, uid: int, now: float) -> None:
        """Keep an image id out of an image directory, by order of `uid`; the first order stays."""
        ...

    async def allow(self, directory: str, image_id: str) -> bool:
        """Take a block back; say whether there was one."""
        ...

    async def blocked(self, directory: str, image_ids: Collection[str]) -> bool:
        """Say whether one of these ids is kept out of an image directory."""
        ...

    async def expires(self, setting: bool | None, now: float, lifetime: float | None) -> bool:
        """Return whether images expire on schedule; `setting` is the value of the configuration.

        Without a setting (None) they do, except in a database that another program has filled. When
        the setting is True there for the first time, READY records without an expiration, or with
        one before `now`, get `now + lifetime`, or no expiration if `lifetime` is None. So nothing
        is removed because of the time before.
        """
        ...

    async def forget_ended(self, before: float, *, foreign: bool = True) -> int:
        """Remove FAILURE and EXPIRED records with an earlier `last_pull`; return how many.

        `foreign`: also those that another program has written and no attempt has changed.
        """
        ...

    async def lease(
        self, directory: str, image_id: str, holder: str, now: float, seconds: float
    ) -> bool:
        """Take or renew the lease on (image directory, id); False if another holds it.

        `holder` is `key/attempt`. A lease ends by `release`, after `seconds`, and with the attempt:
        once a later one has begun, or the record is in flight no more, others may have it. A later
        attempt at the same record takes it over even before that.
        """
        ...

    async def release(self, directory: str, image_id: str, holder: str) -> None:
        """Give the lease back; nothing happens if `holder` does not hold it."""
        ...

    async def record_lookup(self, row: Mapping[str, Any]) -> None:
        """Keep one row of lookup metrics, for a year at most; nobody waits until it is written.

        `row` says its `system` and its `time`. A crash, or a store that is away or slow, may lose
        it.
        """
        ...

    async def lookups(self, system: str, limit: int) -> Sequence[dict[str, Any]]:
        """Return the last `limit` rows of a system, oldest first."""
        ...
