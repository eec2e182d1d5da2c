"""The spool of uploads: what is committed survives, and each file has one writer."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from shiftergw.cache import upload_spool, upload_states
from shiftergw.cache.upload_spool import UploadFiles
from shiftergw.cache.upload_states import data_path, write_state
from shiftergw.errors import ConfigurationError, NoSpace, Unavailable
from shiftergw.model.uploads import UploadDeclaration, UserUpload
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import UploadWriter
from tests.patience import patient

DECLARATION = UploadDeclaration("mycluster", 2001, 10, "ab" * 32, "sif", "x.sif")


@pytest_twisted.async_fixture()
async def spool(tmp_path: Path, threads: Threads) -> UploadFiles:
    """Return a spool in a new directory."""
    files = UploadFiles(tmp_path / "uploads", threads, reactor)
    await files.startService()
    return files


async def _open(spool: UploadFiles, upload: UserUpload) -> UploadWriter:
    writer = await spool.open(upload.id)
    assert writer is not None
    return writer


async def _append(
    spool: UploadFiles, upload: UserUpload, data: bytes, now: float = 2.0
) -> UserUpload:
    writer = await _open(spool, upload)
    await writer.write(data)
    result = await writer.commit(now)
    await writer.close()
    return result


@pytest_twisted.ensureDeferred
async def test_an_upload_is_stored_in_private_files(spool: UploadFiles, tmp_path: Path) -> None:
    """Directory and files are closed to others; the name comes from the gateway alone."""
    upload = await spool.add(DECLARATION, 1.0)
    assert re.fullmatch("[0-9a-f]{32}", upload.id)
    directory = tmp_path / "uploads"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in directory.iterdir()} == {f"{upload.id}.data", f"{upload.id}.json"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in directory.iterdir())
    assert await spool.list() == [upload] == [await spool.get(upload.id)]


@pytest_twisted.ensureDeferred
async def test_another_gateway_continues_at_the_committed_offset(
    spool: UploadFiles, threads: Threads, tmp_path: Path
) -> None:
    """Bytes that were written and not committed are dropped, as after a kill."""
    upload = await spool.add(DECLARATION, 1.0)
    await _append(spool, upload, b"0123")
    writer = await _open(spool, upload)
    await writer.write(b"xxx")
    await writer.close()
    successor = UploadFiles(tmp_path / "uploads", threads, reactor)
    assert await successor.get(upload.id) == replace(upload, offset=4, last_write=2.0)
    complete = await _append(successor, upload, b"456789")
    assert complete.is_complete
    assert data_path(tmp_path / "uploads", upload.id).read_bytes() == b"0123456789"


@pytest_twisted.ensureDeferred
async def test_one_writer_at_a_time(spool: UploadFiles, threads: Threads, tmp_path: Path) -> None:
    """While an upload is open for writing, neither this gateway nor another opens it."""
    upload = await spool.add(DECLARATION, 1.0)
    writer = await _open(spool, upload)
    other_gateway = UploadFiles(tmp_path / "uploads", threads, reactor)
    assert await spool.open(upload.id) is None
    assert await other_gateway.open(upload.id) is None
    await writer.close()
    await (await _open(other_gateway, upload)).close()


@pytest_twisted.ensureDeferred
async def test_lost_bytes_are_requested_again(spool: UploadFiles, tmp_path: Path) -> None:
    """If the disk has lost bytes, the upload continues where they end."""
    upload = await spool.add(DECLARATION, 1.0)
    await _append(spool, upload, b"0123")
    os.truncate(data_path(tmp_path / "uploads", upload.id), 2)
    writer = await _open(spool, upload)
    assert writer.upload.offset == 2
    await writer.close()


@pytest_twisted.ensureDeferred
async def test_a_full_disk_is_called_that(spool: UploadFiles) -> None:
    """ENOSPC becomes `NoSpace`; the upload stays as it was committed."""
    upload = await spool.add(DECLARATION, 1.0)
    writer = await _open(spool, upload)
    descriptor = writer._descriptor  # type: ignore[attr-defined]
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230, PTH123
        os.dup2(full.fileno(), descriptor)
    with pytest.raises(NoSpace):
        await writer.write(b"0123")
    await writer.close()
    assert await spool.get(upload.id) == upload


@pytest_twisted.ensureDeferred
async def test_a_removed_upload_is_not_committed(spool: UploadFiles) -> None:
    """An upload that is removed during a write does not come back."""
    upload = await spool.add(DECLARATION, 1.0)
    writer = await _open(spool, upload)
    await writer.write(b"0123")
    await spool.remove(upload.id)
    with pytest.raises(Unavailable):
        await writer.commit(2.0)
    await writer.close()
    assert await spool.list() == []


@pytest_twisted.ensureDeferred
async def test_a_pull_is_noted(spool: UploadFiles) -> None:
    """The keys of the records stay with the upload; an upload that is gone is not revived."""
    upload = await spool.add(DECLARATION, 1.0)
    assert await spool.note_pull(upload.id, "key", 3.0)
    assert await spool.note_pull(upload.id, "next", 4.0)
    assert await spool.get(upload.id) == replace(upload, pulls=("key", "next"), last_write=4.0)
    assert await spool.note_pull(upload.id, "last", 5.0, {"key"})
    upload = replace(upload, pulls=("next", "last"), last_write=5.0)
    assert await spool.get(upload.id) == upload
    await spool.remove(upload.id)
    assert not await spool.note_pull(upload.id, "key", 3.0)
    assert await spool.get(upload.id) is None


@pytest_twisted.ensureDeferred
async def test_an_upload_that_has_changed_is_not_removed(spool: UploadFiles) -> None:
    """A removal that expects an earlier state leaves the upload to its user."""
    upload = await spool.add(DECLARATION, 1.0)
    changed_upload = await spool.touch(upload.id, 2.0)
    assert changed_upload == replace(upload, last_write=2.0)
    assert not await spool.remove(upload.id, upload)
    assert await spool.get(upload.id) == changed_upload
    assert await spool.remove(upload.id, changed_upload)
    assert await spool.remove(upload.id, changed_upload)
    assert await spool.touch(upload.id, 3.0) is None
    assert await spool.list() == []


@pytest_twisted.ensureDeferred
async def test_a_removal_on_a_full_disk(
    spool: UploadFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload can be removed where not even a lock file fits: that is how the disk gets room."""

    def fail(path: Path) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded", str(path))

    upload = await spool.add(DECLARATION, 1.0)
    monkeypatch.setattr(upload_states, "try_lock", fail)
    with pytest.raises(NoSpace):
        await spool.touch(upload.id, 2.0)
    assert not await spool.remove(upload.id, replace(upload, offset=4))
    assert await spool.remove(upload.id)
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_a_state_of_an_earlier_version(spool: UploadFiles, tmp_path: Path) -> None:
    """A state that an earlier version wrote has the last pull only."""
    upload = await spool.add(DECLARATION, 1.0)
    path = tmp_path / "uploads" / f"{upload.id}.json"
    document = json.loads(path.read_text()) | {"pull": "key"}
    del document["pulls"]
    path.write_text(json.dumps(document))
    assert await spool.get(upload.id) == replace(upload, pulls=("key",))


@pytest_twisted.ensureDeferred
async def test_bytes_that_are_gone_are_no_upload(spool: UploadFiles, tmp_path: Path) -> None:
    """Without its data file an upload is absent, so that its client begins anew."""
    upload = await spool.add(DECLARATION, 1.0)
    data_path(tmp_path / "uploads", upload.id).unlink()
    assert await spool.get(upload.id) is None
    assert await spool.list() == []
    assert not await spool.note_pull(upload.id, "key", 3.0)


@pytest.mark.parametrize("change", ["note", "commit"])
@pytest_twisted.ensureDeferred
async def test_a_removal_between_read_and_write(
    spool: UploadFiles, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A removal waits until a state that was read is written, and then removes all of it."""
    upload = await spool.add(DECLARATION, 1.0)
    writer = await _open(spool, upload)
    is_read, may_write = Event(), Event()

    def write_later(directory: Path, state: UserUpload) -> None:
        is_read.set()
        assert may_write.wait(patient(10))
        write_state(directory, state)

    monkeypatch.setattr(upload_spool, "write_state", write_later)
    changing = Deferred.fromCoroutine(
        _ignore(spool.note_pull(upload.id, "key", 2.0) if change == "note" else writer.commit(2.0))
    )
    assert await deferToThread(is_read.wait, patient(10))
    removing = Deferred.fromCoroutine(spool.remove(upload.id))
    await deferLater(reactor, 0.05, int)  # a removal that did not wait would be over
    assert not removing.called
    may_write.set()
    await changing
    await removing
    await writer.close()
    assert await spool.list() == []


async def _ignore(change: Awaitable[object]) -> None:
    await change


@pytest.mark.parametrize("upload_id", ["", "../x", "a" * 31, "A" * 32, "a" * 32 + "\n", ".lock"])
@pytest_twisted.ensureDeferred
async def test_other_names_are_not_touched(spool: UploadFiles, upload_id: str) -> None:
    """What is not an id never becomes a path."""
    assert await spool.get(upload_id) is None
    assert await spool.open(upload_id) is None
    assert await spool.touch(upload_id, 1.0) is None
    await spool.remove(upload_id)
    with pytest.raises(ValueError, match="not the id"):
        data_path(Path("/"), upload_id)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"null", b'{"size": 1}', b"[" * 5000, b"x" * 20_000],
)
@pytest_twisted.ensureDeferred
async def test_damaged_states_are_no_uploads(
    spool: UploadFiles, tmp_path: Path, content: bytes
) -> None:
    """A JSON file that is damaged makes one upload absent and harms no other."""
    upload = await spool.add(DECLARATION, 1.0)
    damaged_id = "0" * 32
    (tmp_path / "uploads" / f"{damaged_id}.json").write_bytes(content)
    assert await spool.get(damaged_id) is None
    assert await spool.list() == [upload]


@pytest.mark.parametrize(
    "change",
    [{"offset": 11}, {"offset": -1}, {"size": "10"}, {"uid": True}, {"pull": None}, {"pulls": [1]}],
)
@pytest_twisted.ensureDeferred
async def test_members_of_a_wrong_type(
    spool: UploadFiles, tmp_path: Path, change: dict[str, object]
) -> None:
    """A state with a wrong member is no upload."""
    upload = await spool.add(DECLARATION, 1.0)
    path = tmp_path / "uploads" / f"{upload.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert await spool.get(upload.id) is None


@pytest_twisted.ensureDeferred
async def test_sweep(spool: UploadFiles, tmp_path: Path) -> None:
    """Old files of processes that were killed go; uploads and new files stay."""
    upload = await spool.add(DECLARATION, 1.0)
    directory = tmp_path / "uploads"
    orphan, damaged_state, temporary, new = (
        directory / f"{'1' * 32}.data",
        directory / f"{'1' * 32}.json",
        directory / ".x.json.abcdefgh",
        directory / f"{'2' * 32}.data",
    )
    for path in (orphan, damaged_state, temporary, new, data_path(directory, upload.id)):
        path.touch()
        os.utime(path, (100, 100))
    os.utime(new, (300, 300))
    assert await spool.sweep(200) == 3
    assert not orphan.exists()
    assert not damaged_state.exists()
    assert not temporary.exists()
    assert new.exists()
    assert await spool.list() == [upload]


@pytest_twisted.ensureDeferred
async def test_a_directory_that_cannot_be_made(tmp_path: Path, threads: Threads) -> None:
    """The start fails and names the key."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="UploadDirectory"):
        await UploadFiles(tmp_path / "file" / "uploads", threads, reactor).startService()


@pytest_twisted.ensureDeferred
async def test_free_space(spool: UploadFiles) -> None:
    """The free space is that of the disk."""
    assert await spool.free_space() > 0
