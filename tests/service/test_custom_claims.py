"""Images that users make of uploads and imported files: polls, names, and owners."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from shiftergw.cache.upload_spool import UploadFiles
from shiftergw.errors import (
    BadRequest,
    GatewayError,
    ImageRefused,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    UploadConflict,
)
from shiftergw.model.records import Failed, ImageRecord, Ready
from shiftergw.model.requests import Session
from shiftergw.model.uploads import ImageFile, UploadChoice, UploadDeclaration
from shiftergw.plumbing.threads import Threads
from shiftergw.rules.access import tag_owners
from shiftergw.service import upload_space
from shiftergw.service.gateway import Gateway, GatewayOptions
from shiftergw.service.imports import ImportChoice
from shiftergw.service.upload_space import UploadLimits
from shiftergw.service.uploads import Uploads
from shiftergw.service.user_files import UserFileServices
from shiftergw.service.worker_downloads import WorkerDownloads
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from tests.configurations import load_config
from tests.service.test_gateway import (
    ADMIN,
    ALICE,
    ANONYMOUS_SESSION,
    BOB,
    BROKEN_PULL,
    ID,
    Bench,
)

OTHER_ID = "b" * 64
PATH = "/data/x.squashfs"


class CustomBench(Bench):
    """A gateway with uploads.

    `refusal` is raised for every file that is imported, and `policy_refusal` for delivered images.
    """

    def __init__(self, store: SqliteStore, spool: UploadFiles, **changes: Any) -> None:
        """Configure the gateway with `changes`."""
        super().__init__(store, **changes)
        self.spool = spool
        self.refusal: GatewayError | None = None
        self.policy_refusal: ImageRefused | None = None
        self.checks: list[tuple[str, str]] = []
        files = UserFileServices(
            Uploads(spool, store, UploadLimits(), self.clock),
            WorkerDownloads(spool, lambda: self.seal, self.clock),
            self._check_file,
        )
        config = load_config({"FailureHold": 10, "PullUpdateTimeout": 300, **changes}).config
        self.gateway = Gateway(
            config,
            store,
            lambda: self.seal,
            self._wake,
            self.clock,
            self.queue,
            GatewayOptions(files, self._is_judged),
        )

    async def _is_judged(self, record: ImageRecord) -> bool:
        if self.policy_refusal is not None:
            raise self.policy_refusal
        return await super()._is_judged(record)

    async def _check_file(self, path: str, user: str) -> None:
        self.checks.append((path, user))
        if self.refusal is not None:
            raise self.refusal

    async def upload(self, session: Session = ALICE, content: bytes = b"0123456789") -> str:
        """Upload a file and return the id of the upload."""
        declaration = UploadDeclaration(
            session.system, session.uid, len(content), content[:1].hex() * 32, "sif"
        )
        upload = await self.gateway.files.uploads.declare(session, declaration)
        chunk = await self.gateway.files.uploads.receive(session, upload.id, 0, len(content))
        await chunk.write(content)
        await chunk.finish()
        return upload.id

    async def make(
        self, upload_id: str, session: Session = ALICE, name: str = "app:1", **members: Any
    ) -> Any:
        """Request an image of an upload."""
        users = members.pop("users", ())
        itype = members.pop("itype", "custom")
        choice = UploadChoice(upload_id, **members)
        return await self.gateway.pull(session, itype, name, users, (), "request", choice)

    async def import_file(
        self, session: Session = ALICE, path: str = PATH, name: str = "app:1", **members: Any
    ) -> Any:
        """Request to import a file."""
        users = members.pop("users", ())
        itype = members.pop("itype", "custom")
        choice = ImportChoice(path, members.pop("format", "squashfs"), **members)
        return await self.gateway.import_file(session, itype, name, users, (), "request", choice)

    async def finish(self, image_id: str = ID, uid: int = ALICE.uid) -> None:
        """End the work that waits longest as the worker does."""
        (waiting,) = await self.store.waiting(self.clock.seconds(), 1)
        assert waiting.upload is not None
        ready = next(iter(await self.store.find_id([waiting.system], image_id)), None)
        owners = tag_owners(waiting, ready)
        users = dict.fromkeys((*(waiting.user_acl or ()), uid, *owners.values()))
        acl = {"private": not waiting.upload.public, "user_acl": tuple(users), "group_acl": ()}
        changes = {"upload": waiting.upload, "requested_by": uid, "owners": owners, **acl}
        await self.end(Ready(image_id, changes))


@pytest_twisted.async_yield_fixture()
async def spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Threads
) -> AsyncIterator[UploadFiles]:
    """Yield a spool."""
    monkeypatch.setattr(upload_space, "DISK_RESERVE", 0)
    files = UploadFiles(tmp_path / "uploads", threads, reactor)
    await files.startService()
    yield files


@pytest_twisted.async_yield_fixture()
async def bench(tmp_path: Path, spool: UploadFiles) -> AsyncIterator[CustomBench]:
    """Yield a gateway on an empty store."""
    store = SqliteStore(reactor, tmp_path / "store.sqlite")
    await store.startService()
    yield CustomBench(store, spool, ImportUsers="all")
    await store.stopService()


@pytest_twisted.ensureDeferred
async def test_polls_follow_an_upload_to_its_image(bench: CustomBench) -> None:
    """Polls get INIT, PENDING, READY; the last one removes the upload, and later ones get READY."""
    upload_id = await bench.upload()
    first = await bench.make(upload_id, selector="app:1")
    assert (first.status, bench.wakes) == (State.INIT, 1)
    assert first.upload == ImageFile(upload_id, "sif", 10, "30" * 32, "app:1")
    assert first.location is None
    assert (await bench.make(upload_id, selector="app:1")).status is State.PENDING
    await bench.finish()
    bench.clock.advance(10_000)
    for _ in range(2):
        ready = await bench.make(upload_id, selector="app:1")
        assert (ready.status, ready.id) == (State.READY, ID)
    assert await bench.spool.list() == []
    assert bench.wakes == 1


@pytest_twisted.ensureDeferred
async def test_a_policy_that_refuses_a_delivered_image(bench: CustomBench) -> None:
    """Each pull asks the present policy, but for the client that polls for its result."""
    upload_id = await bench.upload()
    await bench.make(upload_id)
    await bench.finish()
    bench.policy_refusal = ImageRefused("The policy does not accept it.")
    assert (await bench.make(upload_id)).status is State.READY
    bench.clock.advance(11)
    with pytest.raises(ImageRefused):
        await bench.make(upload_id)
    with pytest.raises(ImageRefused):
        await matching_id(bench, ImageFile("", "sif", 10, "30" * 32))
    with pytest.raises(ImageRefused):
        await bench.gateway.pull(ALICE, "custom", "app:1", (), (), "request")
    bench.policy_refusal = None
    assert (await bench.make(upload_id)).status is State.READY
    assert bench.wakes == 1


async def matching_id(
    bench: CustomBench, file: ImageFile, session: Session = ALICE, users: tuple[int, ...] = ()
) -> str | None:
    """Return the id of the image that makes an upload of a file unnecessary."""
    record = await bench.gateway.find_image_of_content(session, "app:1", users, (), file)
    return None if record is None else record.id


@pytest_twisted.ensureDeferred
async def test_an_upload_that_is_not_needed(bench: CustomBench) -> None:
    """The same content, image and access are found by the digest, once the image is READY."""
    file = ImageFile("", "sif", 10, "30" * 32, "a")
    upload_id = await bench.upload()
    await bench.make(upload_id, selector="a", users=(7,))
    assert await matching_id(bench, file, users=(7,)) is None
    await bench.finish()
    assert await matching_id(bench, file, users=(7,)) == ID
    changes: dict[str, Any]
    for changes in (
        {"kind": ""},
        {"size": 11},
        {"sha256": "31" * 32},
        {"selector": "b"},
        {"sha256": ""},
    ):
        assert await matching_id(bench, replace(file, **changes), users=(7,)) is None
    assert await matching_id(bench, replace(file, public=True)) is None
    for users in ((), (7, 8)):
        assert await matching_id(bench, file, users=users) is None
    with pytest.raises(BadRequest, match="no list of readers"):
        await matching_id(bench, replace(file, public=True), users=(7,))
    with pytest.raises(NotAllowed, match="another user"):
        await matching_id(bench, file, BOB, (7,))
    with pytest.raises(NotAuthenticated):
        await matching_id(bench, file, ANONYMOUS_SESSION)
    await bench.make(await bench.upload(content=b"new"))
    assert await matching_id(bench, file, users=(7,)) is None


@pytest_twisted.ensureDeferred
async def test_users_who_upload_one_content_together(bench: CustomBench) -> None:
    """Each poll finds the image, whichever pull of it has ended last; no upload stays."""
    uploads = {session.uid: await bench.upload(session) for session in (ALICE, BOB)}
    requests = [(uploads[ALICE.uid], ALICE, "a:1"), (uploads[BOB.uid], BOB, "b:1")]
    for request in requests:
        assert (await bench.make(*request)).status is State.INIT
    await bench.finish()
    await bench.finish(uid=BOB.uid)
    for request in requests:
        ready = await bench.make(*request)
        assert (ready.status, ready.id) == (State.READY, ID)
    assert await bench.spool.list() == []
    assert bench.wakes == 2


@pytest_twisted.ensureDeferred
async def test_an_image_whose_file_is_gone_is_uploaded_again(bench: CustomBench) -> None:
    """After a failure on the READY image the file is uploaded again, and the image is made anew."""
    file = ImageFile("", "sif", 10, "30" * 32)
    await bench.make(await bench.upload())
    await bench.finish()
    await bench.gateway.files.uploads.cleanup.tidy_up()
    bench.clock.advance(1)
    assert await matching_id(bench, file) == ID
    await bench.gateway.pull(ALICE, "custom", "app:1", (2002,), (), "request")
    await bench.end(BROKEN_PULL)
    assert await matching_id(bench, file) is None
    bench.clock.advance(11)
    upload_id = await bench.upload()
    assert (await bench.make(upload_id)).status is State.INIT
    await bench.finish()
    assert (await bench.make(upload_id)).status is State.READY
    assert await matching_id(bench, file) == ID


@pytest_twisted.ensureDeferred
async def test_a_failure_of_another_file_does_not_count(bench: CustomBench) -> None:
    """The image of the first file is as good as before."""
    await bench.make(await bench.upload())
    await bench.finish()
    bench.clock.advance(1)
    await bench.make(await bench.upload(content=b"broken"))
    await bench.end(BROKEN_PULL)
    assert await matching_id(bench, ImageFile("", "sif", 10, "30" * 32)) == ID


@pytest_twisted.ensureDeferred
async def test_an_interrupted_upload_goes_once_it_is_not_needed(bench: CustomBench) -> None:
    """The declaration that is answered with the image removes what was left of an upload."""
    await bench.make(await bench.upload())
    await bench.finish()
    await bench.gateway.files.uploads.cleanup.tidy_up()
    await bench.upload()
    bench.clock.advance(61)
    assert await matching_id(bench, ImageFile("", "sif", 10, "30" * 32)) == ID
    assert await bench.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_an_import_is_no_upload(bench: CustomBench) -> None:
    """An imported file has no digest, so no declaration is answered with its image."""
    await bench.import_file()
    await bench.finish()
    record = await bench.store.find(ALICE.system, "custom", ["app:1"])
    assert record is not None
    assert record.upload is not None
    assert await matching_id(bench, record.upload) is None


@pytest_twisted.ensureDeferred
async def test_a_failure_is_answered_and_can_be_repeated(bench: CustomBench) -> None:
    """The upload stays after a failure: the next pull needs no other upload."""
    upload_id = await bench.upload()
    await bench.make(upload_id)
    await bench.end(BROKEN_PULL)
    assert (await bench.make(upload_id)).status is State.FAILURE
    assert (await bench.make(await bench.upload(content=b"x"))).status is State.INIT
    await bench.end(BROKEN_PULL)
    bench.clock.advance(11)
    assert (await bench.make(upload_id)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_a_pull_after_ready_makes_the_next_image(bench: CustomBench) -> None:
    """Another upload of the owner replaces the image of the tag."""
    await bench.make(await bench.upload())
    await bench.finish()
    second = await bench.upload(content=b"new")
    assert (await bench.make(second)).status is State.INIT
    await bench.finish(OTHER_ID)
    assert (await bench.make(second)).id == OTHER_ID


@pytest_twisted.ensureDeferred
async def test_only_one_upload_at_a_time_becomes_a_tag(bench: CustomBench) -> None:
    """Polls of a second upload wait for the first, of any user, and see nothing of it."""
    first, second = await bench.upload(), await bench.upload(content=b"new")
    upload_of_bob = await bench.upload(BOB)
    await bench.make(first)
    for upload_id, session in ((second, ALICE), (upload_of_bob, BOB)):
        answer = await bench.make(upload_id, session)
        assert (answer.status, answer.upload, answer.requested_by) == (State.PENDING, None, None)
        assert "Waiting" in answer.status_message
    assert bench.wakes == 1
    await bench.finish()
    with pytest.raises(NotAllowed, match="another user"):
        await bench.make(upload_of_bob, BOB)
    assert (await bench.make(second)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_names_belong_to_their_users(bench: CustomBench) -> None:
    """Neither an upload nor a registry's image of another user replaces an uploaded image."""
    await bench.make(await bench.upload())
    await bench.finish()
    upload_of_bob = await bench.upload(BOB)
    for work in (
        bench.make(upload_of_bob, BOB),
        bench.gateway.pull(BOB, "custom", "app:1", (), (), "request"),
        bench.import_file(BOB),
    ):
        with pytest.raises(NotAllowed, match="another user"):
            await work
    assert (await bench.gateway.pull(BOB, "docker", "app:1", (), (), "r")).status is State.INIT
    await bench.end(BROKEN_PULL)
    assert (await bench.make(await bench.upload(ADMIN), ADMIN)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_names_are_checked_before_an_upload(bench: CustomBench) -> None:
    """An invalid name is refused before an upload, in the words of the pull; no byte is stored."""
    await bench.make(await bench.upload())
    await bench.finish()
    for session in (ALICE, ADMIN):
        await bench.gateway.check_new_image(session, "app:1")
    await bench.gateway.check_new_image(BOB, "app")
    upload_id = await bench.upload(BOB)
    for session, name in ((BOB, "app:1"), (BOB, "a/b"), (BOB, f"a@sha256:{ID}"), (BOB, "A"),
                          (BOB, ""), (ANONYMOUS_SESSION, "new")):  # fmt: skip
        with pytest.raises(GatewayError) as caught:
            await bench.gateway.check_new_image(session, name)
        with pytest.raises(type(caught.value)) as refusal:
            await bench.make(upload_id, session, name)
        assert str(caught.value) == str(refusal.value)
    assert bench.wakes == 1


@pytest_twisted.ensureDeferred
async def test_an_image_of_an_upload_stays_fresh(bench: CustomBench) -> None:
    """A pull without an upload never asks a registry for the name; its readers may change."""
    await bench.make(await bench.upload())
    await bench.finish()
    bench.clock.advance(10_000)
    ready = await bench.gateway.pull(ALICE, "custom", "app:1", (), (), "request")
    assert (ready.status, ready.id) == (State.READY, ID)
    change = await bench.gateway.pull(ALICE, "custom", "app:1", (2002,), (), "request")
    assert (change.status, change.kind, change.upload) == (State.INIT, "acl", None)


@pytest_twisted.ensureDeferred
async def test_others_see_nothing_of_a_private_upload(bench: CustomBench) -> None:
    """Neither its work nor its failure is in their queue; public ones are."""
    await bench.make(await bench.upload())
    assert [page async for page in bench.gateway.queue(BOB)] == [[]]
    assert [len(page) async for page in bench.gateway.queue(ALICE)] == [1]
    await bench.end(Failed("PULLING", "broken", "wait", retryable=True, own=True))
    assert [page async for page in bench.gateway.queue(BOB)] == [[]]
    await bench.make(await bench.upload(content=b"p"), name="app:2", public=True)
    assert [len(page) async for page in bench.gateway.queue(BOB)] == [1]


@pytest_twisted.ensureDeferred
async def test_uploads_that_are_not_there(bench: CustomBench) -> None:
    """An unknown upload, one of another user, and one that is incomplete make no work."""
    declaration = UploadDeclaration("mycluster", ALICE.uid, 10, "ab" * 32)
    incomplete = await bench.gateway.files.uploads.declare(ALICE, declaration)
    with pytest.raises(UploadConflict):
        await bench.make(incomplete.id)
    with pytest.raises(NotFound):
        await bench.make("0" * 32)
    with pytest.raises(NotFound):
        await bench.make(await bench.upload(BOB), ALICE)
    assert bench.wakes == 0


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
    bench: CustomBench, changes: dict[str, Any], error: type[GatewayError]
) -> None:
    """A request needs the type `custom` and a plain name; a public image may have no list."""
    with pytest.raises(error):
        await bench.make(await bench.upload(), **changes)
    if changes.keys() != {"session"}:
        with pytest.raises(error):
            await bench.import_file(**changes)
    assert bench.wakes == 0


@pytest_twisted.ensureDeferred
async def test_many_callers_create_one_job(bench: CustomBench) -> None:
    """Of ten concurrent polls one creates the work."""
    upload_id = await bench.upload()
    polls = [Deferred.fromCoroutine(bench.make(upload_id)) for _ in range(10)]
    statuses = [(await poll).status for poll in polls]
    assert sorted(map(str, statuses)) == ["INIT", *["PENDING"] * 9]


@pytest_twisted.ensureDeferred
async def test_an_import_and_its_polls(bench: CustomBench) -> None:
    """The original's request works; once the image is not fresh, the file is read again."""
    first = await bench.import_file()
    assert (first.status, bench.checks) == (State.INIT, [(PATH, "alice")])
    file = ImageFile(kind="squashfs", path=PATH, user="alice", public=True)
    assert first.upload == file
    assert (await bench.import_file()).status is State.PENDING
    await bench.finish()
    assert (await bench.import_file()).status is State.READY
    bench.clock.advance(301)
    assert (await bench.import_file()).status is State.INIT
    assert bench.wakes == 2


@pytest_twisted.ensureDeferred
async def test_another_access_is_another_image(bench: CustomBench) -> None:
    """A fresh image does not answer a request for fewer or more readers; a poll of it does."""
    steps: list[dict[str, Any]] = [
        {"public": True},
        {"users": (BOB.uid,)},
        {"users": (BOB.uid, 2003)},
        {"users": (2003,)},
        {"public": True},
    ]
    for step in steps:
        assert (await bench.import_file(**step)).status is State.INIT
        await bench.finish()
        assert (await bench.import_file(**step)).status is State.READY
    assert bench.wakes == len(steps)


@pytest_twisted.ensureDeferred
async def test_an_upload_with_other_readers_is_another_pull(bench: CustomBench) -> None:
    """A request for other readers waits for the first pull, and is not answered by its result."""
    upload_id = await bench.upload()
    await bench.make(upload_id, users=(BOB.uid,))
    changes: list[dict[str, Any]] = [{}, {"public": True}]
    for members in changes:
        answer = await bench.make(upload_id, **members)
        assert (answer.status, answer.upload) == (State.PENDING, None)
        assert "your other pull" in answer.status_message
    await bench.finish()
    assert (await bench.make(upload_id)).status is State.INIT


@pytest_twisted.ensureDeferred
async def test_a_file_that_may_not_be_read(bench: CustomBench) -> None:
    """The refusal comes before any work, and polls of a READY image do not look again."""
    bench.refusal = NotAllowed("not public")
    with pytest.raises(NotAllowed, match="not public"):
        await bench.import_file()
    assert bench.wakes == 0
    with pytest.raises(BadRequest, match="format"):
        await bench.import_file(format="cramfs")


@pytest.mark.parametrize(
    ("users", "may_import"),
    [
        ("all", True),
        (["alice"], True),
        (["bob"], False),
        ([], False),
        ("none", False),
        (None, False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_who_may_import(
    bench: CustomBench, spool: UploadFiles, users: Any, may_import: bool
) -> None:
    """`ImportUsers` is the original's key; with an empty list no user may import."""
    changes = {} if users is None else {"ImportUsers": users}
    place = CustomBench(bench.store, spool, **changes)
    if may_import:
        assert (await place.import_file()).status is State.INIT
    else:
        with pytest.raises(NotAllowed, match="shiftergw import"):
            await place.import_file()


@pytest.mark.parametrize(
    ("members", "command", "public"),
    [
        ({}, [], True),
        ({"users": (2002,)}, [], False),
        ({}, ["cat", "{user}", "{path}"], False),
        ({"public": True}, ["cat", "{user}", "{path}"], True),
    ],
)
@pytest_twisted.ensureDeferred
async def test_who_may_use_an_imported_image(
    bench: CustomBench, spool: UploadFiles, members: Any, command: list[str], public: bool
) -> None:
    """A public file makes a public image; a file that was read as the user makes a private one."""
    place = CustomBench(bench.store, spool, ImportUsers="all", ImportCommand=command)
    record = await place.import_file(**members)
    assert record.upload.public is public


@pytest_twisted.ensureDeferred
async def test_a_gateway_without_uploads(bench: CustomBench) -> None:
    """The error says that the gateway takes no uploads."""
    gateway = Gateway(
        load_config({}).config,
        bench.store,
        lambda: bench.seal,
        lambda: None,
        bench.clock,
        bench.queue,
    )
    choice = UploadChoice("0" * 32)
    with pytest.raises(NotAllowed, match="no files"):
        await gateway.pull(ALICE, "custom", "app:1", (), (), "request", choice)
    with pytest.raises(NotAllowed, match="no files"):
        _ = gateway.files
    choice_of_file = ImportChoice(PATH, "squashfs")
    with pytest.raises(NotAllowed, match="no files"):
        await gateway.import_file(ALICE, "custom", "app:1", (), (), "request", choice_of_file)
