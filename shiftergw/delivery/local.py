"""A system's image directory on a file system of this machine."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from shiftergw.delivery.disk_calls import HANG_SECONDS, DiskCall, DiskCalls
from shiftergw.delivery.proof import patience
from shiftergw.errors import DeliveryFailed
from shiftergw.model import Progress
from shiftergw.plumbing.channel import Away
from shiftergw.plumbing.disk_errors import translated_disk_errors
from shiftergw.plumbing.files import free_space, removed_on_error, replace_durably, sync_directory
from shiftergw.plumbing.hashing import hash_file
from shiftergw.ports import InstalledFile, Report, Verification

if TYPE_CHECKING:
    from shiftergw.delivery.stripes import LocalStripes
    from shiftergw.plumbing.threads import Threads

_NAME = re.compile(r"[0-9a-f]{64}\.(?:squashfs|meta)")
_TEMPORARY = re.compile(r"[0-9a-f]{64}\.(?:squashfs|meta)\.partial\.[0-9a-f]{16}")
_PIECE = 4 << 20
_MODE = 0o600
_AWAY = frozenset(
    {
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
    }
)
"""What network file systems say while their server is away; another time may do."""


class LocalDirectory:
    """Keeps the port `ImageDirectory` by renames within one directory."""

    def __init__(
        self,
        directory: Path,
        threads: Threads,
        stripes: LocalStripes | None = None,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        """Deliver into `directory`, which must exist: it is the site's, not ours.

        `stripes` make the files that large images are copied into. A call that hangs for
        `hang_seconds` raises `Away`; its thread, one of `threads`, is left behind.
        """
        self._directory = directory
        self._calls = DiskCalls(str(directory), threads, hang_seconds)
        self._stripes = stripes

    async def reach(self) -> None:
        """See the port: this directory knows of no failures before."""

    async def free_space(self) -> int:
        """Return the bytes that an unprivileged user may still write there."""
        with _errors():
            return await self._calls.run(free_space, self._directory)

    async def close(self) -> None:
        """See the port: this directory holds nothing open."""

    async def probe(self, content: bytes) -> None:
        """Write a small file and remove it; raise why a delivery would fail."""
        path = _temporary(self._path(f"{'0' * 64}.meta"))
        with _errors():
            await self._calls.run_long(partial(_probe, content, path))

    async def exists(self, name: str) -> InstalledFile | None:
        """Return the installed file; a symlink, or anything else, is none."""
        with _errors():
            return await self._calls.run(_installed, self._path(name))

    async def install(self, source: Path, name: str, sha256: str, report: Report) -> Verification:
        """Put a file there; on the same file system as a second name of the same file.

        Not where images are to be striped: how a file is laid out shows when it is made.
        """
        await _placed(source, self._path(name), sha256, self._calls, report, self._stripes)
        return Verification("sha256")

    async def write(self, content: bytes, name: str) -> None:
        """Put a small file there."""
        with _errors():
            await self._calls.run_long(partial(_write, content, self._path(name)))

    async def read(self, name: str, limit: int) -> bytes | None:
        """Return the content of a small file; None if it is absent or larger."""
        with _errors():
            return await self._calls.run(_read, self._path(name), limit)

    async def head(self, name: str, size: int) -> bytes:
        """Return the first bytes of a file, fewer if it ends before; none if it is absent."""
        with _errors():
            return await self._calls.run(_head, self._path(name), size)

    async def remove(self, name: str) -> None:
        """Remove the file; it need not exist."""
        with _errors():
            await self._calls.run(_remove, self._path(name))

    async def list(self) -> list[InstalledFile]:
        """Return the installed images and metadata, sorted by name."""
        with _errors():
            return await self._calls.run_long(partial(_list, self._directory))

    async def digest(self, name: str) -> str:
        """Return the SHA-256 of an installed file."""
        with _errors():
            return await self._calls.run_long(partial(_digest, self._path(name)))

    async def sweep(self, before: float) -> int:
        """Remove temporaries that were last written before this time; return how many."""
        with _errors():
            return await self._calls.run_long(partial(_sweep, self._directory, before))

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of an image directory")
        return self._directory / name


async def place(
    source: Path, target: Path, sha256: str, threads: Threads, report: Report, *, link: bool
) -> None:
    """Put a finished file at `target`: temporary name, checked, 0600, fsync, rename, fsync.

    With `link` the file may be another name of `source`, which nothing else may use then: the user
    of `target` may write into it. Raises `DeliveryFailed` and `NoSpace`; cancellable between two
    pieces.
    """
    calls = DiskCalls(str(target.parent), threads)
    await _placed(source, target, sha256, calls, report, None, link=link)


async def _placed(
    source: Path,
    target: Path,
    sha256: str,
    calls: DiskCalls,
    report: Report,
    stripes: LocalStripes | None,
    *,
    link: bool = True,
) -> None:
    """Put a file at `target`, as `place` does."""
    temporary = _temporary(target)
    with _errors():
        made = False
        if stripes is not None:
            made = await stripes.make(temporary, (await calls.run(source.stat)).st_size)
        tell = partial(calls.call_reactor, report)
        copy = partial(_copy, source, temporary, sha256, tell, made)
        may_link = link and not made
        await calls.run_long(partial(_place, source, temporary, target, copy, may_link))


def _temporary(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial.{secrets.token_hex(8)}")


def _place(
    source: Path,
    temporary: Path,
    target: Path,
    copy: Callable[[DiskCall], None],
    may_link: bool,
    call: DiskCall,
) -> None:
    """Put a file in its place by way of `temporary`, which `copy` writes unless a link will do."""
    with removed_on_error(temporary):
        if not (may_link and _link(source, temporary)):
            copy(call)
        call.go_on()
        replace_durably(temporary, target)
        # Renaming one name of a file to another of its names does nothing, not even this.
        temporary.unlink(missing_ok=True)


def _link(source: Path, temporary: Path) -> bool:
    """Give a file a second name, if the file system and its mode let us.

    A converted file is never changed in place, and was synced and checked when it was made: another
    name for it is as good as a copy, and costs nothing.
    """
    found = source.lstat()
    if not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) != _MODE:
        return False
    try:
        os.link(source, temporary)
    except OSError:
        return False
    return True


def _copy(
    source: Path,
    temporary: Path,
    sha256: str,
    tell: Callable[[Progress], None],
    made: bool,
    call: DiskCall,
) -> None:
    """Copy in pieces, hashing what is copied."""
    digest = hashlib.sha256()
    done = 0
    create = 0 if made else os.O_CREAT | os.O_EXCL
    with source.open("rb", buffering=0) as old, _open(temporary, create) as new:
        total = os.fstat(old.fileno()).st_size
        while piece := old.read(_PIECE):
            call.go_on()
            new.write(piece)
            digest.update(piece)
            done += len(piece)
            tell(Progress("deliver", done, total))
        new.flush()
        call.go_on(patience(total))
        os.fsync(new.fileno())
    if digest.hexdigest() != sha256:
        raise DeliveryFailed("The converted file changed before it was delivered.")


def _write(content: bytes, target: Path, call: DiskCall) -> None:
    temporary = _temporary(target)
    with removed_on_error(temporary):
        _make(content, temporary)
        call.go_on()  # what hung until its caller had left must replace nothing
        replace_durably(temporary, target)


def _probe(content: bytes, path: Path, call: DiskCall) -> None:
    with removed_on_error(path):
        _make(content, path)
        call.go_on()
    path.unlink()


def _make(content: bytes, path: Path) -> None:
    """Make a new file that is on the disk when this returns."""
    with _open(path, os.O_CREAT | os.O_EXCL) as new:
        new.write(content)
        new.flush()
        os.fsync(new.fileno())


def _open(path: Path, flags: int) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | flags, _MODE), "wb")


def _installed(path: Path) -> InstalledFile | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return InstalledFile(path.name, status.st_size, int(status.st_mtime))


def _remove(path: Path) -> None:
    """Remove a file for good: one that the admins have taken down must not come back."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    sync_directory(path.parent)


def _read(path: Path, limit: int) -> bytes | None:
    found = _installed(path)
    if found is None or found.size > limit:
        return None
    with path.open("rb") as file:
        return file.read(limit)


def _head(path: Path, size: int) -> bytes:
    if _installed(path) is None:
        return b""
    with path.open("rb") as file:
        return file.read(size)


def _list(directory: Path, call: DiskCall) -> list[InstalledFile]:
    files = []
    for name in sorted(filter(_NAME.fullmatch, os.listdir(directory))):  # noqa: PTH208 - names
        call.go_on()
        files.append(_installed(directory / name))
    return [file for file in files if file is not None]


def _digest(path: Path, call: DiskCall) -> str:
    return hash_file(path, should_stop=call.go_on)[1]


def _sweep(directory: Path, before: float, call: DiskCall) -> int:
    removed = 0
    for entry in list(os.scandir(directory)):
        if _TEMPORARY.fullmatch(entry.name) is None:
            continue
        call.go_on()
        with suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            # A second name has the times of its file, but for this one.
            made = status.st_ctime if status.st_nlink > 1 else status.st_mtime
            if made < before:
                Path(entry.path).unlink()
                removed += 1
    return removed


def _errors() -> AbstractContextManager[None]:
    """Turn errors of the image directory's file system into errors for users and admins."""
    return translated_disk_errors("The system's image directory has no space left.", _unusable)


def _unusable(error: OSError) -> DeliveryFailed:
    kind = Away if error.errno in _AWAY else DeliveryFailed
    return kind(
        f"The system's image directory cannot be used: {error.strerror}.",
        remedy="Tell the site's support: `shiftergw check` says more.",
    )
