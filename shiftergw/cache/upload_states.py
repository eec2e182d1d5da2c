"""Read and write the states of uploads: a JSON file for each. All functions block."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from shiftergw.errors import NoSpace, Unavailable
from shiftergw.model.uploads import UPLOAD_ID, UploadDeclaration, UserUpload, data_file, state_file
from shiftergw.plumbing.disk_errors import translated_disk_errors
from shiftergw.plumbing.files import read_whole, write_private
from shiftergw.plumbing.locks import try_lock, unlock

STATE_LIMIT = 16 << 10
"""Bytes of the largest JSON file of an upload."""

LOCK_SECONDS = 20.0
"""Seconds for which a process waits for the lock of an upload, which is held for one write."""

LOCK_POLL_SECONDS = 0.01

_NO_STATE = frozenset({errno.ENOENT, errno.EFBIG, errno.EINVAL, errno.EISDIR})
"""Errors of a file that is absent, too large, or not a file: it is not the state of an upload."""


def data_path(directory: Path, upload_id: str) -> Path:
    """Return the path of the bytes of an upload; raise `ValueError` for what is not an id."""
    return directory / data_file(upload_id)


def read_upload(directory: Path, upload_id: str) -> UserUpload | None:
    """Return an upload; None if it lacks its bytes, or a JSON of the right form. Blocks."""
    if UPLOAD_ID.fullmatch(upload_id) is None:
        return None
    with spool_errors():
        try:
            content, _ = read_whole(state_path(directory, upload_id), STATE_LIMIT)
            data_path(directory, upload_id).lstat()
        except OSError as error:
            if error.errno in _NO_STATE:
                return None
            raise
    try:
        return _parse_state(upload_id, json.loads(content))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def list_uploads(directory: Path) -> list[UserUpload]:
    """Return all uploads of a directory. Blocks."""
    uploads = (read_upload(directory, path.stem) for path in files_in(directory, ".json"))
    return [upload for upload in uploads if upload is not None]


def _parse_state(upload_id: str, document: dict[str, Any]) -> UserUpload:
    types = {"int": int, "str": str}
    values = {}
    for field in fields(UploadDeclaration):
        value = values[field.name] = document[field.name]
        if type(value) is not types[str(field.type)]:
            raise TypeError(field.name)
    offset, last_write, pull = (document[name] for name in ("offset", "last_write", "pull"))
    if type(offset) is not int or not 0 <= offset <= document["size"] or not isinstance(pull, str):
        raise TypeError("offset")
    # Earlier versions wrote the last pull only.
    pulls = document.get("pulls", [pull] if pull else [])
    if not isinstance(pulls, list) or not all(isinstance(key, str) for key in pulls):
        raise TypeError("pulls")
    declaration = UploadDeclaration(**values)
    return UserUpload(upload_id, declaration, offset, float(last_write), tuple(pulls))


def write_state(directory: Path, upload: UserUpload) -> None:
    """Write the state of an upload by rename, after a sync. Blocks."""
    document = {
        **asdict(upload.declaration),
        "offset": upload.offset,
        "last_write": upload.last_write,
        "pull": upload.pulls[-1] if upload.pulls else "",
        "pulls": list(upload.pulls),
    }
    write_private(state_path(directory, upload.id), json.dumps(document).encode())


def touch_upload(directory: Path, upload_id: str, now: float) -> UserUpload | None:
    """Note a change at this time; see `UploadSpool.touch`. Blocks."""
    if UPLOAD_ID.fullmatch(upload_id) is None:
        return None
    with locked_state(directory, upload_id), spool_errors():
        upload = read_upload(directory, upload_id)
        if upload is not None:
            upload = replace(upload, last_write=now)
            write_state(directory, upload)
    return upload


def remove_upload(directory: Path, upload_id: str, expected: UserUpload | None) -> bool:
    """Remove an upload; see `UploadSpool.remove`. Blocks."""
    if UPLOAD_ID.fullmatch(upload_id) is None:
        return True
    try:
        with locked_state(directory, upload_id):
            return _unlink(directory, upload_id, expected)
    except NoSpace:
        # A removal must succeed on a full disk, where no lock can be created. No process can write
        # the state there, either.
        return _unlink(directory, upload_id, expected)


def _unlink(directory: Path, upload_id: str, expected: UserUpload | None) -> bool:
    """Remove the JSON first: without it there is no upload, and the bytes are swept."""
    if expected is not None and read_upload(directory, upload_id) not in {None, expected}:
        return False
    with spool_errors():
        state_path(directory, upload_id).unlink(missing_ok=True)
        data_path(directory, upload_id).unlink(missing_ok=True)
    return True


@contextmanager
def locked_state(directory: Path, upload_id: str) -> Iterator[None]:
    """Hold the lock of an upload's state, so that it is read and written by one process at a time.

    Raises `Unavailable` after `LOCK_SECONDS`. Blocks.
    """
    path = directory / f"{upload_id}.lock"
    end = time.monotonic() + LOCK_SECONDS
    with spool_errors():
        while (descriptor := try_lock(path)) is None:
            if time.monotonic() > end:
                raise Unavailable("Another gateway holds the lock of the upload.")
            time.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        unlock(path, descriptor)


def files_in(directory: Path, suffix: str) -> Iterator[Path]:
    """Yield the files of a directory with this suffix; none if it is absent. Blocks."""
    with spool_errors():
        try:
            paths = list(directory.iterdir())
        except FileNotFoundError:
            paths = []
    yield from (path for path in paths if path.name.endswith(suffix))


def state_path(directory: Path, upload_id: str) -> Path:
    """Return the path of the state of an upload."""
    return directory / state_file(upload_id)


def spool_errors() -> AbstractContextManager[None]:
    """Turn errors of the disk of uploads into `NoSpace` or `Unavailable`."""
    return translated_disk_errors(
        "The gateway's disk for uploads is full.",
        lambda _: Unavailable("The gateway cannot read or write its directory of uploads."),
    )
