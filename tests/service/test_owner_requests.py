"""Users remove their own images, and pin them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted

from shiftergw.errors import NotAllowed, NotFound, TooMany, Unavailable
from shiftergw.model.records import Expired, ImageRecord, Ready
from shiftergw.model.requests import RegistryLogin, Session
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.service.gateway_bench import (
    ADMIN,
    ALICE,
    ANONYMOUS_SESSION,
    BOB,
    BROKEN_PULL,
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


async def _fail(*_: object) -> bool:
    raise Unavailable("The store is away.")


@pytest.mark.parametrize("use", ["pull", "look-up"])
@pytest_twisted.ensureDeferred
async def test_a_first_use_that_cannot_be_noted_is_refused(
    bench: Bench, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its owner could remove the image that another user has been told of."""

    async def ask(session: Session) -> ImageRecord:
        if use == "pull":
            record: ImageRecord = await bench.pull(session)
            return record
        return await bench.gateway.lookup(session, "docker", "app:1")

    await bench.pull(ALICE)
    await bench.end(READY)
    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "note_use", _fail)
        assert (await ask(ALICE)).id == ID
        with pytest.raises(Unavailable):
            await ask(BOB)
        assert (await bench.gateway.owner.remove(ALICE, "docker", "app:1")).id == ID
    await bench.end(Expired())
    await bench.pull(ALICE)
    await bench.end(READY)
    assert (await ask(BOB)).id == ID
    monkeypatch.setattr(bench.store, "note_use", _fail)
    for session in (ALICE, BOB, ADMIN, ANONYMOUS_SESSION):
        assert (await ask(session)).id == ID  # nothing is left to note
    with pytest.raises(NotAllowed):
        await bench.gateway.owner.remove(ALICE, "docker", "app:1")


@pytest_twisted.ensureDeferred
async def test_a_poll_whose_use_cannot_be_noted_repeats_its_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll that has had an answer never ends in an error, whatever the store can write."""
    await bench.pull(BOB)
    first = await bench.pull(BOB)
    await bench.end(BROKEN_PULL)
    bench.clock.advance(11)  # so that the failure does not count any more
    await bench.pull(ALICE)
    monkeypatch.setattr(bench.store, "note_use", _fail)
    assert await bench.pull(BOB) == first
    with pytest.raises(Unavailable):
        await bench.pull(ANONYMOUS_SESSION)


@pytest.mark.parametrize("login", ["a", ""])
@pytest_twisted.ensureDeferred
async def test_a_user_who_waits_for_a_hidden_pull_uses_it(bench: Bench, login: str) -> None:
    """The user sees nothing of a pull with a login, and gets its image all the same."""
    logins = {"default": RegistryLogin(login, "b")} if login else {}
    await bench.pull(replace(ALICE, logins=logins))
    assert ("Waiting for" in (await bench.pull(BOB)).status_message) is bool(login)
    await bench.end(READY)
    with pytest.raises(NotAllowed, match="Only an admin"):
        await bench.gateway.owner.remove(ALICE, "docker", "app:1")


@pytest_twisted.ensureDeferred
async def test_a_removal_between_a_look_up_and_its_note(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user is told that there is no image, or gets work for a new one."""
    note_use, owner = bench.store.note_use, bench.gateway.owner

    async def remove_first(key: str, uid: int) -> bool:
        await owner.remove(ALICE, "docker", "app:1")
        return await note_use(key, uid)

    monkeypatch.setattr(bench.store, "note_use", remove_first)
    for expected in (None, State.INIT):
        await bench.pull(ALICE)
        await bench.end(READY)
        if expected is None:
            with pytest.raises(NotFound):
                await bench.gateway.lookup(BOB, "docker", "app:1")
            await bench.end(Expired())
        else:
            assert (await bench.pull(BOB)).status is expected


@pytest.mark.parametrize("request_name", ["remove", "expire"])
@pytest_twisted.ensureDeferred
async def test_a_use_between_the_judgment_and_the_removal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    """The removal is judged anew, and refused; an image that changes all the time stays, too."""
    outcome = PRIVATE if request_name == "expire" else READY
    await bench.pull(ALICE)
    await bench.end(replace(outcome, changes={**outcome.changes, "group_acl": ()}))
    store, calls = bench.store, 0
    step_name = {"remove": "expire", "expire": "untag"}[request_name]
    step: Callable[..., Awaitable[ImageRecord | None]] = getattr(store, step_name)
    request = getattr(bench.gateway.owner, request_name)

    async def use_first(*arguments: Any, **keywords: Any) -> ImageRecord | None:
        nonlocal calls
        calls += 1
        if request_name == "expire":
            await store.set_access(["mycluster"], ID, True, (2001, 2002), ())
        else:
            await bench.gateway.lookup(BOB, "docker", "app:1")
        return await step(*arguments, **keywords)

    monkeypatch.setattr(store, step_name, use_first)
    with pytest.raises(NotAllowed, match="Only an admin"):
        await request(ALICE, "docker", "app:1")
    assert calls == 1
    await request(ADMIN, "docker", "app:1")
    await bench.end(Expired())

    async def change_nothing(*_: object, **__: object) -> None:
        return None

    await bench.pull(ALICE, "app:2")
    await bench.end(READY)
    monkeypatch.setattr(store, step_name, change_nothing)
    with pytest.raises(Unavailable, match="Other requests change"):
        await request(ADMIN, "docker", "app:2")


@pytest_twisted.ensureDeferred
async def test_an_image_that_is_removed_again_and_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up ends, however often its image vanishes."""

    async def find_none(*_: object) -> bool:
        return False

    await bench.pull(ALICE)
    await bench.end(READY)
    monkeypatch.setattr(bench.store, "note_use", find_none)
    with pytest.raises(Unavailable, match="Other requests change"):
        await bench.gateway.lookup(BOB, "docker", "app:1")


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
        await bench.gateway.owner.expire(ADMIN, "docker", "app:1")
    await bench.pull(ALICE, "app:2")
    await bench.end(READY)
    await bench.gateway.owner.expire(ADMIN, "docker", "app:1")
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
