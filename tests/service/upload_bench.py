"""Uploads in a real spool, with a store and a simulated clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock

from shiftergw.cache.upload_spool import UploadFiles
from shiftergw.model.requests import Session
from shiftergw.model.uploads import UploadDeclaration
from shiftergw.service.upload_space import UploadLimits
from shiftergw.service.uploads import Uploads
from shiftergw.store.sqlite.store import SqliteStore
from tests.service.gateway_bench import ALICE, START

KEEP = 3600.0
LIMITS = UploadLimits(upload=1000, user=1500, space=2500, keep_seconds=KEEP)


class UploadBench:
    """Uploads in a real spool, with a store and a simulated clock."""

    def __init__(self, store: SqliteStore, spool: UploadFiles, directory: Path) -> None:
        """Start at `START`."""
        self.store, self.spool, self.directory = store, spool, directory
        self.clock = Clock()
        self.clock.advance(START)
        self.uploads = Uploads(spool, store, LIMITS, self.clock)

    async def declare(self, session: Session = ALICE, size: int = 10, **changes: Any) -> str:
        """Declare an upload and return its id."""
        declaration = UploadDeclaration(session.system, session.uid, size, "ab" * 32)
        return (await self.uploads.declare(session, replace(declaration, **changes))).id

    async def send(self, upload_id: str, data: bytes, offset: int = 0) -> int:
        """Send a chunk and return the new offset."""
        chunk = await self.uploads.receive(ALICE, upload_id, offset, len(data))
        await chunk.write(data)
        return (await chunk.finish()).offset
