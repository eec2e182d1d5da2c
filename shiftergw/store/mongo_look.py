"""A look at a database of MongoDB, for who only wants to know whether a store would work there."""

from __future__ import annotations

from typing import Any

from shiftergw.store.mongo_address import Address
from shiftergw.store.mongo_connect import HOST_SECONDS, Servers
from shiftergw.store.mongo_database import COMMAND_SECONDS, Database
from shiftergw.store.mongo_indexes import Indexes
from shiftergw.store.mongo_links import Links
from shiftergw.store.mongo_records import IMAGES


async def look_at(reactor: Any, uri: str, name: str) -> str:
    """Log in, change nothing, and return in a few words what there is.

    Raises `ConfigurationError`, and `Unavailable` whose detail says what is wrong, after seconds.
    """
    address = Address.parse(uri)
    links = Links(Servers(reactor, address, HOST_SECONDS).open, reactor, COMMAND_SECONDS)
    db = Database(reactor, links, name, address.concern)
    try:
        records = await db.count(IMAGES, {})
        missing = await Indexes(db, links, COMMAND_SECONDS).missing()
    finally:
        await links.close()
    indexes = f", {len(missing)} indexes to be made" if missing else ""
    return f"database {name}: {records} records{indexes}"
