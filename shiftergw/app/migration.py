"""Behind `shiftergw migrate`: from a configuration's SQLite file to its database of MongoDB."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from shiftergw.app.compose import state_file
from shiftergw.config import Config
from shiftergw.plumbing.threads import Threads

__all__ = ["migrate"]


async def migrate(reactor: Any, config: Config, say: Callable[[str], None]) -> dict[str, int]:
    """Copy everything and compare it; return how many there were of what.

    The configuration has a `MongoDBURI`. Raises `GatewayError` with what is wrong; then it may be
    run again.
    """
    from shiftergw.store import migration  # noqa: PLC0415 - MongoDB is not for all

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
            say,
        )
    finally:
        await threads.stopService()
