"""The indexes of the collections: made once the server is there, if they are missing.

Nothing else is written when the gateway starts, so that an original's database stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pymongo.errors import DuplicateKeyError, OperationFailure
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from shiftergw.errors import Unavailable, printable
from shiftergw.mongo.database import Database
from shiftergw.mongo.pool import ConnectionPool
from shiftergw.plumbing.timing import shielded, within
from shiftergw.store.mongo.queries import INDEXES, MIGRATION, fact
from shiftergw.store.mongo.records import IMAGES

BUILD_SECONDS = 3600.0
"""How long a server may take to make an index of a large collection."""

REFUSED_SECONDS = 60.0
"""How long no index is asked for again that the server has refused: each try reads all records."""

REFUSED = "The gateway's database takes no pulls: it holds two records of one pull."
REFUSED_REMEDY = "Tell the site's support: `shiftergw check --database` names them."

PREPARED = "The gateway's database is being prepared."

_NO_COLLECTION = 26


class Indexes:
    """Sees to the indexes whenever the server was found: it may be another one by now."""

    _log = Logger()

    def __init__(self, db: Database, links: ConnectionPool, seconds: float) -> None:
        """Let nobody wait longer than `seconds`."""
        self._db = db
        self._links = links
        self._seconds = seconds
        self._seen = -1
        self._claims = False
        self._half_filled = False
        self._making: Deferred[None] | None = None
        self._failed: Unavailable | None = None
        self._refused_until = -math.inf
        self._refused_by = -1
        """The meeting at which an index was refused: another server may take it."""

    async def make(self) -> None:
        """Make what is missing, unless that was done since the server was last found."""
        mark = await self._db.first(fact(MIGRATION))
        self._half_filled = mark is not None and mark.get("done") is None
        if self._seen != self._links.meetings:
            if self._failed is not None and self._is_refused():
                raise self._failed
            if self._making is None or self._making.called:
                self._making = Deferred.fromCoroutine(self._try())
            await shielded(self._making)
            if self._failed is not None:
                raise self._failed

    def _is_refused(self) -> bool:
        same_server = self._refused_by == self._links.meetings
        return same_server and self._db.clock.seconds() < self._refused_until

    async def unique_claims(self) -> None:
        """Return when no claim can be made twice; raise `Unavailable` if that takes too long.

        And as long as not all is here that `shiftergw migrate` has begun to bring.
        """
        if not self._claims:
            await within(self._seconds, self._db.clock, self.make(), lambda: Unavailable(PREPARED))
        if self._half_filled:
            raise Unavailable(PREPARED, detail="`shiftergw migrate` has not come to its end")

    async def _try(self) -> None:
        """Keep the failure: several may wait for the same try."""
        try:
            await self._make()
        except Unavailable as error:
            self._failed = error
        else:
            self._failed = None

    async def _make(self) -> None:
        meeting = self._links.meetings
        for collection in INDEXES:
            for name, wanted in (await self._missing(collection)).items():
                await self._create(collection, name, wanted)
            if collection == IMAGES:
                self._claims = True
        self._seen = meeting

    async def missing(self) -> list[str]:
        """Return the names of indexes that are still to be made."""
        return [name for collection in INDEXES for name in await self._missing(collection)]

    async def _missing(self, collection: str) -> Mapping[str, Mapping[str, Any]]:
        there = await self._there(collection)
        wanted = INDEXES[collection].items()
        return {name: one for name, one in wanted if not _is_among(one, there)}

    async def _create(self, collection: str, name: str, wanted: Mapping[str, Any]) -> None:
        """Make an index; if the server will not, say so, and go on without."""
        command = {"createIndexes": collection, "indexes": [{"name": name, **wanted}]}
        self._log.info("makes the index {name} of {collection}", name=name, collection=collection)
        try:
            await self._db.run(command, BUILD_SECONDS)
        except (Unavailable, DuplicateKeyError) as error:
            refused = error if isinstance(error, DuplicateKeyError) else _refusal(error)
            if refused is None:
                raise
            self._log.error("no index {name}: {why}", name=name, why=printable(str(refused)))
            if wanted.get("unique"):
                self._refused_by = self._links.meetings
                self._refused_until = self._db.clock.seconds() + REFUSED_SECONDS
                duplicate = "E11000" in str(refused)
                raise Unavailable(
                    REFUSED if duplicate else PREPARED,
                    remedy=REFUSED_REMEDY if duplicate else None,
                    detail=printable(str(refused)),
                ) from error

    async def _there(self, collection: str) -> list[Mapping[str, Any]]:
        try:
            answer = await self._db.run({"listIndexes": collection})
        except Unavailable as error:
            refused = _refusal(error)
            if refused is not None and refused.code == _NO_COLLECTION:
                return []
            raise
        found: list[Mapping[str, Any]] = answer["cursor"]["firstBatch"]
        return found


def _refusal(error: Unavailable) -> OperationFailure | None:
    """Return what the server said, if it was there and would not."""
    cause = error.__cause__
    return cause if isinstance(cause, OperationFailure) else None


def _is_among(wanted: Mapping[str, Any], there: list[Mapping[str, Any]]) -> bool:
    """Say whether there is an index like this one, whatever its name."""

    def form(index: Mapping[str, Any]) -> tuple[object, ...]:
        key = tuple((name, int(order)) for name, order in index["key"].items())
        # Another's may have documents removed that we would keep: only its own wish counts.
        age = index.get("expireAfterSeconds") if "expireAfterSeconds" in wanted else None
        return key, bool(index.get("unique")), bool(index.get("sparse")), age

    plain = [one for one in there if "partialFilterExpression" not in one and _is_plain(one)]
    return any(form(one) == form(wanted) for one in plain)


def _is_plain(index: Mapping[str, Any]) -> bool:
    return all(isinstance(order, int | float) for order in index["key"].values())
