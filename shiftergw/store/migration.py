"""From a SQLite file to a database of MongoDB, which is to be empty before.

It can be broken off and begun again: every document has the same key each time. As long as it has
not come to its end a mark in the database keeps gateways from taking in work there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
from shiftergw.store.mongo.queries import LEASES, MIGRATION, STATE
from shiftergw.store.mongo.records import IMAGES
from shiftergw.store.mongo.store import CHECK_SECONDS

PATIENCE = CHECK_SECONDS + 2 * COMMAND_SECONDS
"""Seconds after which every gateway on the database has seen the mark."""

LARGEST = 16 * 1024 * 1024
"""Bytes of the largest document that MongoDB takes."""

TOGETHER = 4 * 1024 * 1024
"""Bytes of documents that are sent at once, unless a single one is larger."""

NAMED = 5
"""How many of the things that are wrong are named."""

Say = Callable[[str], None]

_FRESH = "Use a database that is empty (`MongoDB` names it)."


class Migration:
    """One run of it: what it reads, and where it writes."""

    def __init__(
        self, source: Export, origin: str, threads: Threads, db: Database, say: Say
    ) -> None:
        """Read `source`, which is known as `origin`, in `threads`; tell `say` what is done."""
        self._source = source
        self._origin = origin
        self._threads = threads
        self._db = db
        self._say = say

    async def run(self, patience: float) -> dict[str, int]:
        """Copy and compare; return how many there were of what.

        Raises `ConfigurationError`, `Unavailable`, and `GatewayError` for what differs at the end.
        """
        now = self._db.clock.seconds()
        await self._check_source(now)
        begun = await self._mark(now, patience)
        counts: dict[str, int] = {}
        for part in parts(begun):
            total = await self._threads.run(self._source.count, part)
            async for documents, done in self._pages(part):
                for some in _by_size(documents):
                    await self._db.replace(part.collection, some)
                self._say(f"{done} of {total} {part.what} copied")
            counts[part.what] = total
        for part in parts(begun):
            await self._compare(part, counts[part.what])
        end = {"done": self._db.clock.seconds(), "counts": counts}
        await self._db.update(STATE, {"_id": MIGRATION}, {"$set": end})
        return counts

    async def _check_source(self, now: float) -> None:
        """Raise if something in the file is not at its end, or cannot be kept by MongoDB."""
        busy = await self._threads.run(self._source.busy, now, NAMED)
        if busy:
            raise Unavailable(
                f"Work is not at its end: {printable(', '.join(busy))}.",
                remedy="Start the gateway on the file once more, wait until `shiftergw queue` shows"
                " nothing that goes on, and stop it.",
            )
        for part in parts(now):
            async for documents, _ in self._pages(part):
                for document in documents:
                    _check(part, document)

    async def _mark(self, now: float, patience: float) -> float:
        """Keep gateways out of the database, and return since when."""
        before = await self._marked()
        if before is None:
            await self._check_empty()
            mark = {"source": self._origin, "begun": now}
            await self._db.update(STATE, {"_id": MIGRATION}, {"$setOnInsert": mark}, upsert=True)
            before = await self._marked()
            assert before is not None
        if before.get("source") != self._origin:
            raise ConfigurationError(
                "Another file is being copied into the database, or was.",
                remedy=_FRESH,
                detail=printable(str(before.get("source"))),
            )
        if before.get("done") is not None:
            raise ConfigurationError(
                "The file was copied into this database before, and has nothing to add.",
                remedy="Start the gateway: it goes on there. To copy once more, use an empty one.",
            )
        begun = float(before["begun"])
        if now - begun < patience:
            self._say(f"waiting {patience:g} s: gateways on the database are to see what happens")
            await pause(patience, self._db.clock)
        try:
            await self._check_quiet()
            if begun == now:
                await self._check_empty()
        except ConfigurationError:
            if begun == now:  # nothing of ours is there
                await self._db.delete(STATE, {"_id": MIGRATION, "begun": begun})
            raise
        return begun

    async def _marked(self) -> Document | None:
        return await self._db.first(mongo_queries.state_document(MIGRATION))

    async def _check_empty(self) -> None:
        for part in parts(0):
            count = await self._db.count(part.collection, {})
            if count:
                raise ConfigurationError(
                    f"The database has {count} {part.what} already.", remedy=_FRESH
                )

    async def _check_quiet(self) -> None:
        """Raise if somebody works on the database."""
        now = self._db.clock.seconds()
        held = await self._db.count(LEASES, {"until": {"$gt": now}})
        if held or await self._db.count(IMAGES, mongo_queries.all_in_flight().filter):
            raise ConfigurationError(
                "A gateway works on the database.", remedy=f"Stop it. {_FRESH}"
            )

    async def _compare(self, part: Part, total: int) -> None:
        """Raise if the database does not hold just what the file does."""
        wrong: list[str] = []
        async for documents, _ in self._pages(part):
            keys = [document["_id"] for document in documents]
            found = await self._db.find(Query(part.collection, {"_id": {"$in": keys}}))
            there = {document["_id"]: bson.encode(document) for document in found}
            wrong += [
                str(document["_id"])
                for document in documents
                if there.get(document["_id"]) != bson.encode(document)
            ]
        if wrong:
            names = ", ".join(wrong[:NAMED])
            raise GatewayError(
                f"{len(wrong)} {part.what} are not there as they should be: {printable(names)}.",
                remedy="Run it once more; if that does not help, use an empty database.",
            )
        count = await self._db.count(part.collection, {})
        if count != total:
            raise GatewayError(
                f"The database has {count} {part.what}, the file {total}.",
                remedy=f"Somebody else has written there, or the file has changed. {_FRESH}",
            )
        self._say(f"{total} {part.what} compared")

    async def _pages(self, part: Part) -> AsyncIterator[tuple[Sequence[Document], int]]:
        """Yield the documents of a part, some at a time, and how many they are up to then."""
        done, after = 0, part.first
        while True:
            documents, after = await self._threads.run(self._source.page, part, after)
            if not documents:
                return
            done += len(documents)
            yield documents, done


def _check(part: Part, document: Document) -> None:
    try:
        size = len(bson.encode(document))
    except (BSONError, OverflowError, ValueError) as error:
        raise _not_storable(part, document, str(error)) from error
    if size > LARGEST:
        raise _not_storable(part, document, f"{size} bytes are too many")


def _not_storable(part: Part, document: Document, why: str) -> ConfigurationError:
    key = printable(str(document["_id"]), 120)
    return ConfigurationError(
        f"One of the {part.what} cannot be kept by MongoDB: {key}: {printable(why)}.",
        remedy="Expire the image, or pull it anew, with the gateway on the file.",
    )


def _by_size(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    """Yield documents in groups that make no message too long."""
    group: list[Document] = []
    size = 0
    for document in documents:
        more = len(bson.encode(document))
        if group and size + more > TOGETHER:
            yield group
            group, size = [], 0
        group.append(document)
        size += more
    if group:
        yield group


async def migrate(
    reactor: Any,
    threads: Threads,
    path: Path,
    origin: str,
    uri: str,
    name: str,
    say: Say,
    patience: float = PATIENCE,
) -> dict[str, int]:
    """Copy a file, known as `origin`, into the database `name`; see `Migration.run`."""
    address = MongoAddress.parse(uri)
    servers = PrimaryConnector(reactor, address, HOST_SECONDS)
    source = await threads.run(_opened, path)
    links = ConnectionPool(servers.open, reactor, COMMAND_SECONDS)
    try:
        db = Database(reactor, links, name, address.write_concern)
        return await Migration(source, origin, threads, db, say).run(patience)
    finally:
        await links.close()
        await threads.run(source.close)


def _opened(path: Path) -> Export:
    try:
        return Export(path)
    except Unavailable as error:
        raise Unavailable(
            f"A gateway, or another program, has {path} open.",
            remedy="Stop the gateway and its workers first.",
            detail=error.detail,
        ) from error
