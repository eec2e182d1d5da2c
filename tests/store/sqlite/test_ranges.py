"""The search for files with the same data, among very many."""

from __future__ import annotations

from pathlib import Path

import pytest_twisted

from shiftergw.store.ranges import MOST_FILES
from shiftergw.store.sqlite import queries
from tests.store.contract_ranges import BASE_DATA, SMALL, bases, deliver, packed_data
from tests.store.places import running


@pytest_twisted.ensureDeferred
async def test_of_very_many_files_those_with_most_data_are_compared(tmp_path: Path) -> None:
    """The others are left out, so that a search ends in time."""
    rows = [(BASE_DATA, f"{number:064x}", 2 * SMALL) for number in range(1000, 999 + MOST_FILES)]
    async with running(tmp_path / "images.sqlite") as store:
        await deliver(store, 0, packed_data(base=SMALL))
        await deliver(store, 1, packed_data(base=3 * SMALL))
        assert await bases(store, base=9 * SMALL) == [1, 0]
        await store._write_durably(lambda db: db.executemany(queries.ADD_DATA, rows))
        assert await bases(store, base=9 * SMALL) == [1]
