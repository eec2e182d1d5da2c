"""List, look-up, pull, queue and the admins' requests, on a real store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.errors import (
    BadRequest,
    NotAuthenticated,
    NotFound,
    NoWorkers,
    TooMany,
    Unavailable,
)
from shiftergw.model.records import Ready
from shiftergw.model.requests import RegistryLogin
from shiftergw.ports import QueueTrouble
from shiftergw.service import gateway as gateway_module
from shiftergw.service.gateway import READY_SECONDS
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.service.gateway_bench import (
    ALICE,
    ANONYMOUS_SESSION,
    BOB,
    BROKEN_PULL,
    DENIED_PULL,
    ID,
    READY,
    START,
    Bench,
    list_images,
    list_queue,
)

BROKER = {"BrokerURL": "amqp://b/", "MongoDBURI": "mongodb://m/", "MongoDB": "images"}


@pytest_twisted.ensureDeferred
async def test_a_first_pull_starts_work_and_answers_init(bench: Bench) -> None:
    """The first caller creates the work and gets INIT, and the dispatcher is woken."""
    record = await bench.pull(ALICE)
    assert (record.status, record.id, bench.wakes) == (State.INIT, None, 1)
    repeat = await bench.pull(BOB)
    assert (repeat.key, repeat.status, bench.wakes) == (record.key, State.PENDING, 1)
    assert repeat.location == "registry.example.com"  # which registry has how many slots


@pytest_twisted.ensureDeferred
async def test_a_fresh_image_needs_no_work(bench: Bench) -> None:
    """Within `PullUpdateTimeout` a READY image is the answer.

    After that, its tag is checked again.
    """
    await bench.pull(ALICE)
    await bench.end(READY)
    bench.clock.advance(299)
    assert (await bench.pull(BOB)).status is State.READY
    bench.clock.advance(2)
    assert (await bench.pull(BOB)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_a_list_of_several_pages(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is listed once, also if a user may see none of a page."""
    monkeypatch.setattr(gateway_module, "PAGE", 2)
    for number in range(7):
        await bench.pull(ALICE, f"x:{number}")
        is_private = number in (2, 3)
        rights = {"private": is_private, "user_acl": (2001,), "group_acl": ()}
        await bench.end(Ready(f"{number:064x}", rights))
    assert sorted(int(record.id or "", 16) for record in await list_images(bench, ALICE)) == [
        *range(7)
    ]
    assert sorted(int(record.id or "", 16) for record in await list_images(bench, BOB)) == [
        0,
        1,
        4,
        5,
        6,
    ]


@pytest_twisted.ensureDeferred
async def test_a_failure_is_repeated_and_then_retried(bench: Bench) -> None:
    """Polls see the failure for `FailureHold` seconds; then a new pull may start."""
    await bench.pull(ALICE)
    await bench.end(BROKEN_PULL)
    for session in (ALICE, BOB):
        answer = await bench.pull(session)
        assert (answer.status, answer.cause) == (State.FAILURE, "broken")
    bench.clock.advance(11)
    assert (await bench.pull(BOB)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_new_work_is_limited_but_polls_are_not(store: SqliteStore) -> None:
    """Beyond the limits of a user or the queue new pulls are refused, but never polls and READY."""
    bench = Bench(store, QueueLimit=3, UserLimits={"waiting": 2, "running": 1})
    await bench.pull(ALICE, "app:0")
    await bench.end(READY)
    await bench.pull(ALICE, "app:1")
    await bench.pull(ALICE, "app:2")
    with pytest.raises(TooMany):
        await bench.pull(ALICE, "app:3")
    assert (await bench.pull(BOB, "app:3")).status is State.INIT
    with pytest.raises(TooMany):
        await bench.pull(BOB, "app:4")
    for session in (ALICE, BOB):
        assert (await bench.pull(session, "app:1")).status is State.PENDING
        assert (await bench.pull(session, "app:0")).status is State.READY


@pytest_twisted.ensureDeferred
async def test_a_poll_is_not_refused_when_the_queue_is_full(store: SqliteStore) -> None:
    """The awaited work ended with another user's own failure, and this user is at the limit."""
    bench = Bench(store, UserLimits={"waiting": 1, "running": 1})
    await bench.pull(ALICE)
    assert (await bench.pull(BOB)).status is State.PENDING
    await bench.end(DENIED_PULL)
    await bench.pull(BOB, "other:1")
    assert (await bench.pull(BOB)).status is State.PENDING
    with pytest.raises(TooMany):
        await bench.pull(BOB, "third:1")


@pytest_twisted.ensureDeferred
async def test_a_ready_image_is_fresh_for_some_seconds(store: SqliteStore) -> None:
    """This holds also if `PullUpdateTimeout` is 0: otherwise each poll would start new work."""
    bench = Bench(store, PullUpdateTimeout=0)
    await bench.pull(ALICE)
    await bench.end(READY)
    bench.clock.advance(5)
    assert (await bench.pull(ALICE)).status is State.READY
    bench.clock.advance(6)
    assert (await bench.pull(ALICE)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_a_poll_is_answered_while_the_store_is_unavailable(bench: Bench) -> None:
    """A poll gets the last answer to it; a first request fails and may be repeated."""
    await bench.pull(ALICE)

    async def fail(*_: Any) -> Any:
        raise Unavailable("The store is away.")

    bench.store.find_work = fail  # type: ignore[method-assign, assignment]
    assert (await bench.pull(ALICE)).status is State.INIT
    for session, image in ((ALICE, "app:2"), (BOB, "app:1")):
        with pytest.raises(Unavailable):
            await bench.pull(session, image)


@pytest_twisted.ensureDeferred
async def test_a_repeated_credential_gets_only_the_last_answer(bench: Bench) -> None:
    """The last answer is repeated, whatever the present state; without it the request fails."""
    await bench.pull(ALICE)
    await bench.end(READY)
    answer = bench.gateway.last_answer(ALICE, "docker", "app:1", "r")
    assert (answer.status, answer.id) == (State.INIT, None)
    for session, image in ((ALICE, "app:2"), (BOB, "app:1")):
        with pytest.raises(Unavailable):
            bench.gateway.last_answer(session, "docker", image, "r")
    with pytest.raises(BadRequest):
        bench.gateway.last_answer(ALICE, "unknown", "app:1", "r")
    assert (await bench.pull(ALICE)).status is State.READY
    with pytest.raises(Unavailable):  # the poll has ended
        bench.gateway.last_answer(ALICE, "docker", "app:1", "r")


@pytest_twisted.ensureDeferred
async def test_registries_without_their_logins(store: SqliteStore) -> None:
    """Authenticated users see host and port of each location, and no other part of its URL."""
    location = {"remotetype": "dockerv2", "url": "https://reg.example:5000/v2"}
    bench = Bench(store, Locations={"closed": location}, DefaultImageLocation="closed")
    assert bench.gateway.registries(BOB) == {"closed": "reg.example:5000"}
    with pytest.raises(NotAuthenticated):
        bench.gateway.registries(ANONYMOUS_SESSION)


@pytest_twisted.ensureDeferred
async def test_registries_take_logins(store: SqliteStore) -> None:
    """A directory of the site takes no logins; `*` stands for registries without a location."""
    locations = {
        "reg": {"remotetype": "dockerv2", "url": "https://reg.example"},
        "site": {"remotetype": "oci-layout", "url": "file:///images/oci"},
        "*": {"remotetype": "dockerv2"},
    }
    bench = Bench(store, Locations=locations, DefaultImageLocation="reg")
    assert bench.gateway.registries(BOB) == {"reg": "reg.example", "*": ""}


@pytest_twisted.ensureDeferred
async def test_images_are_found_by_canonical_and_literal_names(bench: Bench) -> None:
    """Without a tag the tag is `latest`, in pulls and look-ups."""
    await bench.pull(ALICE, "app")
    await bench.end(READY)
    for name in ("app", "app:latest"):
        assert (await bench.gateway.lookup(BOB, "docker", name)).tags == ("app:latest",)
    with pytest.raises(NotFound):
        await bench.gateway.lookup(BOB, "docker", "No Reference")


@pytest_twisted.ensureDeferred
async def test_bad_names_and_types_store_nothing(bench: Bench) -> None:
    """A malformed reference or type is refused before anything is stored."""
    for itype, name in (("docker", "A b"), ("docker", "../x"), ("local", "app:1")):
        with pytest.raises(BadRequest):
            await bench.gateway.pull(ALICE, itype, name, (), (), "r")
    assert await bench.store.queue("mycluster") == []


@pytest_twisted.ensureDeferred
async def test_a_lookup_extends_the_expiration(store: SqliteStore) -> None:
    """A look-up writes only if the expiration moves by an hour or more."""
    bench = Bench(store, ImageExpirationTimeout="10:00:00:00", Metrics=True)
    await bench.pull(ALICE)
    await bench.end(READY)
    first = await bench.gateway.lookup(ALICE, "docker", "app:1")
    bench.clock.advance(60)
    await bench.gateway.lookup(ALICE, "docker", "app:1")
    second = await store.get(first.key)
    bench.clock.advance(4000)
    await bench.gateway.lookup(ALICE, "docker", "app:1")
    third = await store.get(first.key)
    assert second is not None
    assert third is not None
    assert second.expiration == START + 864_000
    assert third.expiration == START + 60 + 4000 + 864_000
    rows = await store.lookups("mycluster", 10)
    assert [(row["user"], row["id"]) for row in rows] == [("alice", ID)] * 3


@pytest_twisted.ensureDeferred
async def test_a_login_is_encrypted_and_only_for_its_location(bench: Bench) -> None:
    """The record contains the login for the image's location, encrypted, and no other one."""
    logins = {
        "default": RegistryLogin("alice", "secret"),
        "registry.example.com": RegistryLogin("alice", "pass:word"),
    }
    record = await bench.pull(replace(ALICE, logins=logins))
    stored_record = await bench.store.get(record.key)
    assert stored_record is not None
    assert stored_record.sealed is not None
    assert "pass" not in stored_record.sealed
    assert bench.seal.open(stored_record.sealed, stored_record.claim or "") == "alice:pass:word"
    record_elsewhere = await bench.pull(
        replace(ALICE, logins={"elsewhere": RegistryLogin("a", "b")}), "app:2"
    )
    assert record_elsewhere.sealed is None
    by_default = await bench.pull(
        replace(ALICE, logins={"default": RegistryLogin("a", "b")}), "app:3"
    )
    assert by_default.sealed is not None


@pytest_twisted.ensureDeferred
async def test_a_claim_after_the_end_of_another_pull_is_abandoned(bench: Bench) -> None:
    """If another pull has just refreshed the image, the caller gets the READY image."""
    await bench.pull(ALICE)
    bench.clock.advance(1)
    store, gateway = bench.store, bench.gateway
    claim = store.claim

    async def slow_claim(*arguments: Any) -> Any:
        await bench.end(READY)  # between this caller's query and its claim
        return await claim(*arguments)

    find_work = gateway._claims._work

    async def find_nothing(*_: Any, **__: Any) -> None:
        gateway._claims._work = find_work  # type: ignore[method-assign]

    gateway._claims._work = find_nothing  # type: ignore[method-assign]
    store.claim = slow_claim  # type: ignore[method-assign, assignment]
    record = await bench.pull(BOB)
    assert (record.status, record.id) == (State.READY, ID)
    assert await store.queue("mycluster") == []


@pytest_twisted.ensureDeferred
async def test_workers_that_cannot_be_reached(store: SqliteStore) -> None:
    """Pulls wait for them, or are refused if the site says so; polls are always answered."""
    waits = Bench(store)
    waits.queue.current_trouble = QueueTrouble("No broker.", "it is away", 0.0)
    assert (await waits.pull(ALICE)).status is State.INIT
    refuses = Bench(store, **BROKER, BrokerAway="refuse")
    refuses.queue.current_trouble = waits.queue.current_trouble
    (entry,) = await list_queue(waits, ALICE)
    assert entry.status_message == "No broker."
    assert (await waits.pull(ALICE)).status_message == "No broker."
    assert (await refuses.pull(ALICE)).status is State.PENDING
    with pytest.raises(Unavailable, match="No worker") as caught:
        await refuses.pull(ALICE, "other:1")
    assert caught.value.http_status == 503
    assert "broker" not in str(caught.value)
    refuses.queue.current_trouble = None
    assert (await refuses.pull(ALICE, "other:1")).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_ready(store: SqliteStore) -> None:
    """The gateway is ready unless its own workers cannot start; worker machines may be away."""
    own, machines = Bench(store), Bench(store, **BROKER)
    await own.gateway.ready()
    own.queue.current_trouble = QueueTrouble("They are slow.", "", START, grave=False)
    await own.gateway.ready()
    own.queue.current_trouble = machines.queue.current_trouble = QueueTrouble(
        "No worker can start.", "why", START
    )
    await machines.gateway.ready()
    with pytest.raises(NoWorkers, match="No worker can start") as caught:
        await own.gateway.ready()
    assert (caught.value.http_status, caught.value.code) == (503, "no-workers")


@pytest_twisted.ensureDeferred
async def test_a_waiting_pull_says_why(store: SqliteStore) -> None:
    """The message has the last event, and why no worker begins; it has neither once work begins."""
    bench = Bench(store)
    await bench.pull(ALICE)
    (record,) = await store.waiting(START, 1)
    bench.queue.current_trouble = QueueTrouble("No worker can start.", "secret detail", START)
    assert (await bench.pull(ALICE)).status_message == "No worker can start."
    await store.begin(record.key, "node:1", START, 60)
    assert (await bench.pull(ALICE)).status_message == "PULLING"
    await store.requeue(record.key, 1, "It was killed.", died=True)
    assert (await bench.pull(ALICE)).status_message == "It was killed. No worker can start."
    bench.queue.current_trouble = None
    assert (await bench.pull(ALICE)).status_message == "It was killed."


@pytest_twisted.ensureDeferred
async def test_readiness_has_a_time_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the database never answers, the gateway reports that it is not ready."""

    async def hang() -> None:
        await Deferred()

    monkeypatch.setattr(bench.store, "ready", hang)
    asking = Deferred.fromCoroutine(bench.gateway.ready())
    bench.clock.advance(READY_SECONDS)
    with pytest.raises(Unavailable, match="does not answer"):
        await asking
