"""Uploads: declarations, chunks, quotas, and the removal of abandoned ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.cache.upload_states import data_path
from shiftergw.errors import (
    NoSpace,
    NotAuthenticated,
    NotFound,
    TooLarge,
    TooMany,
    UploadConflict,
)
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest
from shiftergw.model.uploads import ImageFile
from shiftergw.service import upload_space
from shiftergw.service.uploads import CHUNKS_PER_USER
from tests.service.gateway_bench import ALICE, ANONYMOUS_SESSION, BOB, READY, START
from tests.service.upload_bench import LIMITS, UploadBench


@pytest_twisted.ensureDeferred
async def test_the_same_declaration_finds_the_upload_again(upload_bench: UploadBench) -> None:
    """Size, digest, kind, user and system make an upload; the file's name does not."""
    first = await upload_bench.declare()
    assert await upload_bench.declare(filename="other") == first
    for changes in ({"size": 11}, {"sha256": "cd" * 32}, {"kind": "sif"}):
        assert await upload_bench.declare(**changes) != first
    assert await upload_bench.declare(BOB) != first


@pytest_twisted.ensureDeferred
async def test_chunks_append_and_the_offset_counts(upload_bench: UploadBench) -> None:
    """Each chunk starts at the offset of the upload; a complete upload takes no more."""
    upload_id = await upload_bench.declare()
    assert await upload_bench.send(upload_id, b"0123") == 4
    assert await upload_bench.send(upload_id, b"456789", 4) == 10
    assert data_path(upload_bench.directory, upload_id).read_bytes() == b"0123456789"
    assert (await upload_bench.uploads.get_complete(ALICE, upload_id)).is_complete
    with pytest.raises(TooLarge):
        await upload_bench.send(upload_id, b"x", 10)


@pytest.mark.parametrize("offset", [0, 3, 5, 10**15])
@pytest_twisted.ensureDeferred
async def test_a_wrong_offset_is_answered_with_the_true_one(
    upload_bench: UploadBench, offset: int
) -> None:
    """The client learns where to continue, and nothing is written."""
    upload_id = await upload_bench.declare()
    await upload_bench.send(upload_id, b"0123")
    with pytest.raises(UploadConflict) as caught:
        await upload_bench.send(upload_id, b"xy", offset)
    assert caught.value.offset == 4
    with pytest.raises(UploadConflict) as caught:
        await upload_bench.uploads.get_complete(ALICE, upload_id)
    assert caught.value.offset == 4
    assert await upload_bench.send(upload_id, b"456789", 4) == 10


@pytest_twisted.ensureDeferred
async def test_a_chunk_that_breaks_off_keeps_its_bytes(upload_bench: UploadBench) -> None:
    """A slow client on a bad line makes progress with each attempt."""
    upload_id = await upload_bench.declare()
    chunk = await upload_bench.uploads.receive(ALICE, upload_id, 0, 10)
    await chunk.write(b"012")
    await chunk.abort()
    await chunk.abort()
    assert (await upload_bench.uploads.get(ALICE, upload_id)).offset == 3
    with pytest.raises(UploadConflict):
        await chunk.write(b"x")


@pytest_twisted.ensureDeferred
async def test_a_second_writer_takes_over(upload_bench: UploadBench) -> None:
    """The connection of a client that was killed may live on; it cannot damage the upload."""
    upload_id = await upload_bench.declare()
    dead_chunk = await upload_bench.uploads.receive(ALICE, upload_id, 0, 10)
    await dead_chunk.write(b"012")
    with pytest.raises(UploadConflict) as caught:
        await upload_bench.uploads.receive(ALICE, upload_id, 0, 10)
    assert caught.value.offset == 3
    assert await upload_bench.send(upload_id, b"3456789", 3) == 10
    for work in (dead_chunk.write(b"xxx"), dead_chunk.finish()):
        with pytest.raises(UploadConflict):
            await work
    assert data_path(upload_bench.directory, upload_id).read_bytes() == b"0123456789"


@pytest_twisted.ensureDeferred
async def test_two_writers_at_the_same_moment(upload_bench: UploadBench) -> None:
    """Of two chunks that are opened together at most one is written."""
    upload_id = await upload_bench.declare()
    openings = [
        Deferred.fromCoroutine(upload_bench.uploads.receive(ALICE, upload_id, 0, 4))
        for _ in range(2)
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
    assert data_path(upload_bench.directory, upload_id).read_bytes() == b"0123"


@pytest_twisted.ensureDeferred
async def test_uploads_of_others_do_not_exist(upload_bench: UploadBench) -> None:
    """Another user, another system and a user without a name get `NotFound`."""
    upload_id = await upload_bench.declare()
    for session in (BOB, replace(ALICE, system="sister"), ANONYMOUS_SESSION):
        for work in (
            upload_bench.uploads.get(session, upload_id),
            upload_bench.uploads.receive(session, upload_id, 0, 1),
            upload_bench.uploads.remove(session, upload_id),
            upload_bench.uploads.get_complete(session, upload_id),
        ):
            with pytest.raises(NotFound):
                await work
    with pytest.raises(NotFound):
        await upload_bench.uploads.get(ALICE, "0" * 32)


@pytest_twisted.ensureDeferred
async def test_limits(upload_bench: UploadBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of an upload, a user, all users and the disk have different errors."""
    with pytest.raises(TooLarge, match="MaxUploadSize"):
        await upload_bench.declare(size=1001)
    await upload_bench.declare(size=1000)
    with pytest.raises(TooMany, match="UploadQuota"):
        await upload_bench.declare(size=501)
    await upload_bench.declare(size=500)
    await upload_bench.declare(BOB, size=900)
    with pytest.raises(NoSpace, match="UploadSpace"):
        await upload_bench.declare(BOB, size=101)
    monkeypatch.setattr(upload_space, "DISK_RESERVE", 1 << 62)
    with pytest.raises(NoSpace, match="disk"):
        await upload_bench.declare(BOB, size=100)
    with pytest.raises(NotAuthenticated):
        await upload_bench.declare(ANONYMOUS_SESSION)


@pytest_twisted.ensureDeferred
async def test_the_number_of_uploads_has_a_limit(
    upload_bench: UploadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiny uploads count, too."""
    monkeypatch.setattr(upload_space, "UPLOADS_PER_USER", 2)
    await upload_bench.declare(size=1)
    await upload_bench.declare(size=2)
    with pytest.raises(TooMany):
        await upload_bench.declare(size=3)


@pytest_twisted.ensureDeferred
async def test_one_user_has_a_share_of_the_connections(upload_bench: UploadBench) -> None:
    """More chunks at the same time are refused until one of them has ended."""
    ids = [await upload_bench.declare(size=size) for size in range(1, CHUNKS_PER_USER + 2)]
    chunks = [await upload_bench.uploads.receive(ALICE, upload_id, 0, 1) for upload_id in ids[:-1]]
    with pytest.raises(TooMany):
        await upload_bench.uploads.receive(ALICE, ids[-1], 0, 1)
    await chunks[0].abort()
    await (await upload_bench.uploads.receive(ALICE, ids[-1], 0, 1)).abort()
    for chunk in chunks[1:]:
        await chunk.abort()


@pytest_twisted.ensureDeferred
async def test_refused_chunks_do_not_count(upload_bench: UploadBench) -> None:
    """A client that asks with wrong offsets keeps its share."""
    upload_id = await upload_bench.declare()
    for _ in range(CHUNKS_PER_USER + 2):
        with pytest.raises(UploadConflict):
            await upload_bench.uploads.receive(ALICE, upload_id, 5, 1)
    assert await upload_bench.send(upload_id, b"0") == 1


@pytest_twisted.ensureDeferred
async def test_removal_cuts_a_chunk_off(upload_bench: UploadBench) -> None:
    """A removed upload stays removed, although a chunk of it was arriving."""
    upload_id = await upload_bench.declare()
    chunk = await upload_bench.uploads.receive(ALICE, upload_id, 0, 10)
    await upload_bench.uploads.remove(ALICE, upload_id)
    with pytest.raises(NotFound, match="removed"):
        await chunk.write(b"x")
    assert list(upload_bench.directory.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_the_list_has_the_own_uploads(upload_bench: UploadBench) -> None:
    """The upload with the last change is first; each has its images in flight, not ended ones."""
    old_upload = await upload_bench.declare()
    await upload_bench.declare(BOB)
    await upload_bench.declare(replace(ALICE, system="sister"))
    upload_bench.clock.advance(1)
    new_upload = await upload_bench.declare(size=11)
    uploads = await upload_bench.uploads.list_own(ALICE)
    assert [(upload.id, images) for upload, images in uploads] == [
        (new_upload, []),
        (old_upload, []),
    ]
    upload_bench.clock.advance(1)
    file = ImageFile(old_upload, "sif", 10, "ab" * 32)
    for name in ("a:1", "b:1"):
        wish = PullRequest("mycluster", "custom", ImageReference.parse(name), 2001, upload=file)
        record, _ = await upload_bench.store.claim(wish, START)
        await upload_bench.uploads.note_pull(old_upload, record.key)
    work = await upload_bench.store.begin(record.key, "here:1", START, 60)
    assert work is not None
    uploads = await upload_bench.uploads.list_own(ALICE)
    assert [(upload.id, images) for upload, images in uploads] == [
        (old_upload, ["a:1", "b:1"]),
        (new_upload, []),
    ]
    await upload_bench.store.finish(work.key, work.attempt, READY, START)
    assert (await upload_bench.uploads.list_own(ALICE))[0][1] == ["a:1"]
    with pytest.raises(NotAuthenticated):
        await upload_bench.uploads.list_own(ANONYMOUS_SESSION)


@pytest_twisted.ensureDeferred
async def test_declarations_without_bytes_do_not_use_up_the_space(
    upload_bench: UploadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user without bytes reserves the allowance; one with bytes, as much again as has arrived."""
    monkeypatch.setattr(upload_space, "USER_ALLOWANCE", 100)
    for uid in (2003, 2004, 2005):
        await upload_bench.declare(replace(ALICE, uid=uid), size=1000)
    await upload_bench.declare(BOB, size=1000)
    upload_id = await upload_bench.declare(size=1000)
    uploads = await upload_bench.spool.list()
    assert upload_space.reserved_bytes(uploads) == 500
    await upload_bench.send(upload_id, b"x" * 400)
    uploads = await upload_bench.spool.list()
    assert upload_space.reserved_bytes(uploads) == 800
    for uid in (2006, 2007):
        await upload_bench.declare(replace(ALICE, uid=uid), size=1000)
    await upload_bench.send(upload_id, b"x" * 300, 400)
    with pytest.raises(NoSpace, match="UploadSpace"):
        await upload_bench.declare(replace(ALICE, uid=2008), size=1000)


@pytest.mark.parametrize(("limit", "words"), [("space", "UploadSpace"), ("disk", "full")])
@pytest_twisted.ensureDeferred
async def test_a_chunk_without_room_is_refused(
    upload_bench: UploadBench, monkeypatch: pytest.MonkeyPatch, limit: str, words: str
) -> None:
    """The bytes that arrived stay, and the upload continues once there is space again."""
    upload_id = await upload_bench.declare(size=1000)
    await upload_bench.send(upload_id, b"0123")
    with monkeypatch.context() as patch:
        if limit == "disk":
            patch.setattr(upload_space, "DISK_RESERVE", 1 << 62)
        else:
            patch.setattr(upload_bench.uploads, "_space", _small_space(upload_bench, 5))
        with pytest.raises(NoSpace, match=words):
            await upload_bench.send(upload_id, b"45", 4)
    assert await upload_bench.send(upload_id, b"45", 4) == 6


def _small_space(upload_bench: UploadBench, size: int) -> upload_space.UploadSpace:
    return upload_space.UploadSpace(
        upload_bench.spool, replace(LIMITS, space=size), upload_bench.clock
    )
