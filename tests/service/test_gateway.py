"""List, look-up, pull, queue and the admins' requests, on a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.errors import (
    BadRequest,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    NoWorkers,
    TooMany,
    Unavailable,
)
from shiftergw.model.records import Failed, ImageRecord, Progress, Ready, WorkerMachine
from shiftergw.model.requests import ANONYMOUS, RegistryLogin, Session
from shiftergw.plumbing.seal import Seal
from shiftergw.ports import QueueTrouble
from shiftergw.service import gateway as gateway_module
from shiftergw.service.gateway import READY_SECONDS, Gateway, GatewayOptions
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.configurations import load_config
from tests.work.fakes import FakeQueue

ID = "a" * 64
ALICE = Session("mycluster", "alice", 2001, "users", 2100, frozenset({2100, 2300}))
BOB = Session("mycluster", "bob", 2002, "users", 2100, frozenset({2100}))
ADMIN = Session("mycluster", "root", 0, "root", 0, frozenset({0}), admin=True)
ANONYMOUS_SESSION = Session("mycluster", "anonymous", ANONYMOUS, "anonymous", ANONYMOUS)
START = 1_000_000.0
BROKER = {"BrokerURL": "amqp://b/", "MongoDBURI": "mongodb://m/", "MongoDB": "images"}


class Bench:
    """A gateway on a store and a clock; `wakes` counts how often it woke the dispatcher."""

    def __init__(self, store: SqliteStore, **changes: Any) -> None:
        """Configure the gateway with `changes`."""
        self.clock = Clock()
        self.clock.advance(START)
        self.store = store
        self.seal = Seal(b"k" * 32)
        self.queue = FakeQueue(0)
        self.wakes = 0
        config = load_config({"FailureHold": 10, "PullUpdateTimeout": 300, **changes}).config
        self.is_judged = True
        self.gateway = Gateway(
            config,
            store,
            lambda: self.seal,
            self._wake,
            self.clock,
            self.queue,
            GatewayOptions(is_judged=self._is_judged),
        )

    async def _is_judged(self, _: ImageRecord) -> bool:
        return self.is_judged

    def _wake(self) -> None:
        self.wakes += 1

    async def pull(
        self, session: Session, image: str = "app:1", users: tuple[int, ...] = ()
    ) -> Any:
        """Request an image."""
        return await self.gateway.pull(session, "docker", image, users, (), "request")

    async def end(self, outcome: Ready | Failed) -> None:
        """End the work in flight."""
        (waiting,) = await self.store.waiting(self.clock.seconds(), 1)
        now = self.clock.seconds()
        work = await self.store.begin(waiting.key, "here:1", now, 60)
        assert work is not None
        await self.store.finish(work.key, work.attempt, outcome, now)


READY = Ready(ID, {"private": False, "user_acl": (), "group_acl": ()})
PRIVATE = Ready(ID, {"private": True, "user_acl": (2001,), "group_acl": (2300,)})
DENIED_PULL = Failed("PULLING", "refused", "log in", retryable=False, own=True)
BROKEN_PULL = Failed("PULLING", "broken", "wait", retryable=True)


@pytest_twisted.async_yield_fixture()
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Yield a running store."""
    running = SqliteStore(reactor, tmp_path / "store.sqlite")
    await running.startService()
    yield running
    await running.stopService()


@pytest.fixture
def bench(store: SqliteStore) -> Bench:
    """Return a gateway on an empty store."""
    return Bench(store)


async def list_images(bench: Bench, session: Session) -> list[ImageRecord]:
    """Return the images that a user sees in the list."""
    return [record async for page in bench.gateway.list(session) for record in page]


async def list_queue(bench: Bench, session: Session) -> list[ImageRecord]:
    """Return the records that a user sees in the queue."""
    return [record async for page in bench.gateway.queue(session) for record in page]


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
async def test_another_user_s_refusal_blocks_nobody(bench: Bench) -> None:
    """Only the user sees a failure that depends on the user's own credentials."""
    await bench.pull(ALICE)
    await bench.end(DENIED_PULL)
    assert (await bench.pull(ALICE)).status is State.FAILURE
    assert (await bench.pull(BOB)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_a_private_image_is_visible_to_its_readers_only(bench: Bench) -> None:
    """The readers are found by uid or by any group; for other users the image does not exist."""
    await bench.pull(ALICE)
    await bench.end(PRIVATE)
    assert (await bench.gateway.lookup(ALICE, "docker", "app:1")).id == ID
    group_member = replace(BOB, groups=frozenset({2300}))
    assert (await bench.gateway.lookup(group_member, "docker", "app:1")).id == ID
    with pytest.raises(NotFound, match="An image that was uploaded is called custom:app:1"):
        await bench.gateway.lookup(BOB, "docker", "app:1")
    with pytest.raises(NotFound, match="no image custom:app:1 on"):
        await bench.gateway.lookup(BOB, "custom", "app:1")
    assert [r.id for r in await list_images(bench, ALICE)] == [ID]
    assert await list_images(bench, BOB) == []
    # Bob may try with other credentials.
    assert (await bench.pull(BOB)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_another_acl_starts_work_for_a_private_image(bench: Bench) -> None:
    """Work starts only if the readers change; a public image has no access list."""
    await bench.pull(ALICE)
    await bench.end(PRIVATE)
    same = await bench.gateway.pull(ALICE, "docker", "app:1", (2001,), (2300,), "r")
    assert same.status is State.READY
    change = await bench.pull(ALICE, users=(2009,))
    assert (change.status, change.kind) == (State.INIT, "acl")
    await bench.end(READY)
    assert (await bench.pull(ALICE, users=(2009,))).status is State.READY


@pytest_twisted.ensureDeferred
async def test_only_puller_and_admin_start_work_on_an_acl(bench: Bench) -> None:
    """A reader who names other readers gets READY, or else the client would poll for ever."""
    await bench.pull(ALICE)
    await bench.end(PRIVATE)
    reader = replace(BOB, groups=frozenset({2300}))
    assert (await bench.pull(reader, users=(2009,))).status is State.READY
    admin = replace(ADMIN, groups=frozenset({2300}))
    change = await bench.pull(admin, users=(2009,))
    assert (change.status, change.kind, change.by_admin) == (State.INIT, "acl", True)


@pytest_twisted.ensureDeferred
async def test_an_acl_with_the_caller_must_be_deliverable(bench: Bench) -> None:
    """A list of 1000 users becomes too long with the caller, and is refused before any work."""
    with pytest.raises(BadRequest):
        await bench.pull(ALICE, users=tuple(range(10_000, 11_000)))
    assert (await bench.pull(ALICE, users=tuple(range(10_000, 10_999)))).status is State.INIT


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
async def test_work_on_private_images_is_hidden_from_strangers(bench: Bench) -> None:
    """Strangers see no change of readers, no removal, and no access list in a failure."""
    await bench.pull(ALICE)
    await bench.end(PRIVATE)
    changing = await bench.pull(ALICE, users=(2009,))
    assert changing.kind == "acl"
    assert await list_queue(bench, BOB) == []
    answer = await bench.pull(BOB)
    assert (answer.status, answer.user_acl, answer.request_id) == (State.PENDING, (), None)
    await bench.end(PRIVATE)
    (ready,) = await bench.store.list("mycluster")
    assert await bench.store.expire(ready.key) is not None
    assert await list_queue(bench, BOB) == []
    assert [record.status for record in await list_queue(bench, ALICE)] == [State.EXPIRING]
    await bench.pull(ALICE, "open:1", users=(2050,))
    (_, waiting) = await bench.store.waiting(START, 5)
    work = await bench.store.begin(waiting.key, "here:1", START, 60)
    assert work is not None
    await bench.store.finish(work.key, 1, BROKEN_PULL, START)
    failure = await bench.pull(BOB, "open:1")
    assert (failure.cause, failure.user_acl, failure.request_id) == ("broken", (), None)


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
async def test_an_anonymous_user_reads_public_images(bench: Bench) -> None:
    """An anonymous user may pull without an access list, and sees no private and no open images."""
    assert (await bench.pull(ANONYMOUS_SESSION)).status is State.INIT
    await bench.end(READY)
    assert (await bench.gateway.lookup(ANONYMOUS_SESSION, "docker", "app:1")).id == ID
    await bench.pull(ALICE, "open:1")
    await bench.end(Ready("b" * 64, {"private": True, "user_acl": (), "group_acl": ()}))
    assert (await bench.gateway.lookup(BOB, "docker", "open:1")).id == "b" * 64
    with pytest.raises(NotFound):
        await bench.gateway.lookup(ANONYMOUS_SESSION, "docker", "open:1")
    with pytest.raises(NotAuthenticated):
        await bench.pull(ANONYMOUS_SESSION, "app:2", users=(2001,))
    with pytest.raises(NotAllowed):
        await bench.gateway.expire(ANONYMOUS_SESSION, "docker", "app:1")


@pytest_twisted.ensureDeferred
async def test_who_may_expire_a_tag(bench: Bench) -> None:
    """Admins may expire any tag, users their own images; for strangers the image does not exist."""
    await bench.pull(ALICE)
    await bench.end(PRIVATE)
    with pytest.raises(NotFound):
        await bench.gateway.expire(BOB, "docker", "app:1")
    with pytest.raises(NotAllowed):  # a group may read it too
        await bench.gateway.expire(ALICE, "docker", "app:1")
    wakes = bench.wakes
    await bench.gateway.expire(ADMIN, "docker", "app:1")
    assert bench.wakes == wakes + 1
    with pytest.raises(NotFound):
        await bench.gateway.lookup(ALICE, "docker", "app:1")
    (removal,) = await bench.store.waiting(START, 5)
    assert (removal.status, removal.id) == (State.EXPIRING, ID)
    with pytest.raises(NotFound):
        await bench.gateway.expire(ADMIN, "docker", "app:1")


@pytest_twisted.ensureDeferred
async def test_one_tag_of_several_expires_alone(bench: Bench) -> None:
    """The image and its other tags stay, and no file is removed."""
    for tag in ("app:1", "app:2"):
        await bench.pull(ALICE, tag)
        await bench.end(Ready(ID, {"private": True, "user_acl": (2001,), "group_acl": ()}))
    await bench.gateway.expire(ALICE, "docker", "app:1")
    assert (await bench.gateway.lookup(ALICE, "docker", "app:2")).tags == ("app:2",)
    assert await bench.store.waiting(START, 5) == []


@pytest_twisted.ensureDeferred
async def test_due_images_expire_on_demand(store: SqliteStore) -> None:
    """Admins expire due images on their system; a look-up extends the expiration of an image."""
    bench = Bench(store, ImageExpirationTimeout="10:00:00:00")
    for number, tag in enumerate(("app:1", "app:2")):
        await bench.pull(ALICE, tag)
        image_id = f"{number}" * 64
        await bench.end(Ready(image_id, {"private": False, "expiration": START + 100}))
    bench.clock.advance(200)
    await bench.gateway.lookup(ALICE, "docker", "app:2")
    with pytest.raises(NotAllowed):
        await bench.gateway.admin.autoexpire(ALICE)
    assert await bench.gateway.admin.autoexpire(replace(ADMIN, system="other")) == []
    assert await bench.gateway.admin.autoexpire(ADMIN) == ["0" * 64]
    assert await bench.gateway.admin.autoexpire(ADMIN) == []


@pytest_twisted.ensureDeferred
async def test_an_image_is_taken_down(bench: Bench) -> None:
    """The image is blocked permanently, with all its tags; only an admin may allow it again."""
    for tag in ("app:1", "app:2"):
        await bench.pull(ALICE, tag)
        await bench.end(READY)
    with pytest.raises(NotAllowed):
        await bench.gateway.admin.take_down(ALICE, ID)
    assert sorted(await bench.gateway.admin.take_down(ADMIN, ID)) == [
        "docker:app:1",
        "docker:app:2",
    ]
    directory = load_config().config.directory_of("mycluster")[0]
    assert await bench.store.is_blocked(directory, {ID})
    assert await list_images(bench, ALICE) == []
    with pytest.raises(NotAllowed):
        await bench.gateway.admin.allow(ALICE, ID)
    await bench.gateway.admin.allow(ADMIN, ID)
    with pytest.raises(NotFound):
        await bench.gateway.admin.allow(ADMIN, ID)


@pytest_twisted.ensureDeferred
async def test_metrics_are_for_admins(store: SqliteStore) -> None:
    """Admins see the last look-ups of their system, oldest first; none while metrics are off."""
    bench = Bench(store, Metrics=True)
    await bench.pull(ALICE)
    await bench.end(READY)
    for _ in range(3):
        await bench.gateway.lookup(ALICE, "docker", "app:1")
        bench.clock.advance(1)
    with pytest.raises(NotAllowed):
        await bench.gateway.admin.metrics(ALICE, 10)
    rows = await bench.gateway.admin.metrics(ADMIN, 2)
    assert [row["time"] for row in rows] == [START + 1, START + 2]
    assert await bench.gateway.admin.metrics(ADMIN, 0) == []
    assert await bench.gateway.admin.metrics(replace(ADMIN, system="other"), 10) == []
    assert await Bench(store).gateway.admin.metrics(ADMIN, 10) == []


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
async def test_the_queue_shows_what_a_user_may_see(bench: Bench) -> None:
    """The user's own work and work without a login; an admin sees all work."""
    secret = replace(ALICE, logins={"default": RegistryLogin("alice", "secret")})
    await bench.pull(secret, "secret:1", users=(2007,))
    bench.clock.advance(1)
    await bench.pull(ALICE, "open:1")

    async def tags_for(session: Session) -> list[str | None]:
        return [record.pulltag for record in await list_queue(bench, session)]

    assert await tags_for(BOB) == ["open:1"]
    assert await tags_for(ALICE) == await tags_for(ADMIN) == ["secret:1", "open:1"]
    assert (await bench.pull(ALICE, "secret:1")).user_acl == (2007,)


@pytest_twisted.ensureDeferred
async def test_work_with_another_user_s_login_is_hidden(bench: Bench) -> None:
    """A user waits for it, but sees neither its progress nor the size of the image."""
    record = await bench.pull(replace(ALICE, logins={"default": RegistryLogin("alice", "secret")}))
    work = await bench.store.begin(record.key, "here:1", START, 60)
    assert work is not None
    await bench.store.advance(record.key, 1, State.CONVERSION, "Converting image", START)
    await bench.store.heartbeat(record.key, 1, Progress("squash", 5, 10), START)
    answer = await bench.pull(BOB)
    assert (answer.status, answer.stage, answer.total, answer.request_id) == (
        State.PENDING,
        None,
        0,
        None,
    )
    assert (await bench.pull(ALICE)).total == 10
    assert (await bench.pull(ADMIN)).status is State.CONVERSION


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
async def test_workers(bench: Bench) -> None:
    """An admin sees the machines of the session's system, and the names of its images only."""
    await bench.pull(ALICE)
    (record,) = await bench.store.waiting(START, 5)
    machine = WorkerMachine("a", "1", ("mycluster", "x"), 2, (record.key, "f" * 24), False, START)
    bench.queue.worker_machines = [machine, WorkerMachine("b", "1", ("x",), 2, (), False, START)]
    assert await bench.gateway.admin.workers(ADMIN) == [(machine, ["app:1", "(of another system)"])]
    with pytest.raises(NotAllowed):
        await bench.gateway.admin.workers(ALICE)


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
