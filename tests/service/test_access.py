"""Who sees, changes and removes which images and which work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted

from shiftergw.errors import (
    BadRequest,
    NotAllowed,
    NotAuthenticated,
    NotFound,
)
from shiftergw.model.records import Progress, Ready, WorkerMachine
from shiftergw.model.requests import RegistryLogin, Session
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.configurations import load_config
from tests.service.gateway_bench import (
    ADMIN,
    ALICE,
    ANONYMOUS_SESSION,
    BOB,
    BROKEN_PULL,
    DENIED_PULL,
    ID,
    PRIVATE,
    READY,
    START,
    Bench,
    list_images,
    list_queue,
)


@pytest_twisted.ensureDeferred
async def test_a_refusal_of_one_user_blocks_no_other_user(bench: Bench) -> None:
    """Only the user sees a failure that depends on the user's own credentials."""
    await bench.pull(ALICE)
    await bench.end(DENIED_PULL)
    assert (await bench.pull(ALICE)).status is State.FAILURE
    assert (await bench.pull(BOB)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_a_list_hides_who_pulled_a_public_image(bench: Bench) -> None:
    """The user who pulled the image, and admins, see the owner in a list."""
    await bench.pull(ALICE)
    await bench.end(READY)
    owners = [(await list_images(bench, user))[0].requested_by for user in (ALICE, ADMIN, BOB)]
    assert owners == [ALICE.uid, ALICE.uid, None]


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
        await bench.gateway.owner.expire(ANONYMOUS_SESSION, "docker", "app:1")


@pytest_twisted.ensureDeferred
async def test_only_admins_and_owners_expire_a_tag(bench: Bench) -> None:
    """Admins may expire any tag, users their own images; for strangers the image does not exist."""
    await bench.pull(ALICE)
    await bench.end(PRIVATE)
    with pytest.raises(NotFound):
        await bench.gateway.owner.expire(BOB, "docker", "app:1")
    with pytest.raises(NotAllowed):  # a group may read it too
        await bench.gateway.owner.expire(ALICE, "docker", "app:1")
    wakes = bench.wakes
    await bench.gateway.owner.expire(ADMIN, "docker", "app:1")
    assert bench.wakes == wakes + 1
    with pytest.raises(NotFound):
        await bench.gateway.lookup(ALICE, "docker", "app:1")
    (removal,) = await bench.store.waiting(START, 5)
    assert (removal.status, removal.id) == (State.EXPIRING, ID)
    with pytest.raises(NotFound):
        await bench.gateway.owner.expire(ADMIN, "docker", "app:1")


@pytest_twisted.ensureDeferred
async def test_one_tag_of_several_expires_alone(bench: Bench) -> None:
    """The image and its other tags stay, and no file is removed."""
    for tag in ("app:1", "app:2"):
        await bench.pull(ALICE, tag)
        await bench.end(Ready(ID, {"private": True, "user_acl": (2001,), "group_acl": ()}))
    await bench.gateway.owner.expire(ALICE, "docker", "app:1")
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
    _, names = await bench.gateway.admin.take_down(ADMIN, ID)
    assert sorted(names) == ["docker:app:1", "docker:app:2"]
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
async def test_the_queue_shows_no_request_of_others(bench: Bench) -> None:
    """The id of a request is shown to its user and to admins."""
    await bench.pull(ALICE)

    async def request_ids_for(session: Session) -> list[str | None]:
        return [record.request_id for record in await list_queue(bench, session)]

    assert await request_ids_for(BOB) == [None]
    assert await request_ids_for(ALICE) == await request_ids_for(ADMIN) == ["request"]


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
async def test_workers(bench: Bench) -> None:
    """An admin sees the machines of the session's system, and the names of its images only."""
    await bench.pull(ALICE)
    (record,) = await bench.store.waiting(START, 5)
    machine = WorkerMachine("a", "1", ("mycluster", "x"), 2, (record.key, "f" * 24), False, START)
    bench.queue.worker_machines = [machine, WorkerMachine("b", "1", ("x",), 2, (), False, START)]
    assert await bench.gateway.admin.workers(ADMIN) == [(machine, ["app:1", "(of another system)"])]
    with pytest.raises(NotAllowed):
        await bench.gateway.admin.workers(ALICE)
