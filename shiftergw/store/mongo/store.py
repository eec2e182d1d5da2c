"""Images and work in MongoDB, for several gateways, or for the database of an original gateway.

The collections `images` and `metrics` are the original's, and hold documents like its own. Further
collections have names that start with `shiftergw.`. A single server is enough. The server may be
unreachable, also at the start: then every call raises `Unavailable` within a few seconds, and calls
work again as soon as the server is back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shiftergw.model.packed_data import PackedData
from shiftergw.model.postponement import Breaker, PostponeLimits
from shiftergw.model.records import Expired, Failed, ImageRecord, Progress, Ready
from shiftergw.model.requests import PullRequest, QueueLimits
from shiftergw.model.throughput import Throughput
from shiftergw.mongo.database import COMMAND_SECONDS
from shiftergw.ports import DeltaBase, UsedCredentials
from shiftergw.states import State, WaitCause
from shiftergw.store import documents
from shiftergw.store.mongo import (
    breakers,
    credentials,
    expiry,
    finish,
    images,
    leases,
    queries,
    ranges,
    reads,
    schedule,
    steps,
    throughput,
)
from shiftergw.store.mongo.connections import MongoConnections
from shiftergw.store.mongo.lookups import MAX_ROWS
from shiftergw.store.mongo.records import (
    IMAGES,
    document_at,
    record_of,
)

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor


class MongoStore(MongoConnections):
    """An `ImageStore`, and `UsedCredentials`, in MongoDB. Callers pass the times of records."""

    def __init__(
        self,
        reactor: Reactor,
        uri: str,
        name: str,
        seconds: float = COMMAND_SECONDS,
        max_rows: int = MAX_ROWS,
    ) -> None:
        """Store everything in the database `name`; a command may take `seconds` seconds."""
        super().__init__(reactor, uri, name, seconds, max_rows)
        self._unconfirmed_begins = steps.UnconfirmedBegins()

    async def claim(
        self, request: PullRequest, now: float, limits: QueueLimits | None = None
    ) -> tuple[ImageRecord, bool]:
        """See `ImageStore`."""
        await self._require_open().indexes.require_unique_claims()
        return await steps.claim(self._db, request, now, limits)

    async def begin(self, key: str, runner: str, now: float, limit: float) -> ImageRecord | None:
        """See `ImageStore`."""
        return await steps.begin(self._db, self._unconfirmed_begins, key, runner, now, limit)

    async def requeue(self, key: str, attempt: int, message: str, *, died: bool) -> ImageRecord:
        """See `ImageStore`."""
        return await steps.requeue(self._db, key, attempt, message, died=died)

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
        """See `ImageStore`."""
        return await steps.postpone(self._db, key, attempt, not_before, why, now, limits, cause)

    async def advance(self, key: str, attempt: int, state: State, message: str, now: float) -> None:
        """See `ImageStore`."""
        await steps.advance(self._db, key, attempt, state, message, now)

    async def heartbeat(
        self, key: str, attempt: int, progress: Progress, now: float, message: str | None = None
    ) -> None:
        """See `ImageStore`."""
        beat = documents.heartbeat(progress, now, message)
        await steps.heartbeat(self._db, key, attempt, beat)

    async def finish(
        self, key: str, attempt: int, outcome: Ready | Expired | Failed, now: float
    ) -> ImageRecord:
        """See `ImageStore`."""
        return await finish.finish(self._db, key, attempt, outcome, now)

    async def abandon(self, key: str) -> None:
        """See `ImageStore`."""
        await steps.abandon(self._db, key)

    async def get(self, key: str) -> ImageRecord | None:
        """See `ImageStore`."""
        document = await document_at(self._db, key)
        return None if document is None else record_of(document)

    async def find(self, system: str, itype: str, tags: Sequence[str]) -> ImageRecord | None:
        """See `ImageStore`."""
        return await reads.find(self._db, system, itype, tags)

    async def find_id(
        self, systems: Collection[str], image_id: str, *, expiring: bool = False
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await reads.find_id(self._db, systems, image_id, expiring=expiring)

    async def find_prefix(
        self, systems: Collection[str], prefix: str, limit: int
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await reads.find_prefix(self._db, systems, prefix, limit)

    async def find_work(self, system: str, itype: str, tag: str) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await reads.find_work(self._db, system, itype, tag)

    async def list(
        self, system: str, after: str = "", limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await reads.list_ready(self._db, system, after, limit)

    async def reports(self, system: str, limit: int) -> Sequence[Mapping[str, Any]]:
        """See `ImageStore`."""
        return await reads.reports(self._db, system, limit)

    async def queue(
        self,
        system: str,
        after: str = "",
        limit: int | None = None,  # noqa: ARG002 - no index has the work of a system by its key
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await reads.list_queue(self._db, system, after)

    async def ready(self) -> None:
        """See `ImageStore`."""
        await self.waiting(0.0, 1)

    async def count_work(self) -> Mapping[tuple[str, str], int]:
        """See `ImageStore`."""
        return await reads.count_work(self._db)

    async def list_breakers(self, now: float) -> Sequence[Breaker]:
        """See `ImageStore`."""
        return await breakers.list_open(self._db, now)

    async def add_throughput(self, work: Throughput) -> None:
        """See `ImageStore`."""
        await throughput.add(self._db, work)

    async def list_throughput(self, since: float) -> Sequence[Throughput]:
        """See `ImageStore`."""
        return await throughput.list_since(self._db, since)

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
        """See `ImageStore`."""
        shares = (share, system_shares)
        return await schedule.waiting(
            self._db, now, limit, running_per_user, offers, without, *shares
        )

    async def schedule(self, now: float) -> Sequence[str]:
        """See `ImageStore`."""
        return await schedule.order(self._db, now)

    async def stale(self, now: float, limit: float) -> Sequence[ImageRecord]:
        """See `ImageStore`. Also complete pulls whose process died within `finish`."""
        await finish.finish_interrupted(self._db, now - limit)
        return await schedule.stale(self._db, now - limit)

    async def check_breaker(self, key: str, now: float, seconds: float) -> Breaker | None:
        """See `ImageStore`."""
        return await breakers.check(self._db, key, now, seconds)

    async def trip_breaker(self, key: str, until: float, why: str, now: float) -> None:
        """See `ImageStore`."""
        await breakers.trip(self._db, key, until, why, now)

    async def close_breaker(self, key: str, now: float) -> None:
        """See `ImageStore`."""
        await breakers.close(self._db, key, now)

    async def end_probe(self, key: str, end: float, at: float) -> None:
        """See `ImageStore`."""
        await breakers.end_probe(self._db, key, end, at)

    async def renew(self, key: str, expiration: float) -> None:
        """See `ImageStore`."""
        await images.renew(self._db, key, expiration)

    async def list_expired(
        self, now: float, systems: Collection[str] | None = None, limit: int | None = None
    ) -> Sequence[ImageRecord]:
        """See `ImageStore`."""
        return await reads.list_expired(self._db, now, systems, limit)

    async def untag(
        self, key: str, tag: str, expected: ImageRecord | None = None
    ) -> ImageRecord | None:
        """See `ImageStore`."""
        return await images.untag(self._db, key, tag, expected)

    async def expire(
        self, key: str, expired_at: float | None = None, expected: ImageRecord | None = None
    ) -> ImageRecord | None:
        """See `ImageStore`."""
        return await images.expire(self._db, key, expired_at, expected)

    async def note_use(self, key: str, uid: int) -> bool:
        """See `ImageStore`."""
        return await images.note_use(self._db, key, uid)

    async def pin(self, key: str, uid: int, limit: int | None) -> ImageRecord | None:
        """See `ImageStore`."""
        return await images.pin(self._db, key, uid, limit)

    async def unpin(self, key: str) -> ImageRecord | None:
        """See `ImageStore`."""
        return await images.unpin(self._db, key)

    async def set_access(
        self,
        systems: Collection[str],
        image_id: str,
        private: bool,
        user_acl: Sequence[int],
        group_acl: Sequence[int],
    ) -> None:
        """See `ImageStore`."""
        change = documents.set_access(private, user_acl, group_acl)
        await images.set_access(self._db, systems, image_id, change)

    async def block(self, directory: str, image_id: str, uid: int, now: float) -> None:
        """See `ImageStore`."""
        await leases.block(self._db, directory, image_id, uid, now)

    async def allow(self, directory: str, image_id: str) -> bool:
        """See `ImageStore`."""
        return await leases.allow(self._db, directory, image_id)

    async def find_blocks(self, directory: str, prefix: str, limit: int) -> Sequence[str]:
        """See `ImageStore`."""
        return await leases.find_blocks(self._db, directory, prefix, limit)

    async def is_blocked(self, directory: str, image_ids: Collection[str]) -> bool:
        """See `ImageStore`."""
        return await leases.is_blocked(self._db, directory, image_ids)

    async def expires(self, setting: bool | None, now: float, lifetime: float | None) -> bool:
        """See `ImageStore`."""
        return await expiry.expires(self._db, setting, now, lifetime)

    async def forget_ended(self, before: float, *, foreign: bool = True) -> int:
        """See `ImageStore`."""
        await leases.forget_expired(self._db, before)
        count = 0
        find = queries.ended_before if foreign else queries.own_ended_before
        for records in find(before):
            count += (await self._db.delete(IMAGES, records, multi=True))[0]
        return count

    async def save_ranges(self, sha256: str, data: PackedData, now: float) -> None:
        """See `ImageStore`."""
        await ranges.save(self._db, sha256, data, now)

    async def find_bases(
        self, systems: Collection[str], data_sizes: Mapping[str, int], excluded_id: str, limit: int
    ) -> Sequence[DeltaBase]:
        """See `ImageStore`."""
        return await ranges.find(self._db, systems, data_sizes, excluded_id, limit)

    async def forget_ranges(self, before: float) -> int:
        """See `ImageStore`."""
        return await ranges.forget(self._db, before)

    async def lease(
        self, directory: str, image_id: str, holder: str, now: float, seconds: float
    ) -> bool:
        """See `ImageStore`."""
        return await leases.take(self._db, directory, image_id, holder, now, seconds)

    async def release(self, directory: str, image_id: str, holder: str) -> None:
        """See `ImageStore`."""
        await leases.release(self._db, directory, image_id, holder)

    @property
    def used_credentials(self) -> UsedCredentials:
        """See `ImageStore`."""
        return self

    async def use(self, digest: bytes, now: float) -> bool:
        """See `UsedCredentials`."""
        return await credentials.use(self._db, digest, now)

    async def note_used(self, digests: Collection[bytes], now: float) -> None:
        """See `UsedCredentials`."""
        await credentials.note(self._db, digests, now)

    async def record_lookup(self, row: Mapping[str, Any]) -> None:
        """See `ImageStore`."""
        self._require_open().lookup_buffer.add(row)

    async def lookups(self, system: str, limit: int) -> Sequence[dict[str, Any]]:
        """See `ImageStore`."""
        resources = self._require_open()
        await resources.lookup_buffer.flush()
        return await resources.lookup_collection.last(system, limit)
