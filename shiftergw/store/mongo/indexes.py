"""The indexes of the collections: missing ones are created once the server answers.

The gateway writes nothing else at its start, so that the database of an original stays as it is.
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
from shiftergw.plumbing.timing import shield, within
from shiftergw.store.mongo.queries import INDEXES, MIGRATION, state_document
from shiftergw.store.mongo.records import IMAGES

BUILD_SECONDS = 3600.0
"""Seconds that a server may take to create an index of a large collection."""

REFUSED_SECONDS = 60.0
"""Seconds before a refused index is tried again: each try reads all records."""

DUPLICATE_CLAIMS = "The gateway's database takes no pulls: it holds two records of one pull."
DUPLICATES_REMEDY = "Tell the site's support: `shiftergw check --database` names them."

BEING_PREPARED = "The gateway's database is being prepared."

_NO_COLLECTION = 26
_NOT_ALLOWED = 13


class Indexes:
    """Create missing indexes each time the pool finds the server: it may be another one then."""

    _log = Logger()

    def __init__(self, db: Database, pool: ConnectionPool, seconds: float) -> None:
        """Create indexes in `db`; `require_unique_claims` waits for `seconds` at most."""
        self._db = db
        self._pool = pool
        self._seconds = seconds
        self._complete_at = -1
        """The generation of the pool in which all indexes existed."""
        self._has_unique_claims = False
        self._is_migrating = False
        self._creation: Deferred[None] | None = None
        self._failure: Unavailable | None = None
        self._refused_until = -math.inf
        self._refused_at = -1
        """The generation in which an index was refused: another server may accept it."""

    async def create(self) -> None:
        """Create missing indexes, unless that was done since the server was found last."""
        mark = await self._db.first(state_document(MIGRATION))
        self._is_migrating = mark is not None and mark.get("done") is None
        if self._complete_at != self._pool.generation:
            if self._failure is not None and self._is_refused():
                raise self._failure
            if self._creation is None or self._creation.called:
                self._creation = Deferred.fromCoroutine(self._try_to_create())
            await shield(self._creation)
            if self._failure is not None:
                raise self._failure

    def _is_refused(self) -> bool:
        is_same_server = self._refused_at == self._pool.generation
        return is_same_server and self._db.clock.seconds() < self._refused_until

    async def require_unique_claims(self) -> None:
        """Return when no claim can be inserted twice; raise `Unavailable` if that takes too long.

        Also raise it while a migration into the database by `shiftergw migrate` is incomplete.
        """
        if not self._has_unique_claims:
            await within(
                self._seconds, self._db.clock, self.create(), lambda: Unavailable(BEING_PREPARED)
            )
        if self._is_migrating:
            raise Unavailable(BEING_PREPARED, detail="`shiftergw migrate` has not come to its end")

    async def _try_to_create(self) -> None:
        """Create missing indexes; store a failure, because several callers may wait for it."""
        try:
            await self._create_missing()
        except Unavailable as error:
            self._failure = error
        else:
            self._failure = None

    async def _create_missing(self) -> None:
        generation = self._pool.generation
        for collection in INDEXES:
            for name, options in (await self._missing_or_refused(collection)).items():
                await self._create_index(collection, name, options)
            if collection == IMAGES:
                self._has_unique_claims = True
        self._complete_at = generation

    async def missing(self) -> list[str]:
        """Return the names of indexes that do not exist yet."""
        return [name for collection in INDEXES for name in await self._missing(collection)]

    async def _missing(self, collection: str) -> Mapping[str, Mapping[str, Any]]:
        indexes = await self._list_indexes(collection)
        return {
            name: options
            for name, options in INDEXES[collection].items()
            if not _has_equivalent(indexes, options)
        }

    async def _missing_or_refused(self, collection: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the missing indexes; none, with a line in the log, without the right to list them.

        The collections behind this one get their indexes all the same. Only that of the images is
        needed.
        """
        try:
            return await self._missing(collection)
        except Unavailable as error:
            refusal = _refusal(error)
            if collection == IMAGES or refusal is None or refusal.code != _NOT_ALLOWED:
                raise
            why = printable(str(refusal))
            self._log.error("no indexes of {collection}: {why}", collection=collection, why=why)
            return {}

    async def _create_index(self, collection: str, name: str, options: Mapping[str, Any]) -> None:
        """Create an index; if the server refuses it, log that and go on unless it is unique."""
        command = {"createIndexes": collection, "indexes": [{"name": name, **options}]}
        self._log.info("makes the index {name} of {collection}", name=name, collection=collection)
        try:
            await self._db.run(command, BUILD_SECONDS)
        except (Unavailable, DuplicateKeyError) as error:
            refusal = error if isinstance(error, DuplicateKeyError) else _refusal(error)
            if refusal is None:
                raise
            self._log.error("no index {name}: {why}", name=name, why=printable(str(refusal)))
            if options.get("unique"):
                self._refused_at = self._pool.generation
                self._refused_until = self._db.clock.seconds() + REFUSED_SECONDS
                has_duplicates = "E11000" in str(refusal)
                raise Unavailable(
                    DUPLICATE_CLAIMS if has_duplicates else BEING_PREPARED,
                    remedy=DUPLICATES_REMEDY if has_duplicates else None,
                    detail=printable(str(refusal)),
                ) from error

    async def _list_indexes(self, collection: str) -> list[Mapping[str, Any]]:
        try:
            answer = await self._db.run({"listIndexes": collection})
        except Unavailable as error:
            refusal = _refusal(error)
            if refusal is not None and refusal.code == _NO_COLLECTION:
                return []
            raise
        indexes: list[Mapping[str, Any]] = answer["cursor"]["firstBatch"]
        return indexes


def _refusal(error: Unavailable) -> OperationFailure | None:
    """Return the server's error, if the server has answered."""
    cause = error.__cause__
    return cause if isinstance(cause, OperationFailure) else None


def _has_equivalent(indexes: list[Mapping[str, Any]], options: Mapping[str, Any]) -> bool:
    """Return whether one of the indexes has these options, whatever its name is."""

    def essence(index: Mapping[str, Any]) -> tuple[object, ...]:
        key = tuple((name, int(order)) for name, order in index["key"].items())
        # An index of another program may remove old documents; that is its own decision.
        age = index.get("expireAfterSeconds") if "expireAfterSeconds" in options else None
        return key, bool(index.get("unique")), bool(index.get("sparse")), age

    return any(
        essence(index) == essence(options)
        for index in indexes
        if "partialFilterExpression" not in index and _has_plain_key(index)
    )


def _has_plain_key(index: Mapping[str, Any]) -> bool:
    return all(isinstance(order, int | float) for order in index["key"].values())
