"""Port to the store: the only place where images and the state of jobs are recorded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from shiftergw.ports.breakers import BreakerStore
from shiftergw.ports.leases import LeaseStore
from shiftergw.ports.lookups import LookupStore
from shiftergw.ports.ranges import RangeStore
from shiftergw.ports.throughput import ThroughputStore

if TYPE_CHECKING:
    from shiftergw.model.postponement import Breaker, PostponeLimits
    from shiftergw.model.records import Expired, Failed, ImageRecord, Progress, Ready
    from shiftergw.model.requests import PullRequest, QueueLimits
    from shiftergw.ports.people import UsedCredentials
    from shiftergw.states import State, WaitCause


class ImageStore(BreakerStore, LeaseStore, LookupStore, RangeStore, ThroughputStore, Protocol):
    """Records of images and of the work on them. Each method is atomic.

    A *step* is a method with an attempt number. It changes nothing and raises `Superseded` if a
    newer attempt has begun or the record is no longer in flight, and it raises `IllegalStepError`
    if the table in `states` does not allow the change. All methods raise `Unavailable` if the
    store cannot be reached.
    """

    @property
    def used_credentials(self) -> UsedCredentials | None:
        """Return the used credentials that all gateways on this store share.

        None if the store serves a single gateway, which can remember them in its own memory.
        """
        ...

    async def ready(self) -> None:
        """Return if records can be read and written; otherwise raise `Unavailable`.

        Once a database has proved to be damaged, this raises `DatabaseDamaged` until the database
        is replaced.
        """
        ...

    async def claim(
        self, request: PullRequest, now: float, limits: QueueLimits | None = None
    ) -> tuple[ImageRecord, bool]:
        """Return the record in flight for `request.claim`, and whether this call created it.

        A new record is PENDING. Creating it removes older FAILURE records of the same system, type
        and tag that `request.requested_by` could see. Raises `TooMany` instead if as many records
        wait as `limits` allow.
        """
        ...

    async def begin(self, key: str, runner: str, now: float, limit: float) -> ImageRecord | None:
        """Start the next attempt on a record and return it, or None if there is nothing to do.

        There is nothing to do if the record does not exist, is not in flight, has a heartbeat
        younger than `limit` seconds, or is postponed (with a few seconds of tolerance, because
        clocks differ). Otherwise the attempt number rises by one, the heartbeat is `now`, and the
        state becomes PULLING; an EXPIRING record stays EXPIRING. If the previous attempt still has
        a runner, its worker has vanished, and `deaths` rises by one.
        """
        ...

    async def requeue(self, key: str, attempt: int, message: str, *, died: bool) -> ImageRecord:
        """End an attempt without a result and return the record; `begin` accepts it at once.

        Removes runner, heartbeat and progress. Later steps of this attempt raise `Superseded`, and
        so does a second `requeue`. A pull becomes PENDING, with a message for the user. With `died`
        (the worker died, perhaps because of the image) `deaths` rises by one; an orderly stop does
        not count. A removal stays EXPIRING; if its worker died, it keeps its heartbeat and is
        retried once that is old.
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
        """End an attempt at a pull and postpone the record until `not_before`.

        The record becomes PENDING, without runner and heartbeat; at that time `begin` accepts it
        from any machine. Later steps of this attempt raise `Superseded`, and its leases are free.
        `why` tells the user what the pull waits for. `waited` grows by the time until
        `not_before`; with the `cause` "pull" or "system", `waited_for_pulls` or
        `waited_for_system` grows instead. A postponed record counts neither as a death nor towards
        `QueueLimits`.

        Raises `TooMany`, and changes nothing, if as many pulls are postponed as `limits` allow: of
        the record's registry (`location`), or of its system if that is the cause.
        """
        ...

    async def advance(self, key: str, attempt: int, state: State, message: str, now: float) -> None:
        """Change the state, with a message for the user; this is also a heartbeat."""
        ...

    async def heartbeat(
        self, key: str, attempt: int, progress: Progress, now: float, message: str | None = None
    ) -> None:
        """Record that the attempt is alive, its progress, and a `message` for the user if any."""
        ...

    async def finish(
        self, key: str, attempt: int, outcome: Ready | Expired | Failed, now: float
    ) -> ImageRecord:
        """End the work and return the record that remains.

        Ready: adds the tag to the only READY record of (system, type, image id), then removes it
        from all other records of the same system and type. A record that loses its last tag this
        way keeps its files at least until `outcome.untagged_until`. An EXPIRING record of the same
        id becomes READY again, and its removal is superseded. Claim, sealed credentials, runner
        and progress are removed. `last_pull` is `now`.

        Expired: an EXPIRING record becomes EXPIRED, and `last_pull` is `now`.

        Failed: a pull becomes a FAILURE. A removal stays EXPIRING, because its files are still
        there: its runner is removed, its heartbeat is `now`, and `stale` lists it for the next
        attempt once that heartbeat is old.

        A record that becomes READY again loses the tags that another READY record has received
        in the meantime.
        """
        ...

    async def abandon(self, key: str) -> None:
        """Remove a claimed record that no attempt has begun."""
        ...

    async def get(self, key: str) -> ImageRecord | None:
        """Return the record with this key, or None."""
        ...

    async def find(self, system: str, itype: str, tags: Sequence[str]) -> ImageRecord | None:
        """Return the newest READY record of the first of `tags` that any READY record has."""
        ...

    async def find_id(
        self, systems: Collection[str], image_id: str, *, expiring: bool = False
    ) -> Sequence[ImageRecord]:
        """Return the READY records of an image id on these systems, of any type.

        With `expiring`, EXPIRING records follow, whose files are about to be removed.
        """
        ...

    async def find_prefix(
        self, systems: Collection[str], prefix: str, limit: int
    ) -> Sequence[ImageRecord]:
        """Return at most `limit` READY records on these systems whose ids begin with `prefix`.

        The records are of any type, in the order of their ids.
        """
        ...

    async def find_work(self, system: str, itype: str, tag: str) -> Sequence[ImageRecord]:
        """Return the record in flight and the FAILURE records of a tag, newest first."""
        ...

    async def list(
        self, system: str, after: str = "", limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """Return the READY records of a system with keys after `after`, in key order.

        A page has at most `limit` records. To bound the memory in use, it may have fewer if they
        are large, and very large records may lack environment, commands and labels. The page after
        the last one is empty.
        """
        ...

    async def reports(self, system: str, limit: int) -> Sequence[Mapping[str, Any]]:
        """Return the pull reports of the newest READY records of a system, newest first.

        At most `limit` records count; those without a report are left out.
        """
        ...

    async def queue(
        self, system: str, after: str = "", limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """Return the records in flight or failed of a system, oldest first, after key `after`.

        With a `limit`, a store may return only about that many of the first ones. The page after
        the last one is empty.
        """
        ...

    async def count_work(self) -> Mapping[tuple[str, str], int]:
        """Return the number of records in flight by system and state."""
        ...

    async def list_breakers(self, now: float) -> Sequence[Breaker]:
        """Return the circuit breakers that hold requests back at a time, by key; 200 at most."""
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
        """Return at most `limit` records in flight without an attempt, in fair order.

        Records that are postponed beyond `now` are skipped, and so are records of the systems
        `without` workers.

        Fair order: users take turns, the records of a user come in the order of arrival, and a user
        has at most `running_per_user` records begun. Further records of that user are skipped and
        do not delay other users. Removals (`kind` expire) belong to no user and are not limited.

        With `share`, work of a user or a registry that has this many pulls begun comes after other
        work, and so does work of a system that has its share of `system_shares` begun; the more
        shares are exceeded, the later it comes. So none of them holds more slots than its share
        while others wait.

        `offers` are keys of records that were offered to a worker. They count as begun; those that
        no attempt has begun yet come first.
        """
        ...

    async def schedule(self, now: float) -> Sequence[str]:
        """Return the keys of all work that waits and is not postponed beyond `now`, in fair order.

        The order is that of `waiting` without limits and shares.
        """
        ...

    async def stale(self, now: float, limit: float) -> Sequence[ImageRecord]:
        """Return begun records whose heartbeat is missing or older than `limit` seconds."""
        ...

    async def renew(self, key: str, expiration: float) -> None:
        """Set the expiration of a READY record to a later time; never to an earlier one."""
        ...

    async def list_expired(
        self, now: float, systems: Collection[str] | None = None, limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """Return at most `limit` READY records whose expiration has passed, the earliest first.

        Only of these systems; None means all. Pinned images are left out.
        """
        ...

    async def untag(
        self, key: str, tag: str, expected: ImageRecord | None = None
    ) -> ImageRecord | None:
        """Remove a tag from a READY record and return the record.

        A record that loses its last tag becomes EXPIRING, as by `expire`, but without that tag.
        Returns None if the record is not READY or does not have the tag, or if it differs from the
        `expected` record, as in `expire`.
        """
        ...

    async def expire(
        self, key: str, expired_at: float | None = None, expected: ImageRecord | None = None
    ) -> ImageRecord | None:
        """Make a READY record EXPIRING: work of kind "expire" that waits for a worker.

        The record keeps its tags, and its attempt numbers go on from earlier ones; it is no longer
        pinned. Returns None, and changes nothing, if the record is not READY, or if its expiration
        is later than `expired_at` because it was renewed in the meantime. With `expired_at` a
        pinned image stays, too.

        If its tags, owners, readers, users or pin differ from those of the `expected` record, by
        which the caller has decided that it may be removed, nothing happens; returns None.
        """
        ...

    async def note_use(self, key: str, uid: int) -> bool:
        """Note in a record that a user has asked for its image, or for its pull.

        If `only_user` is another user, the record has none any more. Returns False, and changes
        nothing, if the record is neither READY nor a pull in flight any more.
        """
        ...

    async def pin(self, key: str, uid: int, limit: int | None) -> ImageRecord | None:
        """Pin the image of a READY record, so that it does not expire, and return the record.

        A pinned image stays as it is. Returns None if the record is not READY. Raises `TooMany`
        if the user has pinned `limit` images of the record's system; None means no limit.
        """
        ...

    async def unpin(self, key: str) -> ImageRecord | None:
        """Unpin the image of a READY record and return the record; None if it is not READY."""
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

        EXPIRING records are changed too, because they may become READY again.
        """
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
