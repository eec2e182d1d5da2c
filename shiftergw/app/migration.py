"""Copy the state from the SQLite file to MongoDB, behind `shiftergw migrate`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from shiftergw.app.compose import state_file
from shiftergw.config import Config
from shiftergw.plumbing.threads import Threads

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

__all__ = ["migrate"]


async def migrate(
    reactor: Reactor, config: Config, notify: Callable[[str], None]
) -> dict[str, int]:
    """Copy all records, compare the copies, and return the number of each kind.

    The configuration has a `MongoDBURI`; `notify` shows a line to the user. Raises `GatewayError`;
    then the migration may be run again.
    """
    from shiftergw.store import migration  # noqa: PLC0415 - an extra

    assert config.mongodb_uri is not None
    assert config.mongodb is not None  # a configuration without it does not load
    path = state_file(config)
    threads = Threads(reactor, 1, "migration")
    threads.startService()
    try:
        return await migration.migrate(
            reactor,
            threads,
            path,
            f"{socket.gethostname()}:{path}",
            config.mongodb_uri,
            config.mongodb,
            notify,
        )
    finally:
        await threads.stopService()
