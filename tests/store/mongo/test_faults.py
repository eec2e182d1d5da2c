"""A MongoDB server that is away, dies or hangs: each call ends in time, and later calls work."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.logger import capturedLogs, formatEvent

from shiftergw.errors import Unavailable
from shiftergw.model.packed_data import PackedData
from shiftergw.model.postponement import PostponeLimits
from shiftergw.model.records import Expired, Progress
from shiftergw.model.requests import QueueLimits
from shiftergw.model.throughput import Throughput
from shiftergw.mongo.connector import HOST_SECONDS
from shiftergw.plumbing.timing import pause
from shiftergw.ports import ImageStore
from shiftergw.states import State
from shiftergw.store.mongo.store import MongoStore
from tests.mongod import Mongod, any_server, database
from tests.parts import free_port
from tests.patience import patient, stretch
from tests.store.places import mongo_running
from tests.store.pulls import ID, LIMIT, NOW, all_of, begin_pull, complete_pull, failure, request
from tests.store.wire import Wire

KEY = "1" * 24
CALLS: dict[str, Callable[[ImageStore], Awaitable[object]]] = {
    "ready": lambda store: store.ready(),
    "claim": lambda store: store.claim(request("new:1"), NOW, QueueLimits(9, 9)),
    "begin": lambda store: store.begin(KEY, "n", NOW, LIMIT),
    "requeue": lambda store: store.requeue(KEY, 1, "", died=True),
    "postpone": lambda store: store.postpone(KEY, 1, NOW + 9, "x", NOW, PostponeLimits(9, 9)),
    "advance": lambda store: store.advance(KEY, 1, State.TRANSFER, "", NOW),
    "heartbeat": lambda store: store.heartbeat(KEY, 1, Progress(), NOW),
    "finish": lambda store: store.finish(KEY, 1, failure(), NOW),
    "abandon": lambda store: store.abandon(KEY),
    "get": lambda store: store.get(KEY),
    "find": lambda store: store.find("alpha", "docker", ["x:1"]),
    "find_id": lambda store: store.find_id(["alpha"], ID, expiring=True),
    "find_prefix": lambda store: store.find_prefix(["alpha"], ID[:4], 9),
    "find_work": lambda store: store.find_work("alpha", "docker", "x:1"),
    "list": lambda store: store.list("alpha"),
    "reports": lambda store: store.reports("alpha", 9),
    "queue": lambda store: store.queue("alpha"),
    "waiting": lambda store: store.waiting(NOW + 99, 9, 1),
    "schedule": lambda store: store.schedule(NOW),
    "count_work": lambda store: store.count_work(),
    "list_breakers": lambda store: store.list_breakers(NOW),
    "stale": lambda store: store.stale(NOW, LIMIT),
    "check_breaker": lambda store: store.check_breaker("x", NOW, 9),
    "trip_breaker": lambda store: store.trip_breaker("x", NOW + 9, "y", NOW),
    "close_breaker": lambda store: store.close_breaker("x", NOW),
    "end_probe": lambda store: store.end_probe("x", NOW + 9, NOW),
    "renew": lambda store: store.renew(KEY, NOW),
    "list_expired": lambda store: store.list_expired(NOW),
    "untag": lambda store: store.untag(KEY, "x:1"),
    "expire": lambda store: store.expire(KEY),
    "note_use": lambda store: store.note_use(KEY, 7),
    "pin": lambda store: store.pin(KEY, 7, 9),
    "unpin": lambda store: store.unpin(KEY),
    "set_access": lambda store: store.set_access(["alpha"], ID, True, (), ()),
    "block": lambda store: store.block("/images", ID, 0, NOW),
    "allow": lambda store: store.allow("/images", ID),
    "find_blocks": lambda store: store.find_blocks("/images", ID[:4], 9),
    "is_blocked": lambda store: store.is_blocked("/images", [ID]),
    "expires": lambda store: store.expires(None, NOW, None),
    "forget_ended": lambda store: store.forget_ended(NOW),
    "save_ranges": lambda store: store.save_ranges(ID, PackedData(), NOW),
    "find_bases": lambda store: store.find_bases(["alpha"], {ID: 1}, "", 9),
    "forget_ranges": lambda store: store.forget_ranges(NOW),
    "lease": lambda store: store.lease("/images", ID, "k/1", NOW, 9),
    "release": lambda store: store.release("/images", ID, "k/1"),
    "lookups": lambda store: store.lookups("alpha", 9),
    "add_throughput": lambda store: store.add_throughput(Throughput(NOW, 1)),
    "list_throughput": lambda store: store.list_throughput(NOW),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Mongod]:
    """Return a running server for one test."""
    with Mongod(tmp_path / "mongod", "--standalone", "--sync-on-commit") as running:
        yield running


async def error_of(call: Awaitable[object]) -> tuple[float, Unavailable]:
    """Return the error of a call, and its seconds."""
    begin = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await call
    return time.monotonic() - begin, caught.value


def test_every_call_of_the_port_is_tested() -> None:
    """`CALLS` has every method of the port that waits for the server; two others do not."""
    ports = [port for port in ImageStore.__mro__ if port.__module__.startswith("shiftergw.")]
    port_names = {name for port in ports for name in vars(port) if not name.startswith("_")}
    assert port_names == {*CALLS, "record_lookup", "used_credentials"}


@pytest_twisted.ensureDeferred
async def test_the_store_starts_without_the_server(tmp_path: Path) -> None:
    """Calls fail at once, and work as soon as the server runs."""
    server = Mongod(tmp_path / "mongod", "--standalone")
    with capturedLogs() as log:
        async with mongo_running(server.uri, "images") as store:
            for name, call in CALLS.items():
                seconds, error = await error_of(call(store))
                assert seconds < patient(1), name
                assert f"127.0.0.1:{server.port}" in error.detail
                assert "efused" in error.detail
                assert str(server.port) not in str(error)
            with server:
                record = await complete_pull(store, request("x:1"))
                assert await store.find("alpha", "docker", ["x:1"]) == record
    texts = [formatEvent(event) for event in log]
    assert sum("the database is away" in text for text in texts) == 1
    assert sum("is there again" in text for text in texts) == 1


@pytest_twisted.ensureDeferred
async def test_answered_calls_survive_a_crash_of_the_server(server: Mongod) -> None:
    """Calls during the outage fail, and none hangs."""
    async with mongo_running(server.uri, "images") as store:
        keys = [(await begin_pull(store, request(f"x:{n}"), NOW)).key for n in range(20)]
        beats: list[bool] = []
        stopping: list[bool] = []

        async def beat(key: str) -> None:
            while not stopping:
                try:
                    await store.heartbeat(key, 1, Progress(), NOW)
                    beats.append(True)
                except Unavailable:
                    beats.append(False)
                await pause(0.01, reactor)

        async def kill() -> None:
            await wait_for(lambda: len(beats) > 100)
            server.kill()
            await wait_for(lambda: not any(beats[-40:]))
            for name, call in CALLS.items():
                assert (await error_of(call(store)))[0] < patient(2), name
            server.start()
            await wait_for(lambda: all(beats[-40:]))
            stopping.append(True)

        await all_of([kill(), *map(beat, keys)])
        assert {record.key for record in await store.queue("alpha")} == set(keys)
        assert (await store.claim(request("y:1"), NOW))[1]


async def wait_for(condition: Callable[[], bool]) -> None:
    """Return once a condition holds."""
    deadline = time.monotonic() + patient(30)
    while not condition():
        assert time.monotonic() < deadline
        await pause(0.02, reactor)


@pytest_twisted.ensureDeferred
async def test_a_hanging_server_costs_each_call_its_limit(server: Mongod) -> None:
    """The first calls have their limit; later calls fail within a second."""
    async with mongo_running(server.uri, "images", seconds=stretch(1)) as store:
        record = await begin_pull(store, request("x:1"))
        server.freeze()
        at_once = await all_of(error_of(call(store)) for call in CALLS.values())
        assert max(seconds for seconds, _ in at_once) < patient(4)
        errors = await all_of(error_of(call(store)) for call in CALLS.values())
        assert max(seconds for seconds, _ in errors) < patient(2)
        server.thaw()
        await wait_until_ready(store)
        assert await store.get(record.key) == record
        await store.heartbeat(record.key, 1, Progress("x", 1, 2), NOW)
        assert (await store.claim(request("y:1"), NOW))[1]


async def wait_until_ready(store: ImageStore) -> None:
    """Return once the store answers."""
    deadline = time.monotonic() + patient(30)
    while True:
        try:
            await store.get(KEY)
        except Unavailable:
            assert time.monotonic() < deadline
        else:
            return


@pytest_twisted.ensureDeferred
async def test_a_server_may_hang_at_the_start(server: Mongod) -> None:
    """Connections that only the kernel accepts do not count."""
    server.freeze()
    async with mongo_running(server.uri, "images", seconds=stretch(1)) as store:
        seconds, error = await error_of(store.get(KEY))
        assert seconds < patient(1.5)
        assert "no answer" in error.detail or "no connection" in error.detail
        server.thaw()
        await wait_until_ready(store)
        assert (await store.claim(request("y:1"), NOW))[1]


@pytest_twisted.ensureDeferred
async def test_the_store_stops_while_the_server_hangs(server: Mongod) -> None:
    """The store stops while the server stays suspended."""
    store = MongoStore(reactor, server.uri, "images", seconds=stretch(1))
    store.startService()
    await wait_until_ready(store)  # a busy machine may need longer than the limit to connect
    await store.record_lookup({"system": "alpha", "time": NOW})
    server.freeze()
    begin = time.monotonic()
    await store.stopService()
    assert time.monotonic() - begin < patient(3)
    assert (await error_of(store.get(KEY)))[0] < patient(1)


@pytest_twisted.ensureDeferred
async def test_a_closed_store_says_so(server: Mongod) -> None:
    """Each call before the start and after the stop raises `Unavailable`."""
    store = MongoStore(reactor, server.uri, "images")
    for _ in range(2):
        for name, call in CALLS.items():
            assert (await error_of(call(store)))[0] < patient(1), name
        with pytest.raises(Unavailable):
            await store.record_lookup({})
        store.startService()
        await store.stopService()


@pytest_twisted.ensureDeferred
async def test_lookup_rows_lost_in_an_outage_are_counted(server: Mongod) -> None:
    """Lost rows are counted, and later rows are written again."""
    async with mongo_running(server.uri, "images") as store:
        await store.record_lookup({"system": "alpha", "n": 1, "time": NOW})
        assert [row["n"] for row in await store.lookups("alpha", 9)] == [1]
        server.kill()
        with capturedLogs() as log:
            await store.record_lookup({"system": "alpha", "n": 2, "time": NOW})
            with pytest.raises(Unavailable):
                await store.lookups("alpha", 9)
        assert [event["n"] for event in log if "lost" in event.get("log_format", "")] == [1]
        server.start()
        await store.record_lookup({"system": "alpha", "n": 3, "time": NOW})
        assert [row["n"] for row in await store.lookups("alpha", 9)] == [1, 3]


@pytest_twisted.ensureDeferred
async def test_hosts_are_tried_until_one_is_the_primary(server: Mongod) -> None:
    """Hosts that are not the primary are skipped."""
    place = server.uri.removeprefix("mongodb://")
    uri = f"mongodb://127.0.0.1:{free_port()},nowhere.invalid,{place}"
    async with mongo_running(uri, "images") as store:
        assert (await store.claim(request("x:1"), NOW))[1]


@pytest_twisted.ensureDeferred
async def test_a_host_that_hangs_is_passed_over(tmp_path: Path) -> None:
    """The next host is tried after a time limit."""
    with (
        Mongod(tmp_path / "hanging") as hanging,
        any_server(tmp_path / "mongod") as uri,
        database(uri) as (name, _),
    ):
        hanging.freeze()
        place = uri.removeprefix("mongodb://")
        login, at, hosts = place.rpartition("@")
        all_hosts = f"mongodb://{login}{at}127.0.0.1:{hanging.port},{hosts}"
        async with mongo_running(all_hosts, name, seconds=patient(10)) as store:
            begin = time.monotonic()
            assert (await store.claim(request("x:1"), NOW))[1]
            assert time.monotonic() - begin > HOST_SECONDS / 2, "the first host was not tried"


@pytest_twisted.ensureDeferred
async def test_a_primary_may_step_down_and_return(tmp_path: Path) -> None:
    """A primary that steps down is disconnected, and used again after its return."""
    with Mongod(tmp_path / "mongod", query="?replicaSet=secantus") as server:
        async with mongo_running(server.uri, "images") as store:
            await store.claim(request("x:1"), NOW)
            with database(server.uri.partition("?")[0] + "?directConnection=true") as (_, db):
                db.client.admin.command("replSetStepDown", 2, force=True)
                _, error = await error_of(store.claim(request("y:1"), NOW))
                assert "primary" in error.detail
                await wait_until_ready(store)
                assert (await store.claim(request("y:1"), NOW))[1]


@pytest_twisted.ensureDeferred
async def test_a_new_primary_gets_all_commands(tmp_path: Path) -> None:
    """The old primary keeps its connections open, and none is used again."""
    query = "?replicaSet=secantus"
    with Mongod(tmp_path / "a", query=query) as old, Mongod(tmp_path / "b", query=query) as new:
        hosts = (server.uri.partition("//")[2].partition("/")[0] for server in (old, new))
        async with mongo_running(f"mongodb://{','.join(hosts)}/{query}", "images") as store:
            await all_of(store.get(KEY) for _ in range(50))
            with database(old.uri.partition("?")[0] + "?directConnection=true") as (_, db):
                db.client.admin.command("replSetStepDown", 60, force=True)
            assert (await store.claim(request("x:1"), NOW))[1]


@pytest_twisted.ensureDeferred
async def test_a_server_of_another_set_is_not_used(tmp_path: Path) -> None:
    """A server of another set than that in the URI is skipped."""
    with Mongod(tmp_path / "mongod", query="?replicaSet=ours") as server:
        async with mongo_running(server.uri, "images") as store:
            _, error = await error_of(store.get(KEY))
            assert "it is a member of secantus" in error.detail


@pytest_twisted.ensureDeferred
async def test_a_removal_continues_after_a_crash_of_the_server(server: Mongod) -> None:
    """After the crash the record is still EXPIRING, and its removal continues."""
    async with mongo_running(server.uri, "images") as store:
        ready = await complete_pull(store, request("x:1"))
        going = await store.expire(ready.key)
        assert going is not None
        await store.begin(going.key, "n", NOW, LIMIT)
        server.kill()
        await error_of(store.finish(going.key, 2, Expired(), NOW))
        server.start()
        await wait_until_ready(store)
        (stale,) = await store.stale(NOW + LIMIT + 1, LIMIT)
        attempt = await store.begin(stale.key, "n", NOW + LIMIT + 1, LIMIT)
        assert attempt is not None
        result = await store.finish(stale.key, 3, Expired(), NOW)
        assert result.status is State.EXPIRED


@pytest_twisted.ensureDeferred
async def test_an_unconfirmed_begin_is_continued(server: Mongod) -> None:
    """The process that began the attempt continues it, and no other process takes it over."""
    with Wire(server.port, replication_timeouts=range(2, 5)) as wire:
        async with (
            mongo_running(wire.uri, "images") as store,
            mongo_running(server.uri, "images") as peer,
        ):
            record, _ = await store.claim(request("x:1"), NOW)
            for n in range(3):
                await error_of(store.begin(record.key, "node:1", NOW + n, LIMIT))
                assert await peer.begin(record.key, "node:1", NOW + n, LIMIT) is None
            attempt = await store.begin(record.key, "node:1", NOW + 3, LIMIT)
            assert attempt is not None
            assert (attempt.attempt, attempt.last_heartbeat) == (1, NOW + 3)
            assert await store.begin(record.key, "node:1", NOW + 4, LIMIT) is None
            await store.advance(record.key, 1, State.TRANSFER, "", NOW)
