"""Migrate a SQLite file to an empty database of MongoDB.

A migration can be interrupted and started again, because each run gives a document the same key.
Until it is complete, a mark in the database keeps gateways from accepting work there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import bson
from bson.errors import BSONError

from shiftergw.errors import ConfigurationError, GatewayError, Unavailable, printable
from shiftergw.mongo.address import MongoAddress
from shiftergw.mongo.connector import HOST_SECONDS, PrimaryConnector
from shiftergw.mongo.database import COMMAND_SECONDS, Database, Document, Query
from shiftergw.mongo.pool import ConnectionPool
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.store.export import Export, Part, parts
from shiftergw.store.mongo import queries as mongo_queries
from shiftergw.store.mongo.connections import CHECK_SECONDS
from shiftergw.store.mongo.queries import LEASES, MIGRATION, STATE
from shiftergw.store.mongo.records import IMAGES

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

PATIENCE = CHECK_SECONDS + 2 * COMMAND_SECONDS
"""Seconds after which every gateway on the database has read the mark."""

LARGEST = 16 * 1024 * 1024
"""Bytes of the largest document that MongoDB accepts."""

MESSAGE_BYTES = 4 * 1024 * 1024
"""Bytes of documents in one message, unless a single document is larger."""

NAMES_SHOWN = 5
"""Documents or pulls that an error names at most."""

Report = Callable[[str], None]
"""Shows a line of progress to the operator."""

_FRESH = "Use a database that is empty (`MongoDB` names it)."


class Migration:
    """One run of a migration."""

    def __init__(
        self, source: Export, origin: str, threads: Threads, db: Database, report: Report
    ) -> None:
        """Read `source` in `threads` and write to `db`; `origin` names the file in the mark."""
        self._source = source
        self._origin = origin
        self._threads = threads
        self._db = db
        self._report = report

    async def run(self, patience: float) -> dict[str, int]:
        """Copy all documents and compare them; return the number of documents by part.

        Gateways on the database have `patience` seconds to read the mark. Raises
        `ConfigurationError`, `Unavailable`, and `GatewayError` if documents differ at the end.
        """
        now = self._db.clock.seconds()
        await self._check_source(now)
        start_time = await self._set_mark(now, patience)
        counts: dict[str, int] = {}
        for part in parts(start_time):
            total = await self._threads.run(self._source.count, part)
            async for documents, done in self._pages(part):
                for message in _split_by_size(documents):
                    await self._db.replace(part.collection, message)
                self._report(f"{done} of {total} {part.name} copied")
            counts[part.name] = total
        for part in parts(start_time):
            await self._compare(part, counts[part.name])
        end = {"done": self._db.clock.seconds(), "counts": counts}
        await self._db.update(STATE, {"_id": MIGRATION}, {"$set": end})
        return counts

    async def _check_source(self, now: float) -> None:
        """Raise if work in the file has not ended, or MongoDB cannot hold a document."""
        names = await self._threads.run(self._source.unfinished_work, now, NAMES_SHOWN)
        if names:
            raise Unavailable(
                f"Some work has not ended: {printable(', '.join(names))}.",
                remedy="Start the gateway on the file once more, wait until `shiftergw queue` shows"
                " no work in flight, and stop it.",
            )
        for part in parts(now):
            async for documents, _ in self._pages(part):
                for document in documents:
                    _check_storable(part, document)

    async def _set_mark(self, now: float, patience: float) -> float:
        """Keep gateways out of the database; return the time at which the migration started."""
        mark = await self._find_mark()
        if mark is None:
            await self._check_empty()
            new_mark = {"$setOnInsert": {"source": self._origin, "begun": now}}
            await self._db.update(STATE, {"_id": MIGRATION}, new_mark, upsert=True)
            mark = await self._find_mark()
            assert mark is not None
        if mark.get("source") != self._origin:
            raise ConfigurationError(
                "Another file was, or is being, copied into the database.",
                remedy=_FRESH,
                detail=printable(str(mark.get("source"))),
            )
        if mark.get("done") is not None:
            raise ConfigurationError(
                "The file has been copied into this database already.",
                remedy="Start the gateway on the database. To copy again, use an empty database.",
            )
        start_time = float(mark["begun"])
        is_first_run = start_time == now
        if now - start_time < patience:
            self._report(
                f"waiting {patience:g} s, until gateways on the database stop accepting work"
            )
            await pause(patience, self._db.clock)
        try:
            await self._check_idle()
            if is_first_run:
                await self._check_empty()
        except ConfigurationError:
            if is_first_run:  # nothing but the mark is in the database
                await self._db.delete(STATE, {"_id": MIGRATION, "begun": start_time})
            raise
        return start_time

    async def _find_mark(self) -> Document | None:
        return await self._db.first(mongo_queries.state_document(MIGRATION))

    async def _check_empty(self) -> None:
        for part in parts(0):
            count = await self._db.count(part.collection, {})
            if count:
                raise ConfigurationError(
                    f"The database has {count} {part.name} already.", remedy=_FRESH
                )

    async def _check_idle(self) -> None:
        """Raise if a gateway or a worker uses the database."""
        now = self._db.clock.seconds()
        leases = await self._db.count(LEASES, {"until": {"$gt": now}})
        if leases or await self._db.count(IMAGES, mongo_queries.all_in_flight().filter):
            raise ConfigurationError(
                "A gateway works on the database.", remedy=f"Stop it. {_FRESH}"
            )

    async def _compare(self, part: Part, total: int) -> None:
        """Raise unless the database holds exactly the documents of the file."""
        wrong_keys: list[str] = []
        async for documents, _ in self._pages(part):
            keys = [document["_id"] for document in documents]
            copies = await self._db.find(Query(part.collection, {"_id": {"$in": keys}}))
            contents = {copy["_id"]: bson.encode(copy) for copy in copies}
            wrong_keys += [
                str(document["_id"])
                for document in documents
                if contents.get(document["_id"]) != bson.encode(document)
            ]
        if wrong_keys:
            names = ", ".join(wrong_keys[:NAMES_SHOWN])
            raise GatewayError(
                f"{len(wrong_keys)} {part.name} in the database differ from the file:"
                f" {printable(names)}.",
                remedy="Migrate once more; if that does not help, use an empty database.",
            )
        count = await self._db.count(part.collection, {})
        if count != total:
            raise GatewayError(
                f"The database has {count} {part.name}, the file {total}.",
                remedy=f"Another program has written there, or the file has changed. {_FRESH}",
            )
        self._report(f"{total} {part.name} compared")

    async def _pages(self, part: Part) -> AsyncIterator[tuple[Sequence[Document], int]]:
        """Yield the documents of a part page by page, with the number of all documents so far."""
        done, after = 0, part.start
        while True:
            documents, after = await self._threads.run(self._source.page, part, after)
            if not documents:
                return
            done += len(documents)
            yield documents, done


def _check_storable(part: Part, document: Document) -> None:
    """Raise `ConfigurationError` if MongoDB cannot hold a document."""
    try:
        size = len(bson.encode(document))
    except (BSONError, OverflowError, ValueError) as error:
        raise _not_storable(part, document, str(error)) from error
    if size > LARGEST:
        raise _not_storable(part, document, f"{size} bytes are too many")


def _not_storable(part: Part, document: Document, why: str) -> ConfigurationError:
    key = printable(str(document["_id"]), 120)
    return ConfigurationError(
        f"MongoDB cannot store one of the {part.name}: {key}: {printable(why)}.",
        remedy="Expire the image, or pull it anew, with the gateway on the file.",
    )


def _split_by_size(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    """Yield documents in groups of at most `MESSAGE_BYTES` bytes."""
    group: list[Document] = []
    size = 0
    for document in documents:
        document_size = len(bson.encode(document))
        if group and size + document_size > MESSAGE_BYTES:
            yield group
            group, size = [], 0
        group.append(document)
        size += document_size
    if group:
        yield group


async def migrate(
    reactor: Reactor,
    threads: Threads,
    path: Path,
    origin: str,
    uri: str,
    name: str,
    report: Report,
    patience: float = PATIENCE,
) -> dict[str, int]:
    """Copy the file `path` into the database `name`; see `Migration` and `Migration.run`."""
    address = MongoAddress.parse(uri)
    connector = PrimaryConnector(reactor, address, HOST_SECONDS)
    source = await threads.run(_open, path)
    pool = ConnectionPool(connector.open, reactor, COMMAND_SECONDS)
    try:
        db = Database(reactor, pool, name, address.write_concern)
        return await Migration(source, origin, threads, db, report).run(patience)
    finally:
        await pool.close()
        await threads.run(source.close)


def _open(path: Path) -> Export:
    try:
        return Export(path)
    except Unavailable as error:
        raise Unavailable(
            f"A gateway, or another program, has {path} open.",
            remedy="Stop the gateway and its workers first.",
            detail=error.detail,
        ) from error
