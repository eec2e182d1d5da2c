"""Whether a look-up costs more where there are more images: `python -m tests.bench.store_growth`.

Look-ups and listings of both stores with a few images and with many, and beside the many a system
of its own that has as many as the few. What counts of a look-up is the median of rounds that are
interleaved, and of a listing, page by page as the gateway reads it, its peak of memory. Only ratios
hold on another machine, and those of MongoDB only with a real server (`SHIFTERGW_TEST_MONGODB`):
that of the tests is slow. For each page it sorts all that comes behind it; `--pages 20` ends there.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sqlite3
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bson.objectid import ObjectId
from rich.console import Console
from rich.table import Table

from shiftergw.app.reactor import run_main
from shiftergw.ports import ImageStore
from shiftergw.service.gateway import PAGE
from tests import mongod
from tests.store.places import mongo_running, running

BAR = 1.5
SMALL = "beta"
"""The system that has a few images, however many others there are."""

LARGE = "alpha"
MB = 1_000_000
PATIENCE = 120.0
"""Seconds that a command may take: the server of the tests sorts before it answers."""


@dataclass(frozen=True)
class Measured:
    """Of one store: seconds of a look-up, of the few's listing, of the many's, and its bytes."""

    lookup: float
    listing: float
    whole: float
    peak: int


def documents(count: int, few: int) -> Iterator[dict[str, Any]]:
    """Yield `count` images of the large system and a few of the small one."""
    for system, number in ((LARGE, count), (SMALL, few)):
        for n in range(number):
            name = f"group/app{n}:1"
            yield {
                "system": system, "itype": "docker", "tag": [name], "pulltag": name,
                "status": "READY", "status_message": "READY", "id": f"{n:064x}",
                "userACL": [], "groupACL": [], "private": False, "last_pull": 1e9 + n,
                "expiration": 2e9 + n, "ENTRY": ["/bin/sh", "-c"], "WORKDIR": "/",
                "ENV": [f"VARIABLE_{i}=value {i} of image {n}" for i in range(10)],
                "labels": {"org.example.number": str(n)}, "attempt": 1, "size": 10_000_000 + n,
            }  # fmt: skip


async def fill_sqlite(path: Path, count: int, few: int) -> None:
    """Make a file with so many images."""
    async with running(path):
        pass
    with closing(sqlite3.connect(path)) as db, db:
        rows = ((str(ObjectId()), json.dumps(one)) for one in documents(count, few))
        db.executemany("INSERT INTO images (key, document) VALUES (?, ?)", rows)


async def fill_mongo(uri: str, name: str, db: Any, count: int, few: int) -> None:
    """Put so many images into a database that has its indexes."""
    async with mongo_running(uri, name) as store:
        await store._require_open().indexes.create()
    batch: list[dict[str, Any]] = []
    for one in documents(count, few):
        batch.append(one)
        if len(batch) == 1000:
            db["images"].insert_many(batch)
            batch = []
    if batch:
        db["images"].insert_many(batch)


async def seconds(work: Callable[[], Awaitable[object]]) -> float:
    """Return how long something takes."""
    begin = time.perf_counter()
    await work()
    return time.perf_counter() - begin


async def lookups(store: ImageStore, names: Sequence[str]) -> None:
    """Look images of the large system up, one after the other."""
    for name in names:
        record = await store.find(LARGE, "docker", [name])
        assert record is not None


async def listing(store: ImageStore, system: str, pages: int) -> int:
    """List a system as the gateway does, so many pages of it; return how many images those have."""
    count = 0
    page = await store.list(system, limit=PAGE)
    while page:
        count += len(page)
        pages -= 1
        page = await store.list(system, page[-1].key, PAGE) if pages else []
    return count


async def memory(store: ImageStore, pages: int) -> int:
    """Return the bytes that a listing of the large system takes at its peak."""
    gc.collect()
    tracemalloc.start()
    try:
        await listing(store, LARGE, pages)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def measure(
    stores: dict[int, ImageStore], number: int, rounds: int, pages: int
) -> dict[int, Measured]:
    """Return what each of the stores takes; the keys say how many images they have."""
    looked: dict[int, list[float]] = {count: [] for count in stores}
    listed: dict[int, list[float]] = {count: [] for count in stores}
    for _ in range(rounds):
        for count, store in stores.items():
            names = [f"group/app{random.randrange(count)}:1" for _ in range(number)]
            looked[count].append(await seconds(lambda: lookups(store, names)) / number)  # noqa: B023
            listed[count].append(await seconds(lambda: listing(store, SMALL, pages)))  # noqa: B023
    found = {}
    for count, store in stores.items():
        whole = await seconds(lambda: listing(store, LARGE, pages))  # noqa: B023
        found[count] = Measured(
            statistics.median(looked[count]),
            statistics.median(listed[count]),
            whole,
            await memory(store, pages),
        )
    return found


async def compare(
    kind: str, counts: Sequence[int], number: int, rounds: int, pages: int
) -> dict[int, Measured]:
    """Fill a store of each size and measure them."""
    few = counts[0]
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stores: dict[int, ImageStore] = {}
        uri = "" if kind == "SQLite" else stack.enter_context(mongod.any_server(root / "mongod"))
        for count in counts:
            if kind == "SQLite":
                path = root / f"{count}.sqlite"
                await fill_sqlite(path, count, few)
                stores[count] = await stack.enter_async_context(running(path))
            else:
                name, db = stack.enter_context(mongod.database(uri))
                await fill_mongo(uri, name, db, count, few)
                stores[count] = await stack.enter_async_context(mongo_running(uri, name, PATIENCE))
        return await measure(stores, number, rounds, pages)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs=2, default=[10, 100_000], metavar="N")
    parser.add_argument("--lookups", type=int, default=300, metavar="N", help="of a round")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument(
        "--pages", type=int, default=10**6, metavar="N", help="of a listing, at most"
    )
    parser.add_argument("--stores", nargs="+", default=["SQLite", "MongoDB"])
    asked = parser.parse_args()
    table = Table("store", "images", "look-up µs", "ratio", "bar", f"{asked.images[0]} listed ms",
                  "all listed s", "its peak MB")  # fmt: skip

    async def measured(_: Any) -> int:
        for kind in asked.stores:
            found = await compare(kind, asked.images, asked.lookups, asked.rounds, asked.pages)
            first = found[asked.images[0]].lookup
            for count, one in found.items():
                table.add_row(
                    kind, f"{count:,}", f"{one.lookup * 1e6:.0f}", f"{one.lookup / first:.2f}",
                    f"< {BAR}", f"{one.listing * 1e3:.1f}", f"{one.whole:.2f}",
                    f"{one.peak / MB:.1f}",
                )  # fmt: skip
        return 0

    run_main(measured)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
