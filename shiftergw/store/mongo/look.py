"""A look at a database of MongoDB, for who only wants to know whether a store would work there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from bson.objectid import ObjectId

from shiftergw.errors import Unavailable
from shiftergw.mongo.address import MongoAddress
from shiftergw.mongo.connector import (
    HOST_SECONDS,
    PrimaryConnector,
    describe_clock_gap,
    is_clock_apart,
)
from shiftergw.mongo.database import COMMAND_SECONDS, Database, Query
from shiftergw.mongo.pool import ConnectionPool
from shiftergw.store.mongo import expiry
from shiftergw.store.mongo.indexes import Indexes
from shiftergw.store.mongo.queries import LOOKUPS
from shiftergw.store.mongo.records import IMAGES
from shiftergw.store.mongo.rights import COMMAND, Rights, rights
from shiftergw.store.survey import Survey


@dataclass(frozen=True, slots=True)
class Look:
    """How many records there are, the names of missing indexes, and what is known of expiry.

    `taken_over`: another program has filled the database, and scheduled expiry never began.
    `rows` are those of look-up metrics. `rights` are the user's of the URI. `clock` says how far
    our clock is from the server's, if that is too far.
    """

    records: int
    missing: Sequence[str]
    taken_over: bool
    rows: int
    rights: Rights
    clock: str | None


async def look_at(reactor: Any, uri: str, name: str) -> Look:
    """Log in, change nothing, and return what there is.

    Raises `ConfigurationError`, and `Unavailable` whose detail says what is wrong, after seconds.
    """
    async with _connected(reactor, uri, name) as there:
        return await _look(*there, name)


async def survey(reactor: Any, uri: str, name: str, into: Survey) -> Look:
    """Do the same, and count all records in a survey. Raises as `look_at`."""
    async with _connected(reactor, uri, name) as there:
        async for piece in there[0].pieces(Query(IMAGES, {})):
            for document in piece:
                into.add(document, keyed=isinstance(document["_id"], ObjectId))
        return await _look(*there, name)


async def _look(db: Database, links: ConnectionPool, servers: PrimaryConnector, name: str) -> Look:
    records, rows = await db.count(IMAGES, {}), await db.count(LOOKUPS, {})
    missing = await Indexes(db, links, COMMAND_SECONDS).missing()
    taken_over = await expiry.is_taken_over(db)
    clock = describe_clock_gap(servers.ahead) if is_clock_apart(servers.ahead) else None
    return Look(records, missing, taken_over, rows, await _rights(db, name), clock)


async def _rights(db: Database, name: str) -> Rights:
    try:
        return rights(await db.run(COMMAND), name)
    except Unavailable:  # it has let us read: it is there, and does not know the command
        return Rights("", enough=None)


@asynccontextmanager
async def _connected(
    reactor: Any, uri: str, name: str
) -> AsyncIterator[tuple[Database, ConnectionPool, PrimaryConnector]]:
    address = MongoAddress.parse(uri)
    servers = PrimaryConnector(reactor, address, HOST_SECONDS)
    links = ConnectionPool(servers.open, reactor, COMMAND_SECONDS)
    try:
        yield Database(reactor, links, name, address.concern), links, servers
    finally:
        await links.close()
