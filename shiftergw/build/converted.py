"""The converted files of a machine: their places, their use, and their removal.

A directory holds, for each (image id, options):

* `<id>-<key>.squashfs`, the converted file, which gets this name only after it was checked;
* `<id>-<key>.json`, its size, its SHA-256, a report on its content and the ranges that are data of
  packs, written after it, and touched at each use: the file itself may have a second name in an
  image directory, where times matter;
* `<id>-<key>.lock`, the lock of a process that builds, verifies or sweeps the file;
* `<id>-<key>.early`, the lock of a process that examines the layers before it has the other lock;
* `<id>-<key>.<random>.part`, an incomplete file of the process with the lock. Each attempt has a
  name of its own: the `mksquashfs` of a process that was killed may still write its file, and
  removes it by its name.

A process that uses a converted file holds a shared `flock` on the file itself. The sweep removes a
file only under its lock *and* with an exclusive `flock` on it, so a file in use stays. When a
process dies, the kernel releases both. All functions block: they run in threads.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

from twisted.logger import Logger

from shiftergw.errors import ConversionFailed
from shiftergw.model.images import BuiltImage, ContentReport
from shiftergw.model.packed_data import PackedData
from shiftergw.plumbing.disk_errors import translated_disk_errors
from shiftergw.plumbing.file_groups import FileGroups
from shiftergw.plumbing.files import (
    closed_on_error,
    removed_on_error,
    replace_durably,
    write_private,
)
from shiftergw.plumbing.hashing import hash_file

_BASE = re.compile(r"[0-9a-f]{64}-[0-9a-f]{12}")
_log = Logger()
_CHUNK = 1 << 24  # of a whole file: between two of them other threads may hold the interpreter


class ConvertedFiles:
    """The names of the files of one (id, options)."""

    def __init__(self, directory: Path, image_id: str, key: str) -> None:
        """Name the files; raise `ValueError` if the id or the key is malformed."""
        base = f"{image_id}-{key}"
        if _BASE.fullmatch(base) is None:
            raise ValueError(f"{base!r} names no converted file")
        self.squashfs = directory / f"{base}.squashfs"
        self.sidecar = directory / f"{base}.json"
        self.lock = directory / f"{base}.lock"
        self.early = directory / f"{base}.early"
        self.part = directory / f"{base}.{secrets.token_hex(4)}.part"

    def exist(self) -> bool:
        """Return whether the converted file is in place."""
        return self.squashfs.is_file() and self.sidecar.is_file()

    def remove_other_parts(self) -> None:
        """Remove what killed processes have left of this file. The caller holds the lock."""
        for path in self.squashfs.parent.glob(f"{self.squashfs.stem}*.part"):
            if path != self.part:
                path.unlink(missing_ok=True)


def disk_errors() -> AbstractContextManager[None]:
    """Turn errors about the gateway's own files into errors that the port may raise."""
    return translated_disk_errors(
        "A disk of the gateway is full.",
        lambda _: ConversionFailed("The gateway could not read or write its own files."),
    )


def make_empty(path: Path) -> None:
    """Create the file before `mksquashfs` does, which would let all users read it."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))


def hold(files: ConvertedFiles) -> int:
    """Mark a file as used now, and in use for as long as the returned descriptor is open."""
    descriptor = os.open(files.squashfs, os.O_RDONLY | os.O_CLOEXEC)
    with closed_on_error(descriptor):
        # Never waits: the exclusive lock is taken by the sweep alone, under the lock we hold.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(files.sidecar)
    return descriptor


def measure(path: Path, stop: Event, report: Callable[[int, int], None]) -> tuple[int, str]:
    """Return the size and the SHA-256 of a file; soon after `stop` is set, of a part of it.

    `report` gets the bytes that are done, and those of the file.
    """
    total = path.stat().st_size
    starts = count(0, _CHUNK)

    def should_stop() -> bool:
        report(min(next(starts), total), total)
        return stop.is_set()

    measures = hash_file(path, should_stop=should_stop, piece_bytes=_CHUNK)
    report(total, total)
    return measures


def sync(path: Path) -> None:
    """Sync a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def verify(
    files: ConvertedFiles, stop: Event, report: Callable[[int, int], None]
) -> BuiltImage | None:
    """Return the file in place if its bytes are those that were checked, or else None.

    `report` is that of `measure`.
    """
    try:
        sidecar = json.loads(files.sidecar.read_bytes())
        image = BuiltImage(
            files.squashfs,
            sidecar["size"],
            sidecar["sha256"],
            ContentReport(**sidecar["report"]),
            data=_data_of(sidecar),
        )
        measures = files.squashfs.stat().st_size == image.size and measure(
            files.squashfs, stop, report
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if measures == (image.size, image.sha256):
        return image
    if not stop.is_set():
        _log.warn("the converted file {path} is damaged, and is made again", path=str(image.path))
    return None


def _data_of(sidecar: dict[str, Any]) -> PackedData:
    """Return the ranges in a sidecar; earlier versions of this program wrote none."""
    text = sidecar.get("data")
    return PackedData() if text is None else PackedData.decode(b64decode(text, validate=True))


def install(files: ConvertedFiles, image: BuiltImage) -> None:
    """Put a synced file in its place, and its sidecar beside it."""
    document: dict[str, Any] = {
        "size": image.size,
        "sha256": image.sha256,
        "report": image.report.to_document(),
    }
    if image.data.ranges:
        document["data"] = b64encode(image.data.encode()).decode()
    replace_durably(files.part, files.squashfs)
    with removed_on_error(files.squashfs):
        write_private(files.sidecar, json.dumps(document).encode())


def converted_groups(directory: Path) -> FileGroups:
    """Return the groups of converted files in a directory."""
    return FileGroups(directory, _BASE, ".squashfs", (".json", ".part"))
