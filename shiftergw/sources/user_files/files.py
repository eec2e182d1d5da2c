"""Open the file of a record as a source: find or fetch it, compare its digest, and read it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError

from shiftergw.errors import BlobCorrupt, ImageNotFound, PullError, RetryLater, stage_timeout
from shiftergw.model.records import ImageRecord, Progress
from shiftergw.model.requests import ANONYMOUS
from shiftergw.model.uploads import ImageFile, data_file, state_file
from shiftergw.plumbing.disk_errors import check_room, translated_disk_errors
from shiftergw.plumbing.files import private_directory
from shiftergw.plumbing.locks import file_lock, remove_unshared
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within
from shiftergw.ports import ImageSource, Notify, Report
from shiftergw.sources.user_files.imports import DISK_IS_FULL, DISK_RESERVE
from shiftergw.sources.user_files.spool_client import SpoolClient
from shiftergw.sources.user_files.user_source import UserSource

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

HASH_STEP = 1 << 20
"""Bytes that are hashed between two looks at a cancellation."""

LOCK_SECONDS = 20.0
"""Seconds for which a job waits until an earlier attempt on the same file has ended."""

SCRATCH = "scratch"
"""The name of the directory for what is unpacked of a file; only its own attempt needs that."""

OpenLocal = Callable[[ImageFile, Path, Path, Notify, Report], Awaitable[ImageSource]]
"""Opens the file at a path as a source; it writes what it needs to an empty directory."""

ReadImport = Callable[[ImageFile, int, Path, Report], Awaitable[None]]
"""Copies the file that a user imports, as the user of this uid may read it, to a path."""


@dataclass(frozen=True, slots=True)
class FilePlaces:
    """Directories: the `spool` of the gateway, if it is on this machine, and our own `scratch`."""

    spool: Path
    scratch: Path


class UserFiles:
    """Opens the files of users as sources. `open` is the `OpenFile` of `job.pull`."""

    def __init__(
        self,
        places: FilePlaces,
        gateway: SpoolClient | None,
        open_local: OpenLocal,
        read_import: ReadImport,
        threads: Threads,
        clock: IReactorTime,
        seconds: float,
    ) -> None:
        """Fetch uploads that are not in the spool from `gateway`, if the site names it.

        To find or fetch a file and to compare its digest may take `seconds`.
        """
        self._places = places
        self._gateway = gateway
        self._open_local = open_local
        self._read_import = read_import
        self._threads = threads
        self._clock = clock
        self._seconds = seconds

    @asynccontextmanager
    async def open(
        self, record: ImageRecord, begin: Notify, report: Report
    ) -> AsyncIterator[ImageSource]:
        """Open the file of a record; what it needs on this machine is removed afterwards.

        What has been fetched stays if the work is cancelled or waits: the next attempt continues
        there. Raises `BlobCorrupt` if the file does not have the digest that was declared; then the
        upload is removed.
        """
        file = record.upload
        assert file is not None
        place = self._places.scratch / (file.id or record.key)
        await self._threads.run(_make_place, place)
        lock = file_lock(
            place.with_suffix(".lock"),
            self._threads,
            self._clock,
            limit=LOCK_SECONDS,
            late=lambda: _in_use(self._clock.seconds()),
        )
        keeps_fetched_bytes = False
        async with lock:
            try:
                path = await within(
                    self._seconds,
                    self._clock,
                    self._find(record, file, place, begin, report),
                    partial(stage_timeout, "Fetching", self._seconds, "fetch"),
                )
                begin("Reading the image of the file")
                scratch = place / SCRATCH
                # An attempt that was killed may have left files there.
                await self._threads.run(_make_empty, scratch)
                try:
                    source = await self._open_local(file, path, scratch, begin, report)
                    yield UserSource(source, file, record.requested_by)
                finally:
                    await self._threads.release(_remove_place, scratch)
            except (CancelledError, RetryLater):
                keeps_fetched_bytes = True
                raise
            finally:
                if not keeps_fetched_bytes:
                    await self._threads.release(_remove_place, place)

    async def _find(
        self, record: ImageRecord, file: ImageFile, place: Path, begin: Notify, report: Report
    ) -> Path:
        """Return the path of the file on this machine, once it has its digest."""
        copy = place / "file"
        if file.path:
            begin("Reading the file")
            uid = ANONYMOUS if record.requested_by is None else record.requested_by
            await self._read_import(file, uid, copy, report)
            return copy
        path = self._places.spool / data_file(file.id)
        if await self._threads.run(_has_size, path, file.size):
            begin("Checking the upload")
            if await self._has_digest(path, file, report):
                return path
            await self._threads.run(_remove_upload, self._places.spool, file.id)
            raise _wrong_digest()
        if self._gateway is None:
            is_here = await self._threads.run(self._places.spool.is_dir)
            raise _upload_is_gone() if is_here else _no_gateway()
        for _ in range(2):
            begin("Fetching the upload")
            await self._threads.run(_check_room, copy, file.size)
            await self._gateway.fetch(record.system, file, copy, report)
            begin("Checking the upload")
            if await self._has_digest(copy, file, report):
                return copy
            # After a crash of this machine its copy may have lost bytes: fetch it once more.
            await self._threads.run(_remove_file, copy)
        await self._gateway.remove(record.system, file)
        raise _wrong_digest()

    async def _has_digest(self, path: Path, file: ImageFile, report: Report) -> bool:
        stop = Event()

        def report_count(count: int) -> None:
            self._threads.call_reactor(report, Progress("PULLING", count, file.size))

        digest = await self._threads.run_until(stop.set, _digest, path, stop, report_count)
        return digest == file.sha256

    async def sweep(self, before: float) -> int:
        """Remove what earlier jobs have left and has not changed since this time."""
        return await self._threads.run(_sweep, self._places.scratch, before)


def _make_place(place: Path) -> None:
    with _disk_errors():
        private_directory(place.parent)
        private_directory(place)
        os.utime(place)


def _make_empty(directory: Path) -> None:
    with _disk_errors():
        _remove_place(directory)
        private_directory(directory)


def _remove_place(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)


def _remove_file(path: Path) -> None:
    with _disk_errors():
        path.unlink(missing_ok=True)


def _remove_upload(spool: Path, upload_id: str) -> None:
    with _disk_errors():
        (spool / state_file(upload_id)).unlink(missing_ok=True)
        (spool / data_file(upload_id)).unlink(missing_ok=True)


def _check_room(copy: Path, size: int) -> None:
    """Raise `NoSpace` if what is missing of a copy would fill the disk, which other jobs need."""
    with _disk_errors():
        present_size = copy.stat().st_size if copy.exists() else 0
        check_room(copy.parent, size - present_size + DISK_RESERVE, DISK_IS_FULL)


def _has_size(path: Path, size: int) -> bool:
    with suppress(OSError):
        return path.lstat().st_size == size
    return False


def _digest(path: Path, stop: Event, report_count: Callable[[int], None]) -> str:
    """Return the SHA-256 of a file in hexadecimal; "" if `stop` is set before the end.

    Calls `report_count`, in its thread, with the bytes so far.
    """
    hasher = hashlib.sha256()
    count = 0
    with _disk_errors(), open(path, "rb", opener=_without_links) as file:
        while data := file.read(HASH_STEP):
            if stop.is_set():
                return ""
            hasher.update(data)
            count += len(data)
            report_count(count)
    return hasher.hexdigest()


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _sweep(scratch: Path, before: float) -> int:
    count = 0
    with suppress(FileNotFoundError):
        for place in scratch.iterdir():
            with suppress(OSError):
                newest = max(path.lstat().st_mtime for path in (place, *place.glob("*")))
                if newest >= before:
                    continue
                if place.suffix == ".lock":
                    remove_unshared(place)
                    continue
                shutil.rmtree(place)
                count += 1
    return count


def _in_use(now: float) -> RetryLater:
    failure = PullError("Another job that reads the same file did not end.")
    return RetryLater(now + LOCK_SECONDS, "another job on the same file", failure, limit=900.0)


def _wrong_digest() -> BlobCorrupt:
    return BlobCorrupt(
        "The upload does not have the digest that was declared for it: the file has changed while"
        " it was sent, or bytes were damaged on their way.",
        remedy="Upload the file again: the gateway has removed this upload.",
    )


def _upload_is_gone() -> ImageNotFound:
    return ImageNotFound(
        "The upload is gone: it was removed before an image was made of it.",
        remedy="Upload the file again.",
    )


def _no_gateway() -> ImageNotFound:
    return ImageNotFound(
        "The worker's machine does not have the upload, and its configuration does not name the"
        " gateway.",
        remedy="Tell the site's support: worker machines need the key GatewayURL.",
    )


def _disk_errors() -> AbstractContextManager[None]:
    return translated_disk_errors(
        DISK_IS_FULL,
        lambda _: PullError("The worker cannot read the file, or write to its directory for it."),
    )
