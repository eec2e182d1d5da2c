"""Measure whether look-ups cost more with more images: `python -m tests.bench.store_growth`.

Look-ups and listings of both stores are measured with a few images and with many. The store with
many images also has a second system with as many images as the small store. The table shows the
median time of look-ups in interleaved rounds, and the peak memory of a listing, page by page as the
gateway reads it. Only ratios are valid on another machine, and those of MongoDB only with a real
server (`SHIFTERGW_TEST_MONGODB`): the server of the tests is slow, since it sorts all following
records for each page. `--pages 20` limits the pages.
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
"""The system that has a few images in every store."""

LARGE = "alpha"
MB = 1_000_000
PATIENCE = 120.0
"""Seconds that a command may take: the server of the tests sorts before it answers."""


@dataclass(frozen=True)
class StoreCosts:
    """Costs of one store: seconds of a look-up, seconds to list each system, and peak bytes.

    `listing` is that of the small system, `whole` and `peak` are those of the large one.
    """

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
    """Make a database file with images."""
    async with running(path):
        pass
    with closing(sqlite3.connect(path)) as db, db:
        rows = ((str(ObjectId()), json.dumps(document)) for document in documents(count, few))
        db.executemany("INSERT INTO images (key, document) VALUES (?, ?)", rows)


async def fill_mongo(uri: str, name: str, db: Any, count: int, few: int) -> None:
    """Store images in a database with its indexes."""
    async with mongo_running(uri, name) as store:
        await store._require_open().indexes.create()
    batch: list[dict[str, Any]] = []
    for document in documents(count, few):
        batch.append(document)
        if len(batch) == 1000:
            db["images"].insert_many(batch)
            batch = []
    if batch:
        db["images"].insert_many(batch)


async def seconds(work: Callable[[], Awaitable[object]]) -> float:
    """Return the seconds that `work` takes."""
    begin = time.perf_counter()
    await work()
    return time.perf_counter() - begin


async def lookups(store: ImageStore, names: Sequence[str]) -> None:
    """Look up images of the large system, one after the other."""
    for name in names:
        record = await store.find(LARGE, "docker", [name])
        assert record is not None


async def listing(store: ImageStore, system: str, pages: int) -> int:
    """List at most `pages` pages of a system as the gateway does; return the number of images."""
    count = 0
    page = await store.list(system, limit=PAGE)
    while page:
        count += len(page)
        pages -= 1
        page = await store.list(system, page[-1].key, PAGE) if pages else []
    return count


async def memory(store: ImageStore, pages: int) -> int:
    """Return the peak memory in bytes of a listing of the large system."""
    gc.collect()
    tracemalloc.start()
    try:
        await listing(store, LARGE, pages)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def measure(
    stores: dict[int, ImageStore], number: int, rounds: int, pages: int
) -> dict[int, StoreCosts]:
    """Return the costs of stores, by their numbers of images."""
    lookup_times: dict[int, list[float]] = {count: [] for count in stores}
    listing_times: dict[int, list[float]] = {count: [] for count in stores}
    for _ in range(rounds):
        for count, store in stores.items():
            names = [f"group/app{random.randrange(count)}:1" for _ in range(number)]
            lookup_times[count].append(await seconds(lambda: lookups(store, names)) / number)  # noqa: B023
            listing_times[count].append(await seconds(lambda: listing(store, SMALL, pages)))  # noqa: B023
    costs = {}
    for count, store in stores.items():
        whole = await seconds(lambda: listing(store, LARGE, pages))  # noqa: B023
        costs[count] = StoreCosts(
            statistics.median(lookup_times[count]),
            statistics.median(listing_times[count]),
            whole,
            await memory(store, pages),
        )
    return costs


async def compare(
    kind: str, counts: Sequence[int], number: int, rounds: int, pages: int
) -> dict[int, StoreCosts]:
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
    options = parser.parse_args()
    table = Table("store", "images", "look-up µs", "ratio", "bar", f"{options.images[0]} listed ms",
                  "all listed s", "its peak MB")  # fmt: skip

    async def run(_: Any) -> int:
        for kind in options.stores:
            costs = await compare(
                kind, options.images, options.lookups, options.rounds, options.pages
            )
            first = costs[options.images[0]].lookup
            for count, cost in costs.items():
                table.add_row(
                    kind, f"{count:,}", f"{cost.lookup * 1e6:.0f}", f"{cost.lookup / first:.2f}",
                    f"< {BAR}", f"{cost.listing * 1e3:.1f}", f"{cost.whole:.2f}",
                    f"{cost.peak / MB:.1f}",
                )  # fmt: skip
        return 0

    run_main(run)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
