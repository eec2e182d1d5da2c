"""Images that are made of files of users: whose they are, and what remains of the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.model.images import Digest
from shiftergw.model.records import ImageRecord
from shiftergw.model.uploads import ImageFile
from shiftergw.sources.user_files.user_source import UserSource
from shiftergw.states import State
from tests.job.workbench import Bench, Source, running_bench

ALICE, BOB = 2001, 2002
FILE = ImageFile("ab" * 16, "sif", 10, "cd" * 32)
OTHER_MANIFEST = Digest.of(b"another manifest")


async def make(
    bench: Bench, uid: int = ALICE, name: str = "app:1", file: ImageFile = FILE, **members: Any
) -> ImageRecord:
    """Make an image of a file, and return its record."""
    source = Source()
    source.manifest = bench.source.manifest
    bench.files.source = UserSource(source, file, uid)
    return await bench.pull(name, uid, itype="custom", upload=file, **members)


@pytest_twisted.ensureDeferred
async def test_an_image_of_an_upload_is_private(tmp_path: Path) -> None:
    """An uploaded image is private to its user, in the record and in the metadata."""
    async with running_bench(tmp_path) as bench:
        record = await make(bench)
        assert (record.status, record.tags, record.itype) == (State.READY, ("app:1",), "custom")
        assert (record.id, record.upload) == (bench.source.manifest.hex, FILE)
        assert (record.is_private, record.user_acl, record.group_acl) == (True, (ALICE,), ())
        assert bench.meta().user_acl == (ALICE,)
        assert bench.source.requests == []
        assert [opening.key for opening in bench.files.openings] == [record.key]
        assert bench.files.closings == 1


@pytest_twisted.ensureDeferred
async def test_readers_of_an_upload(tmp_path: Path) -> None:
    """A list of readers counts as for every private image; the user is added."""
    async with running_bench(tmp_path) as bench:
        record = await make(bench, user_acl=(BOB,), group_acl=(5,))
        assert (record.user_acl, record.group_acl) == ((BOB, ALICE), (5,))


@pytest_twisted.ensureDeferred
async def test_a_public_upload(tmp_path: Path) -> None:
    """An upload with `public` is an image for all users."""
    async with running_bench(tmp_path) as bench:
        record = await make(bench, file=replace(FILE, public=True))
        assert (record.private, record.user_acl, record.requested_by) == (False, (), ALICE)


@pytest_twisted.ensureDeferred
async def test_the_same_image_again(tmp_path: Path) -> None:
    """Another upload of the same image is not converted again; its record names the new one."""
    async with running_bench(tmp_path) as bench:
        await make(bench)
        file = replace(FILE, id="ef" * 16)
        record = await make(bench, file=file)
        assert (record.status, record.upload, bench.builder.builds) == (State.READY, file, 1)


@pytest_twisted.ensureDeferred
async def test_a_copy_by_another_user_proves_itself(tmp_path: Path) -> None:
    """Bob has all bytes of Alice's image, so Bob becomes a reader, and Alice stays the owner."""
    async with running_bench(tmp_path) as bench:
        await make(bench)
        record = await make(bench, BOB, "copy:1")
        assert (record.user_acl, record.requested_by) == ((ALICE, BOB), ALICE)
        assert bench.builder.builds == 2


@pytest_twisted.ensureDeferred
async def test_a_copy_does_not_open_the_image_of_another_user(tmp_path: Path) -> None:
    """Bob uploads Alice's private image as public: it stays private, and Bob may use it."""
    async with running_bench(tmp_path) as bench:
        await make(bench)
        record = await make(bench, BOB, "copy:1", replace(FILE, public=True))
        assert (record.is_private, record.user_acl) == (True, (ALICE, BOB))
        assert "stays private" in record.notice
        record = await make(bench, ALICE, "app:2", replace(FILE, public=True))
        assert (record.is_private, record.user_acl, record.notice) == (False, (), "")
        record = await make(bench, BOB, "copy:1")
        assert not record.is_private
        assert record.notice.startswith("Everybody may use the image")


@pytest_twisted.ensureDeferred
async def test_a_new_version_names_its_readers_itself(tmp_path: Path) -> None:
    """Readers of the earlier image of a tag may use the next one only if it names them."""
    async with running_bench(tmp_path) as bench:
        await make(bench, user_acl=(BOB,), group_acl=(5,))
        bench.source.manifest = OTHER_MANIFEST
        record = await make(bench, file=replace(FILE, id="ef" * 16))
        assert record.id == OTHER_MANIFEST.hex
        assert (record.user_acl, record.group_acl) == ((ALICE,), ())
        assert bench.meta().user_acl == (ALICE,)


@pytest_twisted.ensureDeferred
async def test_the_access_of_an_image_narrows(tmp_path: Path) -> None:
    """The owner makes the same file again, private: record and metadata exclude all others."""
    async with running_bench(tmp_path) as bench:
        await make(bench, file=replace(FILE, public=True))
        record = await make(bench, user_acl=(BOB,))
        assert (record.is_private, set(record.user_acl or ())) == (True, {ALICE, BOB})
        record = await make(bench)
        assert (record.is_private, record.user_acl, bench.builder.builds) == (True, (ALICE,), 1)
        assert bench.meta().user_acl == (ALICE,)


@pytest_twisted.ensureDeferred
async def test_a_failure_is_that_of_its_user(tmp_path: Path) -> None:
    """A file that differs from its declaration fails the pull, for its user only."""
    async with running_bench(tmp_path) as bench:
        record = await bench.pull("app:1", itype="custom", upload=FILE)
        assert (record.status, record.own_failure) == (State.FAILURE, True)
        assert "digest" in (record.cause or "")
        assert record.upload == FILE


@pytest.mark.parametrize("damage", ["file", "metadata"])
@pytest_twisted.ensureDeferred
async def test_readers_change_without_the_file(tmp_path: Path, damage: str) -> None:
    """The owner changes the list after the upload is gone; a registry is never asked."""
    async with running_bench(tmp_path) as bench:
        await make(bench)
        record = await bench.pull("app:1", ALICE, itype="custom", kind="acl", user_acl=(BOB, ALICE))
        assert (record.status, set(record.user_acl or ())) == (State.READY, {ALICE, BOB})
        assert record.upload == FILE
        if damage == "file":
            bench.image_path.unlink()
            record = await bench.pull("app:1", ALICE, itype="custom", kind="acl", user_acl=(ALICE,))
            assert record.status is State.FAILURE
            assert "Upload the image again" in (record.remedy or "")
        assert bench.source.requests == []
