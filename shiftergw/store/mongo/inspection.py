"""Inspect a database of MongoDB without a change, to tell whether a store would work there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from shiftergw.store.mongo.rights import COMMAND, Rights, read_rights
from shiftergw.store.survey import Survey

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor


@dataclass(frozen=True, slots=True)
class Inspection:
    """The facts about a database.

    `records` and `lookups` are numbers of documents. `missing_indexes` are names. `is_taken_over`
    says that another program has filled the database and scheduled expiry is not on yet. `rights`
    are those of the user of the URI. `clock_gap` describes how far this machine's clock is from the
    server's, or is None if that is within limits.
    """

    records: int
    missing_indexes: Sequence[str]
    is_taken_over: bool
    lookups: int
    rights: Rights
    clock_gap: str | None


async def inspect_database(reactor: Reactor, uri: str, name: str) -> Inspection:
    """Log in to the database `name` and inspect it; change nothing.

    Raises `ConfigurationError`, or within seconds `Unavailable`, whose detail has the reason.
    """
    async with _connection(reactor, uri, name) as resources:
        return await _inspect(*resources, name)


async def survey(reactor: Reactor, uri: str, name: str, into: Survey) -> Inspection:
    """Inspect a database, and count all its records in a survey. Raises as `inspect_database`."""
    async with _connection(reactor, uri, name) as resources:
        async for batch in resources[0].batches(Query(IMAGES, {})):
            for document in batch:
                into.add(document, has_object_id=isinstance(document["_id"], ObjectId))
        return await _inspect(*resources, name)


async def _inspect(
    db: Database, pool: ConnectionPool, connector: PrimaryConnector, name: str
) -> Inspection:
    records, lookups = await db.count(IMAGES, {}), await db.count(LOOKUPS, {})
    missing_indexes = await Indexes(db, pool, COMMAND_SECONDS).missing()
    is_taken_over = await expiry.is_taken_over(db)
    lead = connector.clock_lead
    clock_gap = describe_clock_gap(lead) if is_clock_apart(lead) else None
    rights = await _rights(db, name)
    return Inspection(records, missing_indexes, is_taken_over, lookups, rights, clock_gap)


async def _rights(db: Database, name: str) -> Rights:
    try:
        return read_rights(await db.run(COMMAND), name)
    except Unavailable:  # the server answers queries, but does not know this command
        return Rights("", sufficient=None)


@asynccontextmanager
async def _connection(
    reactor: Reactor, uri: str, name: str
) -> AsyncIterator[tuple[Database, ConnectionPool, PrimaryConnector]]:
    address = MongoAddress.parse(uri)
    connector = PrimaryConnector(reactor, address, HOST_SECONDS)
    pool = ConnectionPool(connector.open, reactor, COMMAND_SECONDS)
    try:
        yield Database(reactor, pool, name, address.write_concern), pool, connector
    finally:
        await pool.close()
