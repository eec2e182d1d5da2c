"""Two workers may begin a period at the same time."""

from __future__ import annotations

from typing import Any, cast

import pytest_twisted
from pymongo.errors import DuplicateKeyError

from shiftergw.model.throughput import Throughput
from shiftergw.mongo.database import Database
from shiftergw.store.mongo import throughput


class FakeDatabase:
    """Notes updates; the first one loses against that of another worker."""

    def __init__(self) -> None:
        """Start without updates."""
        self.updates: list[tuple[Any, bool]] = []

    async def update(self, *arguments: Any, upsert: bool = False, durable: bool = True) -> int:
        """Note an update, or refuse it."""
        self.updates.append((arguments[2], upsert))
        if len(self.updates) == 1:
            raise DuplicateKeyError("E11000")
        return 1

    async def delete(self, *_: Any, **__: Any) -> None:
        """Remove nothing."""


@pytest_twisted.ensureDeferred
async def test_the_second_one_adds_to_the_period_of_the_first() -> None:
    """The counts of neither are lost."""
    db = FakeDatabase()
    await throughput.add(cast("Database", db), Throughput(0.0, pulls=1))
    (first, _), (second, is_upsert) = db.updates
    assert first == second
    assert not is_upsert
