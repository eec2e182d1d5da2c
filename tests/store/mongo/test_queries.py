"""No question that the MongoDB store asks walks through a whole collection."""

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
from shiftergw.store.mongo.queries import INDEXES, LOOKUPS
from shiftergw.store.mongo.records import IMAGES
from tests import mongod
from tests.store.places import mongo_running
from tests.store.pulls import NOW, request

PLACE = ("alpha", "docker", "x:1")
QUESTIONS: dict[str, Callable[[Any], Query | dict[str, Any] | list[dict[str, Any]]]] = {
    "in_flight": lambda q: q.in_flight("alpha/docker/x:1"),
    "with_tag": lambda q: q.with_tag(*PLACE),
    "of_image": lambda q: q.of_image(["alpha", "beta"], "a" * 64),
    "of_files": lambda q: q.of_files(["alpha", "beta"], "a" * 64),
    "losing": lambda q: q.losing(*PLACE),
    "failures_of": lambda q: q.failures_of(*PLACE),
    "pulls_of": lambda q: q.pulls_of(*PLACE),
    "ready_on": lambda q: q.ready_on("READY", "alpha", "", 5),
    "flying_on": lambda q: q.flying_on("alpha"),
    "failed_on": lambda q: q.failed_on("alpha"),
    "flights": lambda q: q.flights(),
    "served": lambda q: q.served([1, 2]),
    "with_keys": lambda q: q.with_keys([ObjectId("1" * 24), ObjectId("2" * 24)]),
    "waiting": lambda q: [q.waiting(), q.waiting(7)],
    "postponed": lambda q: q.postponed("ghcr.io"),
    "all_postponed": lambda q: q.all_postponed(),
    "breaker": lambda q: q.breaker("x"),
    "unfinished": lambda q: q.unfinished(5.0),
    "expired": lambda q: q.expired("READY", 5.0),
    "undated": lambda q: q.undated("READY", 5.0),
    "by_others": lambda q: q.by_others(),
    "fact": lambda q: q.fact("expiry"),
    "ended_before": lambda q: q.ended_before(5.0),
    "own_ended_before": lambda q: q.own_ended_before(5.0),
    "blocks_of": lambda q: q.blocks_of("/images", ["a" * 64]),
    "rows_of": lambda q: q.rows_of("alpha", 5),
    "used": lambda q: q.used(b"1" * 32),
}
"""What each function of `queries` asks; filters without a collection are for images."""

ASKED: list[tuple[str, str, Mapping[str, Any]]] = []
"""Name, collection and filter of each."""
for _name, _ask in QUESTIONS.items():
    _asked = _ask(queries)
    for _one in _asked if isinstance(_asked, list) else [_asked]:
        if isinstance(_one, Query):
            ASKED.append((_name, _one.collection, _one.filter))
        else:
            ASKED.append((_name, IMAGES, _one))
ASKED.append(("old rows", LOOKUPS, {"time": {"$lt": 5.0}}))

TWO_SETS = {"of_files", "own_ended_before"}
"""The server that comes with the tests takes one set or range of values with an index, not two."""


def test_no_question_is_left_out() -> None:
    """Whatever else is asked one day is asked here too."""
    functions = inspect.getmembers(queries, inspect.isfunction)
    public = {name for name, one in functions if one.__module__ == queries.__name__}
    assert {name for name in public if not name.startswith("_")} - {"place"} == set(QUESTIONS)


@pytest.mark.parametrize(("name", "collection", "wanted"), ASKED)
def test_every_question_has_an_index(name: str, collection: str, wanted: Mapping[str, Any]) -> None:
    """There is an index that begins with all the members of the filter.

    One that leaves out documents without its member is for filters that want it to be there.
    """
    if set(wanted) == {"_id"}:
        return
    covered = {index: _covered(form, wanted) for index, form in INDEXES[collection].items()}
    assert max(covered.values()) == len(wanted), covered


def _covered(form: Mapping[str, Any], wanted: Mapping[str, Any]) -> int:
    """Return how many members of a filter an index narrows down, in the order of the index."""
    count = 0
    for member in form["key"]:
        value = wanted.get(member)
        if member not in wanted or (form.get("sparse") and value is None):
            break
        count += 1
    return count


@pytest.fixture(scope="module")
def database(mongodb: str) -> Iterator[Any]:
    """Return a database with the store's indexes, and some documents."""
    with mongod.database(mongodb) as (name, db):

        async def start() -> None:
            async with mongo_running(mongodb, name) as store:
                await store.claim(request(), NOW)  # not before the indexes are made

        pytest_twisted.blockon(Deferred.fromCoroutine(start()))
        db[IMAGES].insert_many(
            {"system": "alpha", "itype": "docker", "tag": [f"x:{n}"], "pulltag": f"x:{n}",
             "status": "READY", "id": f"{n:064x}", "last_pull": float(n), "expiration": float(n)}
            for n in range(300)
        )  # fmt: skip
        yield db


@pytest.mark.parametrize(
    ("name", "collection", "wanted"),
    [one for one in ASKED if mongod.ANOTHER is not None or one[0] not in TWO_SETS],
)
def test_the_server_uses_it(
    database: Any, name: str, collection: str, wanted: Mapping[str, Any]
) -> None:
    """The server says that it would look at an index, and at what that leads to."""
    asked = {"explain": {"find": collection, "filter": wanted}, "verbosity": "queryPlanner"}
    plan = database.command(asked)["queryPlanner"]["winningPlan"]
    stages = list(_stages(plan))
    assert "COLLSCAN" not in stages, name
    assert {"IXSCAN", "IDHACK", "EOF"} & {*stages}, plan


def _stages(plan: Any) -> Iterator[str]:
    """Yield the stages of a plan, also those within others."""
    if isinstance(plan, dict):
        if "stage" in plan:
            yield plan["stage"]
        for inner in plan.values():
            yield from _stages(inner)
    elif isinstance(plan, list):
        for inner in plan:
            yield from _stages(inner)
