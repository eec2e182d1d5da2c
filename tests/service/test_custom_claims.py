"""Images that users make of uploads and imported files: polls, names, and owners."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.errors import (
    BadRequest,
    GatewayError,
    ImageRefused,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    UploadConflict,
)
from shiftergw.model.records import Failed
from shiftergw.model.requests import Session
from shiftergw.model.uploads import ImageFile, UploadDeclaration
from shiftergw.states import State
from tests.service.custom_bench import CustomBench
from tests.service.gateway_bench import (
    ADMIN,
    ALICE,
    ANONYMOUS_SESSION,
    BOB,
    BROKEN_PULL,
    ID,
)

OTHER_ID = "b" * 64


@pytest_twisted.ensureDeferred
async def test_polls_follow_an_upload_to_its_image(custom_bench: CustomBench) -> None:
    """Polls get INIT, PENDING, READY; the last one removes the upload, and later ones get READY."""
    upload_id = await custom_bench.upload()
    first = await custom_bench.make(upload_id, selector="app:1")
    assert (first.status, custom_bench.wakes) == (State.INIT, 1)
    assert first.upload == ImageFile(upload_id, "sif", 10, "30" * 32, "app:1")
    assert first.location is None
    assert (await custom_bench.make(upload_id, selector="app:1")).status is State.PENDING
    await custom_bench.finish()
    custom_bench.clock.advance(10_000)
    for _ in range(2):
        ready = await custom_bench.make(upload_id, selector="app:1")
        assert (ready.status, ready.id) == (State.READY, ID)
    assert await custom_bench.spool.list() == []
    assert custom_bench.wakes == 1


@pytest_twisted.ensureDeferred
async def test_a_policy_that_refuses_a_delivered_image(custom_bench: CustomBench) -> None:
    """Each pull asks the present policy, but for the client that polls for its result."""
    upload_id = await custom_bench.upload()
    await custom_bench.make(upload_id)
    await custom_bench.finish()
    custom_bench.policy_refusal = ImageRefused("The policy does not accept it.")
    assert (await custom_bench.make(upload_id)).status is State.READY
    custom_bench.clock.advance(11)
    with pytest.raises(ImageRefused):
        await custom_bench.make(upload_id)
    with pytest.raises(ImageRefused):
        await matching_id(custom_bench, ImageFile("", "sif", 10, "30" * 32))
    with pytest.raises(ImageRefused):
        await custom_bench.gateway.pull(ALICE, "custom", "app:1", (), (), "request")
    custom_bench.policy_refusal = None
    assert (await custom_bench.make(upload_id)).status is State.READY
    assert custom_bench.wakes == 1


async def matching_id(
    custom_bench: CustomBench,
    file: ImageFile,
    session: Session = ALICE,
    users: tuple[int, ...] = (),
) -> str | None:
    """Return the id of the image that makes an upload of a file unnecessary."""
    record = await custom_bench.gateway.find_image_of_content(session, "app:1", users, (), file)
    return None if record is None else record.id


@pytest_twisted.ensureDeferred
async def test_an_upload_that_is_not_needed(custom_bench: CustomBench) -> None:
    """The same content, image and access are found by the digest, once the image is READY."""
    file = ImageFile("", "sif", 10, "30" * 32, "a")
    upload_id = await custom_bench.upload()
    await custom_bench.make(upload_id, selector="a", users=(7,))
    assert await matching_id(custom_bench, file, users=(7,)) is None
    await custom_bench.finish()
    assert await matching_id(custom_bench, file, users=(7,)) == ID
    changes: dict[str, Any]
    for changes in (
        {"kind": ""},
        {"size": 11},
        {"sha256": "31" * 32},
        {"selector": "b"},
        {"sha256": ""},
    ):
        assert await matching_id(custom_bench, replace(file, **changes), users=(7,)) is None
    assert await matching_id(custom_bench, replace(file, public=True)) is None
    for users in ((), (7, 8)):
        assert await matching_id(custom_bench, file, users=users) is None
    with pytest.raises(BadRequest, match="no list of readers"):
        await matching_id(custom_bench, replace(file, public=True), users=(7,))
    with pytest.raises(NotAllowed, match="another user"):
        await matching_id(custom_bench, file, BOB, (7,))
    with pytest.raises(NotAuthenticated):
        await matching_id(custom_bench, file, ANONYMOUS_SESSION)
    await custom_bench.make(await custom_bench.upload(content=b"new"))
    assert await matching_id(custom_bench, file, users=(7,)) is None


@pytest_twisted.ensureDeferred
async def test_users_who_upload_one_content_together(custom_bench: CustomBench) -> None:
    """Each poll finds the image, whichever pull of it has ended last; no upload stays."""
    uploads = {session.uid: await custom_bench.upload(session) for session in (ALICE, BOB)}
    requests = [(uploads[ALICE.uid], ALICE, "a:1"), (uploads[BOB.uid], BOB, "b:1")]
    for request in requests:
        assert (await custom_bench.make(*request)).status is State.INIT
    await custom_bench.finish()
    await custom_bench.finish(uid=BOB.uid)
    for request in requests:
        ready = await custom_bench.make(*request)
        assert (ready.status, ready.id) == (State.READY, ID)
    assert await custom_bench.spool.list() == []
    assert custom_bench.wakes == 2


@pytest_twisted.ensureDeferred
async def test_an_image_whose_file_is_gone_is_uploaded_again(custom_bench: CustomBench) -> None:
    """After a failure on the READY image the file is uploaded again, and the image is made anew."""
    file = ImageFile("", "sif", 10, "30" * 32)
    await custom_bench.make(await custom_bench.upload())
    await custom_bench.finish()
    await custom_bench.gateway.files.uploads.cleanup.tidy_up()
    custom_bench.clock.advance(1)
    assert await matching_id(custom_bench, file) == ID
    await custom_bench.gateway.pull(ALICE, "custom", "app:1", (2002,), (), "request")
    await custom_bench.end(BROKEN_PULL)
    assert await matching_id(custom_bench, file) is None
    custom_bench.clock.advance(11)
    upload_id = await custom_bench.upload()
    assert (await custom_bench.make(upload_id)).status is State.INIT
    await custom_bench.finish()
    assert (await custom_bench.make(upload_id)).status is State.READY
    assert await matching_id(custom_bench, file) == ID


@pytest_twisted.ensureDeferred
async def test_a_failure_of_another_file_does_not_count(custom_bench: CustomBench) -> None:
    """The image of the first file is as good as before."""
    await custom_bench.make(await custom_bench.upload())
    await custom_bench.finish()
    custom_bench.clock.advance(1)
    await custom_bench.make(await custom_bench.upload(content=b"broken"))
    await custom_bench.end(BROKEN_PULL)
    assert await matching_id(custom_bench, ImageFile("", "sif", 10, "30" * 32)) == ID


@pytest_twisted.ensureDeferred
async def test_an_interrupted_upload_goes_once_it_is_not_needed(custom_bench: CustomBench) -> None:
    """The declaration that is answered with the image removes what was left of an upload."""
    await custom_bench.make(await custom_bench.upload())
    await custom_bench.finish()
    await custom_bench.gateway.files.uploads.cleanup.tidy_up()
    await custom_bench.upload()
    custom_bench.clock.advance(61)
    assert await matching_id(custom_bench, ImageFile("", "sif", 10, "30" * 32)) == ID
    assert await custom_bench.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_an_import_is_no_upload(custom_bench: CustomBench) -> None:
    """An imported file has no digest, so no declaration is answered with its image."""
    await custom_bench.import_file()
    await custom_bench.finish()
    record = await custom_bench.store.find(ALICE.system, "custom", ["app:1"])
    assert record is not None
    assert record.upload is not None
    assert await matching_id(custom_bench, record.upload) is None


@pytest_twisted.ensureDeferred
async def test_a_failure_is_answered_and_can_be_repeated(custom_bench: CustomBench) -> None:
    """The upload stays after a failure: the next pull needs no other upload."""
    upload_id = await custom_bench.upload()
    await custom_bench.make(upload_id)
    await custom_bench.end(BROKEN_PULL)
    assert (await custom_bench.make(upload_id)).status is State.FAILURE
    assert (await custom_bench.make(await custom_bench.upload(content=b"x"))).status is State.INIT
    await custom_bench.end(BROKEN_PULL)
    custom_bench.clock.advance(11)
    assert (await custom_bench.make(upload_id)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_a_pull_after_ready_makes_the_next_image(custom_bench: CustomBench) -> None:
    """Another upload of the owner replaces the image of the tag."""
    await custom_bench.make(await custom_bench.upload())
    await custom_bench.finish()
    second = await custom_bench.upload(content=b"new")
    assert (await custom_bench.make(second)).status is State.INIT
    await custom_bench.finish(OTHER_ID)
    assert (await custom_bench.make(second)).id == OTHER_ID


@pytest_twisted.ensureDeferred
async def test_only_one_upload_at_a_time_becomes_a_tag(custom_bench: CustomBench) -> None:
    """Polls of a second upload wait for the first, of any user, and see nothing of it."""
    first, second = await custom_bench.upload(), await custom_bench.upload(content=b"new")
    upload_of_bob = await custom_bench.upload(BOB)
    await custom_bench.make(first)
    for upload_id, session in ((second, ALICE), (upload_of_bob, BOB)):
        answer = await custom_bench.make(upload_id, session)
        assert (answer.status, answer.upload, answer.requested_by) == (State.PENDING, None, None)
        assert "Waiting" in answer.status_message
    assert custom_bench.wakes == 1
    await custom_bench.finish()
    with pytest.raises(NotAllowed, match="another user"):
        await custom_bench.make(upload_of_bob, BOB)
    assert (await custom_bench.make(second)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_names_belong_to_their_users(custom_bench: CustomBench) -> None:
    """Neither an upload nor a registry's image of another user replaces an uploaded image."""
    await custom_bench.make(await custom_bench.upload())
    await custom_bench.finish()
    upload_of_bob = await custom_bench.upload(BOB)
    for work in (
        custom_bench.make(upload_of_bob, BOB),
        custom_bench.gateway.pull(BOB, "custom", "app:1", (), (), "request"),
        custom_bench.import_file(BOB),
    ):
        with pytest.raises(NotAllowed, match="another user"):
            await work
    assert (
        await custom_bench.gateway.pull(BOB, "docker", "app:1", (), (), "r")
    ).status is State.INIT
    await custom_bench.end(BROKEN_PULL)
    assert (await custom_bench.make(await custom_bench.upload(ADMIN), ADMIN)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_names_are_checked_before_an_upload(custom_bench: CustomBench) -> None:
    """An invalid name is refused before an upload, in the words of the pull; no byte is stored."""
    await custom_bench.make(await custom_bench.upload())
    await custom_bench.finish()
    for session in (ALICE, ADMIN):
        await custom_bench.gateway.check_new_image(session, "app:1")
    await custom_bench.gateway.check_new_image(BOB, "app")
    upload_id = await custom_bench.upload(BOB)
    for session, name in ((BOB, "app:1"), (BOB, "a/b"), (BOB, f"a@sha256:{ID}"), (BOB, "A"),
                          (BOB, ""), (ANONYMOUS_SESSION, "new")):  # fmt: skip
        with pytest.raises(GatewayError) as caught:
            await custom_bench.gateway.check_new_image(session, name)
        with pytest.raises(type(caught.value)) as refusal:
            await custom_bench.make(upload_id, session, name)
        assert str(caught.value) == str(refusal.value)
    assert custom_bench.wakes == 1


@pytest_twisted.ensureDeferred
async def test_an_image_of_an_upload_stays_fresh(custom_bench: CustomBench) -> None:
    """A pull without an upload never asks a registry for the name; its readers may change."""
    await custom_bench.make(await custom_bench.upload())
    await custom_bench.finish()
    custom_bench.clock.advance(10_000)
    ready = await custom_bench.gateway.pull(ALICE, "custom", "app:1", (), (), "request")
    assert (ready.status, ready.id) == (State.READY, ID)
    change = await custom_bench.gateway.pull(ALICE, "custom", "app:1", (2002,), (), "request")
    assert (change.status, change.kind, change.upload) == (State.INIT, "acl", None)


@pytest_twisted.ensureDeferred
async def test_a_private_upload_is_hidden_from_other_users(custom_bench: CustomBench) -> None:
    """Neither its work nor its failure is in their queue; public ones are."""
    await custom_bench.make(await custom_bench.upload())
    assert [page async for page in custom_bench.gateway.queue(BOB)] == [[]]
    assert [len(page) async for page in custom_bench.gateway.queue(ALICE)] == [1]
    await custom_bench.end(Failed("PULLING", "broken", "wait", retryable=True, own=True))
    assert [page async for page in custom_bench.gateway.queue(BOB)] == [[]]
    await custom_bench.make(await custom_bench.upload(content=b"p"), name="app:2", public=True)
    assert [len(page) async for page in custom_bench.gateway.queue(BOB)] == [1]


@pytest_twisted.ensureDeferred
async def test_uploads_that_are_not_there(custom_bench: CustomBench) -> None:
    """An unknown upload, one of another user, and one that is incomplete make no work."""
    declaration = UploadDeclaration("mycluster", ALICE.uid, 10, "ab" * 32)
    incomplete = await custom_bench.gateway.files.uploads.declare(ALICE, declaration)
    with pytest.raises(UploadConflict):
        await custom_bench.make(incomplete.id)
    with pytest.raises(NotFound):
        await custom_bench.make("0" * 32)
    with pytest.raises(NotFound):
        await custom_bench.make(await custom_bench.upload(BOB), ALICE)
    assert custom_bench.wakes == 0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"itype": "docker"}, BadRequest),
        ({"name": "a/b:1"}, BadRequest),
        ({"name": f"app@sha256:{ID}"}, BadRequest),
        ({"name": "A:1"}, BadRequest),
        ({"public": True, "users": (2002,)}, BadRequest),
        ({"session": ANONYMOUS_SESSION}, NotAuthenticated),
    ],
)
@pytest_twisted.ensureDeferred
async def test_requests_that_are_refused(
    custom_bench: CustomBench, changes: dict[str, Any], error: type[GatewayError]
) -> None:
    """A request needs the type `custom` and a plain name; a public image may have no list."""
    with pytest.raises(error):
        await custom_bench.make(await custom_bench.upload(), **changes)
    if changes.keys() != {"session"}:
        with pytest.raises(error):
            await custom_bench.import_file(**changes)
    assert custom_bench.wakes == 0


@pytest_twisted.ensureDeferred
async def test_many_callers_create_one_job(custom_bench: CustomBench) -> None:
    """Of ten concurrent polls one creates the work."""
    upload_id = await custom_bench.upload()
    polls = [Deferred.fromCoroutine(custom_bench.make(upload_id)) for _ in range(10)]
    statuses = [(await poll).status for poll in polls]
    assert sorted(map(str, statuses)) == ["INIT", *["PENDING"] * 9]
