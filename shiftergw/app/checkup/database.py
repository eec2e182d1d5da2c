"""Check the database: a SQLite file or a MongoDB server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.app.checkup.finding import Finding, Level, failure
from shiftergw.app.compose import state_file
from shiftergw.config import Config
from shiftergw.errors import GatewayError, printable
from shiftergw.mongo.connector import LOGIN_REMEDY
from shiftergw.plumbing.files import file_system_of
from shiftergw.store.mongo.inspection import inspect_database
from shiftergw.store.mongo.rights import Rights
from shiftergw.store.sqlite import inspection as sqlite_inspection

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

REMEDY = "Start the server, or correct MongoDBURI: hosts, user, password, TLS."
CLOCK = (
    "Have all machines keep time by NTP: gateways and workers judge by their own clocks whose"
    " heartbeat is older than HeartbeatLimit, and take such work over."
)

CHECK_SECONDS = 60.0
"""The time limit for the search for damage in the SQLite file."""

MOST_RIGHTS = 6
"""The most missing rights that are named."""

SWITCH = (
    "Set ScheduledExpiry to true, and dates that have passed or are absent count from that moment;"
    " or to false."
)


async def state(config: Config, reactor: Reactor) -> list[Finding]:
    """Return the findings about the database: its place, its rights, its damage, its expiry."""
    if config.mongodb_uri is not None and config.mongodb is not None:
        try:
            look = await inspect_database(reactor, config.mongodb_uri, config.mongodb)
        except GatewayError as error:
            return [mongodb_failure("MongoDB", error)]
        indexes = (
            f", {len(look.missing_indexes)} indexes to be made" if look.missing_indexes else ""
        )
        text = f"database {config.mongodb}: {look.records} records{indexes}"
        clock = (
            []
            if look.clock_gap is None
            else [Finding("clock", Level.WARNING, look.clock_gap, CLOCK)]
        )
        return [
            Finding("MongoDB", Level.OK, text),
            *clock,
            _rights(look.rights, config.mongodb),
            expiry(config, taken_over=look.is_taken_over),
        ]
    name = "file system of the state"
    kind = file_system_of(config.state_directory)
    try:
        config.check_state_file_system(kind)
        where = Finding(name, Level.OK, kind)
    except GatewayError as error:
        where = failure(name, error)
    return [where, *_integrity(state_file(config)), expiry(config, taken_over=False)]


def _integrity(path: Path) -> Iterator[Finding]:
    """Look for damage in the SQLite file, if there is one."""
    if not os.path.exists(path):  # noqa: PTH110 - False also without permission
        return
    name = "integrity of the state"
    try:
        is_complete = sqlite_inspection.check(path, CHECK_SECONDS)
    except GatewayError as error:
        yield failure(name, error)
        return
    if is_complete:
        yield Finding(name, Level.OK, "no damage in its tables and indexes")
    else:
        text = f"no damage in the part that was read within {CHECK_SECONDS:.0f} s"
        yield Finding(name, Level.OK, text)


def mongodb_failure(name: str, error: GatewayError) -> Finding:
    """Return an error of a MongoDB server as a finding, with the remedy for the site."""
    finding = failure(name, error)
    return finding if error.remedy == LOGIN_REMEDY else replace(finding, remedy=REMEDY)


def _rights(rights: Rights, database: str) -> Finding:
    """Return whether the gateway may write in its database and create indexes there.

    The server is asked for its rights; a test write would leave something behind.
    """
    name = "rights in MongoDB"
    if rights.user is None:
        text = "no login is required: everybody who reaches the server may write"
        return Finding(name, Level.OK, text)
    user = printable(rights.user) or "the user of MongoDBURI"
    remedy = f"Give the user of MongoDBURI the role readWrite on {database}."
    if rights.sufficient is None:
        text = f"whether {user} may write is not proven: the server does not say"
        return Finding(name, Level.WARNING, text, remedy)
    if rights.sufficient:
        return Finding(name, Level.OK, f"{user} may write, and make indexes")
    remainder = (
        f" and {len(rights.missing) - MOST_RIGHTS} more"
        if len(rights.missing) > MOST_RIGHTS
        else ""
    )
    text = f"{user} may not: {', '.join(rights.missing[:MOST_RIGHTS])}{remainder}"
    return Finding(name, Level.FAILURE, text, remedy)


def expiry(config: Config, *, taken_over: bool) -> Finding:
    """Return whether images expire by themselves.

    `taken_over` says that another program filled the database, and expiry has not begun there.
    """
    name, enabled = "scheduled expiry", config.scheduled_expiry
    if enabled is False:
        return Finding(name, Level.OK, "off: ScheduledExpiry is false")
    if config.image_expiration_timeout is None:
        after = "on, but without ImageExpirationTimeout images get no expiration"
    else:
        after = "on"
    if not taken_over:
        return Finding(name, Level.OK, after)
    if enabled:
        text = f"{after}; dates that have passed or are absent count from the gateway's start"
        return Finding(name, Level.OK, text)
    return Finding(name, Level.WARNING, "off: another program has filled the database", SWITCH)
