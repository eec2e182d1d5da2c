"""Uploads: declarations, chunks, quotas, and the removal of abandoned ones."""

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

from shiftergw.cache.upload_spool import UploadFiles
from shiftergw.cache.upload_states import data_path
from shiftergw.errors import (
    NoSpace,
    NotAuthenticated,
    NotFound,
    TooLarge,
    TooMany,
    Unavailable,
    UploadConflict,
)
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest, Session
from shiftergw.model.uploads import ImageFile, UploadDeclaration, UserUpload
from shiftergw.plumbing.threads import Threads
from shiftergw.service import upload_space
from shiftergw.service import uploads as uploads_module
from shiftergw.service.upload_space import UploadLimits
from shiftergw.service.uploads import CHUNKS_PER_USER, Uploads
from shiftergw.store.sqlite.store import SqliteStore
from tests.service.test_gateway import ALICE, ANONYMOUS_SESSION, BOB, READY, START

KEEP = 3600.0
LIMITS = UploadLimits(upload=1000, user=1500, space=2500, keep_seconds=KEEP)


class UploadBench:
    """Uploads in a real spool, with a store and a simulated clock."""

    def __init__(self, store: SqliteStore, spool: UploadFiles, directory: Path) -> None:
        """Start at `START`."""
        self.store, self.spool, self.directory = store, spool, directory
        self.clock = Clock()
        self.clock.advance(START)
        self.uploads = Uploads(spool, store, LIMITS, self.clock)

    async def declare(self, session: Session = ALICE, size: int = 10, **changes: Any) -> str:
        """Declare an upload and return its id."""
        declaration = UploadDeclaration(session.system, session.uid, size, "ab" * 32)
        return (await self.uploads.declare(session, replace(declaration, **changes))).id

    async def send(self, upload_id: str, data: bytes, offset: int = 0) -> int:
        """Send a chunk and return the new offset."""
        chunk = await self.uploads.receive(ALICE, upload_id, offset, len(data))
        await chunk.write(data)
        return (await chunk.finish()).offset


@pytest_twisted.async_yield_fixture()
async def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Threads
) -> AsyncIterator[UploadBench]:
    """Yield uploads in a new spool."""
    monkeypatch.setattr(upload_space, "DISK_RESERVE", 0)
    store = SqliteStore(reactor, tmp_path / "store.sqlite")
    await store.startService()
    spool = UploadFiles(tmp_path / "uploads", threads, reactor)
    await spool.startService()
    yield UploadBench(store, spool, tmp_path / "uploads")
    await store.stopService()


@pytest_twisted.ensureDeferred
async def test_the_same_declaration_finds_the_upload_again(bench: UploadBench) -> None:
    """Size, digest, kind, user and system make an upload; the file's name does not."""
    first = await bench.declare()
    assert await bench.declare(filename="other") == first
    for changes in ({"size": 11}, {"sha256": "cd" * 32}, {"kind": "sif"}):
        assert await bench.declare(**changes) != first
    assert await bench.declare(BOB) != first


@pytest_twisted.ensureDeferred
async def test_chunks_append_and_the_offset_counts(bench: UploadBench) -> None:
    """Each chunk starts at the offset of the upload; a complete upload takes no more."""
    upload_id = await bench.declare()
    assert await bench.send(upload_id, b"0123") == 4
    assert await bench.send(upload_id, b"456789", 4) == 10
    assert data_path(bench.directory, upload_id).read_bytes() == b"0123456789"
    assert (await bench.uploads.get_complete(ALICE, upload_id)).is_complete
    with pytest.raises(TooLarge):
        await bench.send(upload_id, b"x", 10)


@pytest.mark.parametrize("offset", [0, 3, 5, 10**15])
@pytest_twisted.ensureDeferred
async def test_a_wrong_offset_is_answered_with_the_true_one(
    bench: UploadBench, offset: int
) -> None:
    """The client learns where to continue, and nothing is written."""
    upload_id = await bench.declare()
    await bench.send(upload_id, b"0123")
    with pytest.raises(UploadConflict) as caught:
        await bench.send(upload_id, b"xy", offset)
    assert caught.value.offset == 4
    with pytest.raises(UploadConflict) as caught:
        await bench.uploads.get_complete(ALICE, upload_id)
    assert caught.value.offset == 4
    assert await bench.send(upload_id, b"456789", 4) == 10


@pytest_twisted.ensureDeferred
async def test_a_chunk_that_breaks_off_keeps_its_bytes(bench: UploadBench) -> None:
    """A slow client on a bad line makes progress with each attempt."""
    upload_id = await bench.declare()
    chunk = await bench.uploads.receive(ALICE, upload_id, 0, 10)
    await chunk.write(b"012")
    await chunk.abort()
    await chunk.abort()
    assert (await bench.uploads.get(ALICE, upload_id)).offset == 3
    with pytest.raises(UploadConflict):
        await chunk.write(b"x")


@pytest_twisted.ensureDeferred
async def test_a_second_writer_takes_over(bench: UploadBench) -> None:
    """The connection of a client that was killed may live on; it cannot damage the upload."""
    upload_id = await bench.declare()
    dead_chunk = await bench.uploads.receive(ALICE, upload_id, 0, 10)
    await dead_chunk.write(b"012")
    with pytest.raises(UploadConflict) as caught:
        await bench.uploads.receive(ALICE, upload_id, 0, 10)
    assert caught.value.offset == 3
    assert await bench.send(upload_id, b"3456789", 3) == 10
    for work in (dead_chunk.write(b"xxx"), dead_chunk.finish()):
        with pytest.raises(UploadConflict):
            await work
    assert data_path(bench.directory, upload_id).read_bytes() == b"0123456789"


@pytest_twisted.ensureDeferred
async def test_two_writers_at_the_same_moment(bench: UploadBench) -> None:
    """Of two chunks that are opened together at most one is written."""
    upload_id = await bench.declare()
    openings = [
        Deferred.fromCoroutine(bench.uploads.receive(ALICE, upload_id, 0, 4)) for _ in range(2)
    ]
    chunks = []
    for opening in openings:
        try:
            chunks.append(await opening)
        except UploadConflict:
            continue
    results = []
    for chunk in chunks:
        try:
            await chunk.write(b"0123")
            results.append((await chunk.finish()).offset)
        except UploadConflict:
            continue
    assert results == [4]
    assert data_path(bench.directory, upload_id).read_bytes() == b"0123"


@pytest_twisted.ensureDeferred
async def test_uploads_of_others_do_not_exist(bench: UploadBench) -> None:
    """Another user, another system and a user without a name get `NotFound`."""
    upload_id = await bench.declare()
    for session in (BOB, replace(ALICE, system="sister"), ANONYMOUS_SESSION):
        for work in (
            bench.uploads.get(session, upload_id),
            bench.uploads.receive(session, upload_id, 0, 1),
            bench.uploads.remove(session, upload_id),
            bench.uploads.get_complete(session, upload_id),
        ):
            with pytest.raises(NotFound):
                await work
    with pytest.raises(NotFound):
        await bench.uploads.get(ALICE, "0" * 32)


@pytest_twisted.ensureDeferred
async def test_limits(bench: UploadBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of an upload, a user, all users and the disk have different errors."""
    with pytest.raises(TooLarge, match="MaxUploadSize"):
        await bench.declare(size=1001)
    await bench.declare(size=1000)
    with pytest.raises(TooMany, match="UploadQuota"):
        await bench.declare(size=501)
    await bench.declare(size=500)
    await bench.declare(BOB, size=900)
    with pytest.raises(NoSpace, match="UploadSpace"):
        await bench.declare(BOB, size=101)
    monkeypatch.setattr(upload_space, "DISK_RESERVE", 1 << 62)
    with pytest.raises(NoSpace, match="disk"):
        await bench.declare(BOB, size=100)
    with pytest.raises(NotAuthenticated):
        await bench.declare(ANONYMOUS_SESSION)


@pytest_twisted.ensureDeferred
async def test_the_number_of_uploads_has_a_limit(
    bench: UploadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiny uploads count, too."""
    monkeypatch.setattr(upload_space, "UPLOADS_PER_USER", 2)
    await bench.declare(size=1)
    await bench.declare(size=2)
    with pytest.raises(TooMany):
        await bench.declare(size=3)


@pytest_twisted.ensureDeferred
async def test_one_user_has_a_share_of_the_connections(bench: UploadBench) -> None:
    """More chunks at the same time are refused until one of them has ended."""
    ids = [await bench.declare(size=size) for size in range(1, CHUNKS_PER_USER + 2)]
    chunks = [await bench.uploads.receive(ALICE, upload_id, 0, 1) for upload_id in ids[:-1]]
    with pytest.raises(TooMany):
        await bench.uploads.receive(ALICE, ids[-1], 0, 1)
    await chunks[0].abort()
    await (await bench.uploads.receive(ALICE, ids[-1], 0, 1)).abort()
    for chunk in chunks[1:]:
        await chunk.abort()


@pytest_twisted.ensureDeferred
async def test_refused_chunks_do_not_count(bench: UploadBench) -> None:
    """A client that asks with wrong offsets keeps its share."""
    upload_id = await bench.declare()
    for _ in range(CHUNKS_PER_USER + 2):
        with pytest.raises(UploadConflict):
            await bench.uploads.receive(ALICE, upload_id, 5, 1)
    assert await bench.send(upload_id, b"0") == 1


@pytest_twisted.ensureDeferred
async def test_removal_cuts_a_chunk_off(bench: UploadBench) -> None:
    """A removed upload stays removed, although a chunk of it was arriving."""
    upload_id = await bench.declare()
    chunk = await bench.uploads.receive(ALICE, upload_id, 0, 10)
    await bench.uploads.remove(ALICE, upload_id)
    with pytest.raises(NotFound, match="removed"):
        await chunk.write(b"x")
    assert list(bench.directory.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_abandoned_uploads_are_removed(bench: UploadBench) -> None:
    """An upload is removed `UploadKeep` after its last change, not before."""
    upload_id = await bench.declare()
    bench.clock.advance(KEEP - 1)
    await bench.send(upload_id, b"0")
    bench.clock.advance(KEEP - 1)
    await bench.uploads.cleanup.tidy_up()
    upload = await bench.uploads.get(ALICE, upload_id)
    assert bench.uploads.expiration(upload) == START + 2 * KEEP - 1
    bench.clock.advance(2)
    await bench.uploads.cleanup.tidy_up()
    assert await bench.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_a_declaration_starts_the_expiration_anew(bench: UploadBench) -> None:
    """A client that continues an upload at its last moment does not lose the upload."""
    upload_id = await bench.declare()
    await bench.send(upload_id, b"0123")
    bench.clock.advance(KEEP - 1)
    assert await bench.declare() == upload_id
    bench.clock.advance(KEEP - 1)
    await bench.uploads.cleanup.tidy_up()
    assert await bench.send(upload_id, b"456789", 4) == 10


@pytest_twisted.ensureDeferred
async def test_a_declaration_of_an_upload_that_has_just_expired(
    bench: UploadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The declaration creates a new upload."""
    upload_id = await bench.declare()
    (upload,) = await bench.spool.list()

    async def list_earlier() -> list[UserUpload]:
        return [upload]

    await bench.spool.remove(upload_id)
    with monkeypatch.context() as patch:
        patch.setattr(bench.spool, "list", list_earlier)
        next_id = await bench.declare()
    assert next_id != upload_id
    assert [upload.id for upload in await bench.spool.list()] == [next_id]


@pytest_twisted.ensureDeferred
async def test_a_complete_upload_is_of_use_on_a_full_disk(
    bench: UploadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A declaration finds the upload, although its time cannot be stored."""
    upload_id = await bench.declare()

    async def fail(upload_id: str, now: float) -> UserUpload:
        raise NoSpace(f"{upload_id} {now}")

    monkeypatch.setattr(bench.spool, "touch", fail)
    assert await bench.declare() == upload_id


@pytest_twisted.ensureDeferred
async def test_an_upload_that_cannot_be_removed(
    bench: UploadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other uploads are removed, and the removal is tried again."""
    uploads = [await bench.declare(), await bench.declare(BOB)]
    remove = bench.spool.remove

    async def fail_once(upload_id: str, expected: UserUpload | None = None) -> bool:
        monkeypatch.setattr(bench.spool, "remove", remove)
        raise Unavailable(f"{upload_id} is locked", detail=str(expected))

    monkeypatch.setattr(bench.spool, "remove", fail_once)
    bench.clock.advance(KEEP + 1)
    await bench.uploads.cleanup.tidy_up()
    (upload,) = await bench.spool.list()
    assert upload.id in uploads
    await bench.uploads.cleanup.tidy_up()
    assert await bench.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_an_interrupted_upload_of_an_image_that_is_there(bench: UploadBench) -> None:
    """The upload is removed unless it changes, or becomes an image; those of other users stay."""
    file = ImageFile("", "sif", 10, "ab" * 32)
    upload_id = await bench.declare(kind="sif")
    await bench.declare(BOB, kind="sif")
    await bench.declare(kind="squashfs")
    chunk = await bench.uploads.receive(ALICE, upload_id, 0, 10)
    bench.clock.advance(61)
    await bench.uploads.cleanup.forget_content(ALICE, file)
    await chunk.abort()
    await bench.uploads.cleanup.forget_content(ALICE, file)
    assert len(await bench.spool.list()) == 3
    wish = PullRequest("mycluster", "custom", ImageReference.parse("a:1"), 2001, upload=file)
    record, _ = await bench.store.claim(wish, START)
    await bench.uploads.note_pull(upload_id, record.key)
    bench.clock.advance(61)
    await bench.uploads.cleanup.forget_content(ALICE, file)
    assert await bench.spool.get(upload_id) is not None
    await bench.store.abandon(record.key)
    await bench.uploads.cleanup.forget_content(ALICE, file)
    assert await bench.spool.get(upload_id) is None
    assert len(await bench.spool.list()) == 2


@pytest_twisted.ensureDeferred
async def test_an_upload_goes_when_its_image_is_made(bench: UploadBench) -> None:
    """An upload stays while its pull waits, however long; after READY it is removed."""
    upload_id = await bench.declare()
    file = ImageFile(upload_id, "sif", 10, "ab" * 32)
    wish = PullRequest("mycluster", "custom", ImageReference.parse("a:1"), 2001, upload=file)
    record, _ = await bench.store.claim(wish, START)
    await bench.uploads.note_pull(upload_id, record.key)
    bench.clock.advance(10 * KEEP)
    await bench.uploads.cleanup.tidy_up()
    assert await bench.spool.get(upload_id) is not None
    work = await bench.store.begin(record.key, "here:1", START, 60)
    assert work is not None
    assert work.upload == file
    await bench.store.finish(work.key, work.attempt, READY, START)
    await bench.uploads.cleanup.tidy_up()
    assert await bench.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_the_list_has_the_own_uploads(bench: UploadBench) -> None:
    """The upload with the last change is first; each has its images in flight, not ended ones."""
    old_upload = await bench.declare()
    await bench.declare(BOB)
    await bench.declare(replace(ALICE, system="sister"))
    bench.clock.advance(1)
    new_upload = await bench.declare(size=11)
    uploads = await bench.uploads.list_own(ALICE)
    assert [(upload.id, images) for upload, images in uploads] == [
        (new_upload, []),
        (old_upload, []),
    ]
    bench.clock.advance(1)
    file = ImageFile(old_upload, "sif", 10, "ab" * 32)
    for name in ("a:1", "b:1"):
        wish = PullRequest("mycluster", "custom", ImageReference.parse(name), 2001, upload=file)
        record, _ = await bench.store.claim(wish, START)
        await bench.uploads.note_pull(old_upload, record.key)
    work = await bench.store.begin(record.key, "here:1", START, 60)
    assert work is not None
    uploads = await bench.uploads.list_own(ALICE)
    assert [(upload.id, images) for upload, images in uploads] == [
        (old_upload, ["a:1", "b:1"]),
        (new_upload, []),
    ]
    await bench.store.finish(work.key, work.attempt, READY, START)
    assert (await bench.uploads.list_own(ALICE))[0][1] == ["a:1"]
    with pytest.raises(NotAuthenticated):
        await bench.uploads.list_own(ANONYMOUS_SESSION)


@pytest_twisted.ensureDeferred
async def test_an_upload_stays_for_its_last_pull(bench: UploadBench) -> None:
    """Two names of one upload: the first that is READY leaves the upload to the second."""
    upload_id = await bench.declare()
    file = ImageFile(upload_id, "sif", 10, "ab" * 32)
    records = []
    for name in ("a:1", "b:1"):
        wish = PullRequest("mycluster", "custom", ImageReference.parse(name), 2001, upload=file)
        record, _ = await bench.store.claim(wish, START)
        await bench.uploads.note_pull(upload_id, record.key)
        records.append(record)
    for record, image_id in zip(records, ("1" * 64, "2" * 64), strict=True):
        assert await bench.spool.get(upload_id) is not None
        work = await bench.store.begin(record.key, "here:1", START, 60)
        assert work is not None
        await bench.store.finish(work.key, work.attempt, replace(READY, id=image_id), START)
        await bench.uploads.cleanup.forget(ALICE, upload_id)
        await bench.uploads.cleanup.tidy_up()
    assert await bench.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_pulls_of_one_upload_have_a_limit(
    bench: UploadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pulls in flight count; an upload that was removed has none."""
    monkeypatch.setattr(uploads_module, "PULLS_PER_UPLOAD", 1)
    upload_id = await bench.declare()
    file = ImageFile(upload_id, "sif", 10, "ab" * 32)
    wish = PullRequest("mycluster", "custom", ImageReference.parse("a:1"), 2001, upload=file)
    record, _ = await bench.store.claim(wish, START)
    await bench.uploads.note_pull(upload_id, "ended")
    await bench.uploads.note_pull(upload_id, record.key)
    with pytest.raises(TooMany):
        await bench.uploads.note_pull(upload_id, "next")
    with pytest.raises(NotFound):
        await bench.uploads.note_pull("0" * 32, record.key)


@pytest_twisted.ensureDeferred
async def test_declarations_alone_shut_nobody_out(
    bench: UploadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user without bytes reserves the allowance; one with bytes, as much again as has arrived."""
    monkeypatch.setattr(upload_space, "USER_ALLOWANCE", 100)
    for uid in (2003, 2004, 2005):
        await bench.declare(replace(ALICE, uid=uid), size=1000)
    await bench.declare(BOB, size=1000)
    upload_id = await bench.declare(size=1000)
    uploads = await bench.spool.list()
    assert upload_space.reserved_bytes(uploads) == 500
    await bench.send(upload_id, b"x" * 400)
    uploads = await bench.spool.list()
    assert upload_space.reserved_bytes(uploads) == 800
    for uid in (2006, 2007):
        await bench.declare(replace(ALICE, uid=uid), size=1000)
    await bench.send(upload_id, b"x" * 300, 400)
    with pytest.raises(NoSpace, match="UploadSpace"):
        await bench.declare(replace(ALICE, uid=2008), size=1000)


@pytest.mark.parametrize(("limit", "words"), [("space", "UploadSpace"), ("disk", "full")])
@pytest_twisted.ensureDeferred
async def test_a_chunk_without_room_is_refused(
    bench: UploadBench, monkeypatch: pytest.MonkeyPatch, limit: str, words: str
) -> None:
    """The bytes that arrived stay, and the upload continues once there is space again."""
    upload_id = await bench.declare(size=1000)
    await bench.send(upload_id, b"0123")
    with monkeypatch.context() as patch:
        if limit == "disk":
            patch.setattr(upload_space, "DISK_RESERVE", 1 << 62)
        else:
            patch.setattr(bench.uploads, "_space", _small_space(bench, 5))
        with pytest.raises(NoSpace, match=words):
            await bench.send(upload_id, b"45", 4)
    assert await bench.send(upload_id, b"45", 4) == 6


def _small_space(bench: UploadBench, size: int) -> upload_space.UploadSpace:
    return upload_space.UploadSpace(bench.spool, replace(LIMITS, space=size), bench.clock)
