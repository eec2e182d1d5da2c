"""Uploads that are removed: abandoned ones, and those whose image is made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_twisted

from shiftergw.errors import (
    NoSpace,
    NotFound,
    TooMany,
    Unavailable,
)
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest
from shiftergw.model.uploads import ImageFile, UserUpload
from shiftergw.service import uploads as uploads_module
from tests.service.gateway_bench import ALICE, BOB, READY, START
from tests.service.upload_bench import KEEP, UploadBench


@pytest_twisted.ensureDeferred
async def test_abandoned_uploads_are_removed(upload_bench: UploadBench) -> None:
    """An upload is removed `UploadKeep` after its last change, not before."""
    upload_id = await upload_bench.declare()
    upload_bench.clock.advance(KEEP - 1)
    await upload_bench.send(upload_id, b"0")
    upload_bench.clock.advance(KEEP - 1)
    await upload_bench.uploads.cleanup.tidy_up()
    upload = await upload_bench.uploads.get(ALICE, upload_id)
    assert upload_bench.uploads.expiration(upload) == START + 2 * KEEP - 1
    upload_bench.clock.advance(2)
    await upload_bench.uploads.cleanup.tidy_up()
    assert await upload_bench.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_a_declaration_starts_the_expiration_anew(upload_bench: UploadBench) -> None:
    """A client that continues an upload at its last moment does not lose the upload."""
    upload_id = await upload_bench.declare()
    await upload_bench.send(upload_id, b"0123")
    upload_bench.clock.advance(KEEP - 1)
    assert await upload_bench.declare() == upload_id
    upload_bench.clock.advance(KEEP - 1)
    await upload_bench.uploads.cleanup.tidy_up()
    assert await upload_bench.send(upload_id, b"456789", 4) == 10


@pytest_twisted.ensureDeferred
async def test_a_declaration_of_an_upload_that_has_just_expired(
    upload_bench: UploadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The declaration creates a new upload."""
    upload_id = await upload_bench.declare()
    (upload,) = await upload_bench.spool.list()

    async def list_earlier() -> list[UserUpload]:
        return [upload]

    await upload_bench.spool.remove(upload_id)
    with monkeypatch.context() as patch:
        patch.setattr(upload_bench.spool, "list", list_earlier)
        next_id = await upload_bench.declare()
    assert next_id != upload_id
    assert [upload.id for upload in await upload_bench.spool.list()] == [next_id]


@pytest_twisted.ensureDeferred
async def test_a_complete_upload_is_of_use_on_a_full_disk(
    upload_bench: UploadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A declaration finds the upload, although its time cannot be stored."""
    upload_id = await upload_bench.declare()

    async def fail(upload_id: str, now: float) -> UserUpload:
        raise NoSpace(f"{upload_id} {now}")

    monkeypatch.setattr(upload_bench.spool, "touch", fail)
    assert await upload_bench.declare() == upload_id


@pytest_twisted.ensureDeferred
async def test_an_upload_that_cannot_be_removed(
    upload_bench: UploadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other uploads are removed, and the removal is tried again."""
    uploads = [await upload_bench.declare(), await upload_bench.declare(BOB)]
    remove = upload_bench.spool.remove

    async def fail_once(upload_id: str, expected: UserUpload | None = None) -> bool:
        monkeypatch.setattr(upload_bench.spool, "remove", remove)
        raise Unavailable(f"{upload_id} is locked", detail=str(expected))

    monkeypatch.setattr(upload_bench.spool, "remove", fail_once)
    upload_bench.clock.advance(KEEP + 1)
    await upload_bench.uploads.cleanup.tidy_up()
    (upload,) = await upload_bench.spool.list()
    assert upload.id in uploads
    await upload_bench.uploads.cleanup.tidy_up()
    assert await upload_bench.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_an_interrupted_upload_of_an_image_that_is_there(upload_bench: UploadBench) -> None:
    """The upload is removed unless it changes, or becomes an image; those of other users stay."""
    file = ImageFile("", "sif", 10, "ab" * 32)
    upload_id = await upload_bench.declare(kind="sif")
    await upload_bench.declare(BOB, kind="sif")
    await upload_bench.declare(kind="squashfs")
    chunk = await upload_bench.uploads.receive(ALICE, upload_id, 0, 10)
    upload_bench.clock.advance(61)
    await upload_bench.uploads.cleanup.forget_content(ALICE, file)
    await chunk.abort()
    await upload_bench.uploads.cleanup.forget_content(ALICE, file)
    assert len(await upload_bench.spool.list()) == 3
    wish = PullRequest("mycluster", "custom", ImageReference.parse("a:1"), 2001, upload=file)
    record, _ = await upload_bench.store.claim(wish, START)
    await upload_bench.uploads.note_pull(upload_id, record.key)
    upload_bench.clock.advance(61)
    await upload_bench.uploads.cleanup.forget_content(ALICE, file)
    assert await upload_bench.spool.get(upload_id) is not None
    await upload_bench.store.abandon(record.key)
    await upload_bench.uploads.cleanup.forget_content(ALICE, file)
    assert await upload_bench.spool.get(upload_id) is None
    assert len(await upload_bench.spool.list()) == 2


@pytest_twisted.ensureDeferred
async def test_an_upload_goes_when_its_image_is_made(upload_bench: UploadBench) -> None:
    """An upload stays while its pull waits, however long; after READY it is removed."""
    upload_id = await upload_bench.declare()
    file = ImageFile(upload_id, "sif", 10, "ab" * 32)
    wish = PullRequest("mycluster", "custom", ImageReference.parse("a:1"), 2001, upload=file)
    record, _ = await upload_bench.store.claim(wish, START)
    await upload_bench.uploads.note_pull(upload_id, record.key)
    upload_bench.clock.advance(10 * KEEP)
    await upload_bench.uploads.cleanup.tidy_up()
    assert await upload_bench.spool.get(upload_id) is not None
    work = await upload_bench.store.begin(record.key, "here:1", START, 60)
    assert work is not None
    assert work.upload == file
    await upload_bench.store.finish(work.key, work.attempt, READY, START)
    await upload_bench.uploads.cleanup.tidy_up()
    assert await upload_bench.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_an_upload_stays_for_its_last_pull(upload_bench: UploadBench) -> None:
    """Two names of one upload: the first that is READY leaves the upload to the second."""
    upload_id = await upload_bench.declare()
    file = ImageFile(upload_id, "sif", 10, "ab" * 32)
    records = []
    for name in ("a:1", "b:1"):
        wish = PullRequest("mycluster", "custom", ImageReference.parse(name), 2001, upload=file)
        record, _ = await upload_bench.store.claim(wish, START)
        await upload_bench.uploads.note_pull(upload_id, record.key)
        records.append(record)
    for record, image_id in zip(records, ("1" * 64, "2" * 64), strict=True):
        assert await upload_bench.spool.get(upload_id) is not None
        work = await upload_bench.store.begin(record.key, "here:1", START, 60)
        assert work is not None
        await upload_bench.store.finish(work.key, work.attempt, replace(READY, id=image_id), START)
        await upload_bench.uploads.cleanup.forget(ALICE, upload_id)
        await upload_bench.uploads.cleanup.tidy_up()
    assert await upload_bench.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_pulls_of_one_upload_have_a_limit(
    upload_bench: UploadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pulls in flight count; an upload that was removed has none."""
    monkeypatch.setattr(uploads_module, "PULLS_PER_UPLOAD", 1)
    upload_id = await upload_bench.declare()
    file = ImageFile(upload_id, "sif", 10, "ab" * 32)
    wish = PullRequest("mycluster", "custom", ImageReference.parse("a:1"), 2001, upload=file)
    record, _ = await upload_bench.store.claim(wish, START)
    await upload_bench.uploads.note_pull(upload_id, "ended")
    await upload_bench.uploads.note_pull(upload_id, record.key)
    with pytest.raises(TooMany):
        await upload_bench.uploads.note_pull(upload_id, "next")
    with pytest.raises(NotFound):
        await upload_bench.uploads.note_pull("0" * 32, record.key)
