"""Limits on lists of images: on each row, each list, all lists, and their requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import TooMany, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.states import State
from shiftergw.web.lists import (
    BUILDING,
    MOST_REQUESTS,
    MOST_REQUESTS_OF_USER,
    SHORT,
    ListLimits,
    Lists,
)
from shiftergw.web.render import Answer
from shiftergw.web.spool import SpoolRoom
from tests.web.fakes import in_no_thread
from tests.work.waiting import until

ID = "a" * 64


def image(number: int, **members: Any) -> ImageRecord:
    """Return a READY record."""
    key = f"{number:024}"
    return ImageRecord(key, "s", "docker", (f"app:{number}",), status=State.READY, id=ID, **members)


async def pages_of(*pages: Sequence[ImageRecord]) -> AsyncIterator[Sequence[ImageRecord]]:
    """Yield pages of records."""
    for page in pages:
        yield page


def lists(limits: ListLimits | None = None, room: SpoolRoom | None = None) -> Lists:
    """Return a builder of lists."""
    return Lists(in_no_thread, limits or ListLimits(), reactor, room)


def rows(answer: Answer) -> list[dict[str, Any]]:
    """Return the rows of an answer and close its spool."""
    text = answer.body
    if answer.spool is not None:
        text = answer.spool.open().read()
        answer.spool.close()
    answer_rows: list[dict[str, Any]] = json.loads(text)["list"]
    return answer_rows


@pytest_twisted.ensureDeferred
async def test_rows_of_all_pages() -> None:
    """A list has the rows of all pages in their order; it may be empty."""
    answer = await lists().images(1, pages_of([image(1), image(2)], [], [image(3)]), labels=False)
    assert [row["tag"] for row in rows(answer)] == [["app:1"], ["app:2"], ["app:3"]]
    assert rows(await lists().images(1, pages_of(), labels=False)) == []


@pytest_twisted.ensureDeferred
async def test_long_rows_omit_the_configuration() -> None:
    """A list has no megabytes of environment of an old database, but it has the image."""
    large_image = image(1, env=("A=" + "\x01" * 130_000,), workdir="/w")
    answer = await lists().images(1, pages_of([large_image, image(2, env=("B=1",))]), labels=False)
    first, second = rows(answer)
    assert (first["ENV"], first["WORKDIR"], first["id"]) == ("MISSING", "MISSING", ID)
    assert second["ENV"] == ["B=1"]


@pytest_twisted.ensureDeferred
async def test_a_list_is_bounded() -> None:
    """A list that reaches its limit has all rows, the last ones without configuration."""
    records = [image(n, env=("A=" + "x" * 1000,)) for n in range(100)]
    answer = await lists(ListLimits(size=50_000)).images(
        1, pages_of(*[[r] for r in records]), labels=False
    )
    answer_rows = rows(answer)
    assert len(answer_rows) == 100
    assert 30 < sum(row["ENV"] != "MISSING" for row in answer_rows) < 50


@pytest_twisted.ensureDeferred
async def test_all_lists_share_their_room() -> None:
    """Lists use memory first, then disk; if both are full, the request fails with a reason."""
    records = [image(n, env=("A=" + "x" * 1000,)) for n in range(100)]
    room = SpoolRoom(memory=150_000, disk=150_000)
    builder = lists(room=room)
    first = await builder.images(1, pages_of(records), labels=False)
    second = await builder.images(1, pages_of(records), labels=False)
    assert first.spool is not None
    assert second.spool is not None
    assert (first.spool.in_memory, second.spool.in_memory) == (True, False)
    with pytest.raises(Unavailable, match="Too many long lists"):
        await builder.images(1, pages_of(records), labels=False)
    assert len(rows(second)) == 100
    assert len(rows(await builder.images(1, pages_of(records), labels=False))) == 100
    assert len(rows(first)) == 100
    assert (room.memory, room.disk) == (150_000, 150_000)
    assert len(first.body) < SHORT


@pytest_twisted.ensureDeferred
async def test_two_lists_are_built_at_a_time() -> None:
    """One list of each user and two in all are built; a hang-up or a failure makes room."""
    gates: list[Deferred[None]] = []
    users: list[int] = []

    async def gated_pages(user: int) -> AsyncIterator[Sequence[ImageRecord]]:
        gate: Deferred[None] = Deferred()
        gates.append(gate)
        users.append(user)
        await gate
        yield [image(1)]

    slow = lists()
    requests = [
        Deferred.fromCoroutine(slow.images(user, gated_pages(user), labels=False))
        for user in (1, 1, 1, 2, 3)
    ]
    assert BUILDING == 2
    await until(lambda: users == [1, 2])
    requests[1].cancel()
    with pytest.raises(CancelledError):
        await requests[1]
    gates[0].errback(Unavailable("away"))
    with pytest.raises(Unavailable):
        await requests[0]
    await until(lambda: users == [1, 2, 3])
    gates[1].callback(None)
    await until(lambda: users == [1, 2, 3, 1])
    for gate in gates[2:]:
        gate.callback(None)
    for request in requests[2:]:
        assert len(rows(await request)) == 1
    assert slow._users == {}


@pytest_twisted.ensureDeferred
async def test_requests_for_lists_are_limited() -> None:
    """Each occupies a connection, so their number is limited for a user, and for all users."""
    gate: Deferred[None] = Deferred()

    async def slow() -> AsyncIterator[Sequence[ImageRecord]]:
        await gate
        yield [image(1)]

    builder = lists()

    def ask(user: int) -> Deferred[Answer]:
        return Deferred.fromCoroutine(builder.images(user, slow(), labels=False))

    requests = [ask(1) for _ in range(MOST_REQUESTS_OF_USER)]
    with pytest.raises(TooMany, match=f"^{MOST_REQUESTS_OF_USER} requests of yours"):
        await ask(1)
    while len(requests) < MOST_REQUESTS:
        requests.append(ask(len(requests)))
    with pytest.raises(Unavailable, match="Too many lists"):
        await ask(1000)
    requests[-1].cancel()  # a client that hangs up makes room
    with pytest.raises(CancelledError):
        await requests.pop()
    requests.append(ask(1000))
    gate.callback(None)
    assert [len(rows(await request)) for request in requests[:-2]] == [1] * (MOST_REQUESTS - 2)
    assert len(rows(await requests[-1])) == 1
    assert len(rows(await ask(1))) == 1


@pytest_twisted.ensureDeferred
async def test_many_lists_that_fail_at_once() -> None:
    """When the first lists fail, all waiting ones fail without a deep recursion."""
    gates: list[Deferred[None]] = [Deferred() for _ in range(BUILDING)]

    async def failing(user: int) -> AsyncIterator[Sequence[ImageRecord]]:
        for gate in gates[user : user + 1]:
            await gate
        for error in [Unavailable("The store is away.")]:
            raise error
        yield []

    slow = lists()
    requests = [
        Deferred.fromCoroutine(slow.images(user, failing(user), labels=False))
        for user in range(MOST_REQUESTS)
    ]
    for gate in gates:
        gate.callback(None)
    for request in requests:
        with pytest.raises(Unavailable, match="away"):
            await request
