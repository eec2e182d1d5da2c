"""Users remove their own images, and pin them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted

from shiftergw.errors import NotAllowed, NotFound, TooMany, Unavailable
from shiftergw.model.records import Ready
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.service.gateway_bench import (
    ADMIN,
    ALICE,
    ANONYMOUS_SESSION,
    BOB,
    ID,
    PRIVATE,
    READY,
    START,
    Bench,
    list_images,
)

OTHER_READY = replace(READY, id="b" * 64)


@pytest_twisted.ensureDeferred
async def test_an_image_that_one_user_alone_has_used(bench: Bench) -> None:
    """Its puller may remove it with all its tags, by its name or id; the files are a worker's."""
    for tag in ("app:1", "app:2"):
        await bench.pull(ALICE, tag)
        await bench.end(READY)
    await bench.gateway.lookup(ALICE, "docker", "app:1")
    await bench.pull(ALICE, "app:1")
    with pytest.raises(NotAllowed, match="Only an admin"):
        await bench.gateway.owner.remove(BOB, "docker", "app:1")
    wakes = bench.wakes
    record = await bench.gateway.owner.remove(ALICE, "id", "aaaa")
    assert (record.id, record.tags, bench.wakes) == (ID, ("app:1", "app:2"), wakes + 1)
    (work,) = await bench.store.waiting(START, 9)
    assert (work.kind, work.status) == ("expire", State.EXPIRING)
    with pytest.raises(NotFound):
        await bench.gateway.owner.remove(ALICE, "docker", "app:2")


@pytest.mark.parametrize("use", ["pull", "look-up", "pull in flight", "pull of the same image"])
@pytest_twisted.ensureDeferred
async def test_an_image_that_others_have_used(bench: Bench, use: str) -> None:
    """From the first use by another user on, only admins remove a public image."""
    await bench.pull(ALICE)
    if use == "pull in flight":
        await bench.pull(BOB)
    await bench.end(READY)
    if use == "pull":
        await bench.pull(BOB)
    if use == "look-up":
        await bench.gateway.lookup(BOB, "docker", "app:1")
    if use == "pull of the same image":
        await bench.pull(BOB, "app:2")
        await bench.end(READY)
    for session in (ALICE, BOB, ANONYMOUS_SESSION):
        with pytest.raises(NotAllowed):
            await bench.gateway.owner.remove(session, "docker", "app:1")
    assert (await bench.gateway.owner.remove(ADMIN, "docker", "app:1")).id == ID


@pytest_twisted.ensureDeferred
async def test_a_user_who_may_not_read_an_image_learns_nothing(bench: Bench) -> None:
    """For all three requests another user's private image does not exist."""
    await bench.pull(ALICE)
    await bench.end(replace(PRIVATE, changes={**PRIVATE.changes, "group_acl": ()}))
    owner = bench.gateway.owner
    for request in (owner.remove, owner.pin, owner.unpin):
        with pytest.raises(NotFound):
            await request(BOB, "docker", "app:1")
    await owner.remove(ALICE, "docker", "app:1")


@pytest_twisted.ensureDeferred
async def test_a_use_that_cannot_be_written_keeps_nobody(bench: Bench) -> None:
    """The look-up is answered while the store takes no writes."""

    async def fail(*_: object) -> None:
        raise Unavailable("The store is away.")

    await bench.pull(ALICE)
    await bench.end(READY)
    bench.store.note_use = fail  # type: ignore[method-assign, assignment]
    assert (await bench.gateway.lookup(BOB, "docker", "app:1")).id == ID


@pytest_twisted.ensureDeferred
async def test_only_admins_pin_images_by_default(bench: Bench) -> None:
    """They pin images of all users, as many as they want, and unpin those of others."""
    await bench.pull(ALICE)
    await bench.end(Ready(ID, {**READY.changes, "expiration": START}))
    owner = bench.gateway.owner
    with pytest.raises(NotAllowed, match="Only admins of mycluster pin"):
        await owner.pin(ALICE, "docker", "app:1")
    assert (await owner.pin(ADMIN, "id", "aaaa")).pinned_by == 0
    assert await bench.gateway.admin.autoexpire(ADMIN) == []
    with pytest.raises(NotAllowed, match="another user has pinned"):
        await owner.unpin(ALICE, "docker", "app:1")
    assert (await owner.unpin(ADMIN, "docker", "app:1")).pinned_by is None
    assert await bench.gateway.admin.autoexpire(ADMIN) == [ID]


@pytest_twisted.ensureDeferred
async def test_a_pinned_image_is_not_removed(bench: Bench) -> None:
    """Neither `rm` nor the expiry of its last tag removes it; a takedown does."""
    await bench.pull(ALICE)
    await bench.end(READY)
    await bench.gateway.owner.pin(ADMIN, "docker", "app:1")
    with pytest.raises(NotAllowed, match="pinned"):
        await bench.gateway.owner.remove(ADMIN, "docker", "app:1")
    with pytest.raises(NotAllowed, match="pinned"):
        await bench.gateway.expire(ADMIN, "docker", "app:1")
    await bench.pull(ALICE, "app:2")
    await bench.end(READY)
    await bench.gateway.expire(ADMIN, "docker", "app:1")
    assert [image.tags for image in await list_images(bench, BOB)] == [("app:2",)]
    assert await bench.gateway.admin.take_down(ADMIN, ID) == (ID, ["docker:app:2"])


@pytest_twisted.ensureDeferred
async def test_owners_pin_some_of_their_images(store: SqliteStore) -> None:
    """`PinLimit`, of the system or else of the site, says how many."""
    bench = Bench(store, PinLimit=1)
    owner = bench.gateway.owner
    for tag, outcome in (("app:1", READY), ("app:2", OTHER_READY)):
        await bench.pull(ALICE, tag)
        await bench.end(outcome)
    with pytest.raises(NotAllowed, match="owner"):
        await owner.pin(BOB, "docker", "app:1")
    assert (await owner.pin(ALICE, "docker", "app:1")).pinned_by == 2001
    with pytest.raises(TooMany):
        await owner.pin(ALICE, "docker", "app:2")
    with pytest.raises(NotAllowed):
        await owner.unpin(BOB, "docker", "app:1")
    await owner.unpin(ALICE, "docker", "app:1")
    await owner.unpin(BOB, "docker", "app:1")  # it is not pinned, so nothing is taken from anybody
    await owner.pin(ALICE, "docker", "app:2")
