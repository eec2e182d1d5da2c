"""Every query of the MongoDB store has an index, so that none reads a whole collection."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import pytest_twisted
from bson.objectid import ObjectId
from twisted.internet.defer import Deferred

from shiftergw.mongo.database import Query
from shiftergw.store.mongo import queries
from shiftergw.store.mongo.queries import INDEXES, LOOKUPS, RANGES
from shiftergw.store.mongo.records import IMAGES
from tests import mongod
from tests.store.places import mongo_running
from tests.store.pulls import NOW, request

TAG = ("alpha", "docker", "x:1")
QUERIES: dict[str, Callable[[Any], Query | dict[str, Any] | list[dict[str, Any]]]] = {
    "in_flight": lambda q: q.in_flight("alpha/docker/x:1"),
    "with_tag": lambda q: q.with_tag(*TAG),
    "of_image": lambda q: q.of_image(["alpha", "beta"], "a" * 64),
    "with_prefix": lambda q: q.with_prefix(["alpha", "beta"], "abcd", 9),
    "with_files": lambda q: q.with_files(["alpha", "beta"], "a" * 64),
    "expiring_with_tag": lambda q: q.expiring_with_tag(*TAG),
    "failures_of": lambda q: q.failures_of(*TAG),
    "pulls_of": lambda q: q.pulls_of(*TAG),
    "ready_on": lambda q: q.ready_on("READY", "alpha", "", 5),
    "newest_reports": lambda q: q.newest_reports("alpha", 20),
    "in_flight_on": lambda q: q.in_flight_on("alpha"),
    "failures_on": lambda q: q.failures_on("alpha"),
    "all_in_flight": lambda q: q.all_in_flight(),
    "last_turns": lambda q: q.last_turns([1, 2]),
    "with_keys": lambda q: q.with_keys([ObjectId("1" * 24), ObjectId("2" * 24)]),
    "waiting": lambda q: [q.waiting(), q.waiting(7)],
    "postponed_for": lambda q: q.postponed_for("ghcr.io"),
    "all_postponed": lambda q: q.all_postponed(),
    "breaker": lambda q: q.breaker("x"),
    "open_breakers": lambda q: q.open_breakers(5.0, 9),
    "interrupted_finishes": lambda q: q.interrupted_finishes(5.0),
    "past_expiration": lambda q: q.past_expiration("READY", 5.0),
    "pins_of": lambda q: q.pins_of("alpha", 7),
    "without_future_expiration": lambda q: q.without_future_expiration("READY", 5.0),
    "foreign_record": lambda q: q.foreign_record(),
    "state_document": lambda q: q.state_document("expiry"),
    "ended_before": lambda q: q.ended_before(5.0),
    "own_ended_before": lambda q: q.own_ended_before(5.0),
    "blocks_of": lambda q: q.blocks_of("/images", ["a" * 64]),
    "blocks_with_prefix": lambda q: q.blocks_with_prefix("abcd"),
    "last_lookups": lambda q: q.last_lookups("alpha", 5),
    "use_of": lambda q: q.use_of(b"1" * 32),
    "files_with_data": lambda q: q.files_with_data(["b" * 64, "c" * 64]),
    "ready_with_file": lambda q: q.ready_with_file(["alpha", "beta"], ["a" * 64, "b" * 64]),
    "ranges_of": lambda q: q.ranges_of("a" * 64),
    "throughput_since": lambda q: q.throughput_since(5.0),
    "ranges_before": lambda q: q.ranges_before(5.0),
    "images_of_files": lambda q: q.images_of_files(["a" * 64, "b" * 64]),
}
"""A call of each function of `queries`. Filters without a collection are for images."""

FILTERS: list[tuple[str, str, Mapping[str, Any]]] = []
"""The name of the function, the collection and the filter of each query."""
for _name, _call in QUERIES.items():
    _result = _call(queries)
    for _query in _result if isinstance(_result, list) else [_result]:
        if isinstance(_query, Query):
            FILTERS.append((_name, _query.collection, _query.filter))
        else:
            FILTERS.append((_name, IMAGES, _query))
FILTERS.append(("old rows", LOOKUPS, {"time": {"$lt": 5.0}}))

TWO_SETS = {
    "with_files",
    "with_prefix",
    "blocks_with_prefix",
    "own_ended_before",
    "ready_with_file",
    "images_of_files",
    "throughput_since",
}
"""Queries with two sets or ranges of values, or with a range of keys.

The tests' own server uses an index for one set or range only, and none for a range of keys.
"""


def test_every_function_of_queries_is_tested() -> None:
    """`QUERIES` has a call of each public function, also of those that are added later."""
    functions = inspect.getmembers(queries, inspect.isfunction)
    public = {name for name, function in functions if function.__module__ == queries.__name__}
    assert {name for name in public if not name.startswith("_")} - {"file_key"} == set(QUERIES)


@pytest.mark.parametrize(("name", "collection", "where"), FILTERS)
def test_every_query_has_an_index(name: str, collection: str, where: Mapping[str, Any]) -> None:
    """An index starts with all the members of the filter.

    A sparse index serves only filters for documents that have its member.
    """
    if set(where) == {"_id"}:
        return
    counts = {
        index: _count_members(options, where) for index, options in INDEXES[collection].items()
    }
    assert max(counts.values()) == len(where), counts


def test_old_ranges_are_listed_by_an_index_alone() -> None:
    """Their documents, of many kilobytes each, are not read."""
    query = queries.ranges_before(5.0)
    keys = [list(options["key"]) for options in INDEXES[RANGES].values()]
    assert [*query.filter, *query.members] in keys


def _count_members(index: Mapping[str, Any], where: Mapping[str, Any]) -> int:
    """Return how many members at the start of an index are in the filter."""
    count = 0
    for member in index["key"]:
        value = where.get(member)
        if member not in where or (index.get("sparse") and value is None):
            break
        count += 1
    return count


@pytest.fixture(scope="module")
def database(mongodb: str) -> Iterator[Any]:
    """Return a database with the store's indexes, and some documents."""
    with mongod.database(mongodb) as (name, db):

        async def start() -> None:
            async with mongo_running(mongodb, name) as store:
                await store.claim(request(), NOW)  # a claim waits for the indexes

        pytest_twisted.blockon(Deferred.fromCoroutine(start()))
        db[IMAGES].insert_many(
            {"system": "alpha", "itype": "docker", "tag": [f"x:{n}"], "pulltag": f"x:{n}",
             "status": "READY", "id": f"{n:064x}", "last_pull": float(n), "expiration": float(n)}
            for n in range(300)
        )  # fmt: skip
        yield db


@pytest.mark.parametrize(
    ("name", "collection", "where"),
    [entry for entry in FILTERS if mongod.EXTERNAL_SERVER is not None or entry[0] not in TWO_SETS],
)
def test_the_server_uses_an_index(
    database: Any, name: str, collection: str, where: Mapping[str, Any]
) -> None:
    """The server's plan for each query uses an index and never scans the collection."""
    command = {"explain": {"find": collection, "filter": where}, "verbosity": "queryPlanner"}
    plan = database.command(command)["queryPlanner"]["winningPlan"]
    stages = list(_stages(plan))
    assert "COLLSCAN" not in stages, name
    assert {"IXSCAN", "IDHACK", "EOF"} & {*stages}, plan


def _stages(plan: Any) -> Iterator[str]:
    """Yield the stages of a plan and the stages within them."""
    if isinstance(plan, dict):
        if "stage" in plan:
            yield plan["stage"]
        for part in plan.values():
            yield from _stages(part)
    elif isinstance(plan, list):
        for part in plan:
            yield from _stages(part)
