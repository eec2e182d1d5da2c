"""A system's image directory on a file system of this machine."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, BinaryIO

from shiftergw.errors import DeliveryFailed, NoSpace
from shiftergw.model import Progress
from shiftergw.plumbing.files import free_space, put_in_place, removed_on_error
from shiftergw.ports import InstalledFile, Report, Verification

if TYPE_CHECKING:
    from shiftergw.delivery.stripes import LocalStripes
    from shiftergw.plumbing.threads import Threads

_NAME = re.compile(r"[0-9a-f]{64}\.(?:squashfs|meta)")
_TEMPORARY = re.compile(r"[0-9a-f]{64}\.(?:squashfs|meta)\.partial\.[0-9a-f]{16}")
_PIECE = 4 << 20
_MODE = 0o600


class LocalDirectory:
    """Keeps the port `ImageDirectory` by renames within one directory."""

    def __init__(
        self, directory: Path, threads: Threads, stripes: LocalStripes | None = None
    ) -> None:
        """Deliver into `directory`, which must exist: it is the site's, not ours.

        `stripes` make the files that large images are copied into.
        """
        self._directory = directory
        self._threads = threads
        self._stripes = stripes

    async def reach(self) -> None:
        """See the port: this directory knows of no failures before."""

    async def free_space(self) -> int:
        """Return the bytes that an unprivileged user may still write there."""
        with _errors():
            return await self._threads.run(free_space, self._directory)

    async def try_writing(self, content: bytes = b"shiftergw check\n") -> None:
        """Make a small file there and remove it; raise why a delivery would fail."""
        path = _temporary(self._path(f"{'0' * 64}.meta"))
        with _errors():
            await self._threads.run(_write, content, path)
            await self._threads.run(path.unlink, missing_ok=True)

    async def exists(self, name: str) -> InstalledFile | None:
        """Return the installed file; a symlink, or anything else, is none."""
        with _errors():
            return await self._threads.run(_installed, self._path(name))

    async def install(self, source: Path, name: str, sha256: str, report: Report) -> Verification:
        """Put a file there; on the same file system as a second name of the same file.

        Not where images are to be striped: how a file is laid out shows when it is made.
        """
        await place(source, self._path(name), sha256, self._threads, report, self._stripes)
        return Verification("sha256")

    async def write(self, content: bytes, name: str) -> None:
        """Put a small file there."""
        with _errors():
            await self._threads.run(_write, content, self._path(name))

    async def read(self, name: str, limit: int) -> bytes | None:
        """Return the content of a small file; None if it is absent or larger."""
        with _errors():
            return await self._threads.run(_read, self._path(name), limit)

    async def remove(self, name: str) -> None:
        """Remove the file; it need not exist."""
        with _errors():
            await self._threads.run(self._path(name).unlink, missing_ok=True)

    async def list(self) -> list[InstalledFile]:
        """Return the installed images and metadata, sorted by name."""
        with _errors():
            return await self._threads.run(_list, self._directory)

    async def digest(self, name: str) -> str:
        """Return the SHA-256 of an installed file."""
        stop = Event()
        with _errors():
            return await self._threads.run_until(stop.set, _digest, self._path(name), stop)

    async def sweep(self, before: float) -> int:
        """Remove temporaries that were last written before this time; return how many."""
        with _errors():
            return await self._threads.run(_sweep, self._directory, before)

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of an image directory")
        return self._directory / name


async def place(
    source: Path,
    target: Path,
    sha256: str,
    threads: Threads,
    report: Report,
    stripes: LocalStripes | None = None,
) -> None:
    """Put a finished file at `target`: temporary name, checked, 0600, fsync, rename, fsync.

    Raises `DeliveryFailed` and `NoSpace`; cancellable between two pieces.
    """
    stop = Event()
    temporary = _temporary(target)

    def tell(progress: Progress) -> None:
        threads.call_reactor(report, progress)

    with _errors():
        made = False
        if stripes is not None:
            made = await stripes.make(temporary, (await threads.run(source.stat)).st_size)
        await threads.run_until(
            stop.set, _place, source, temporary, target, sha256, tell, stop, made
        )


class _Stopped(Exception):
    """The caller was cancelled; he never sees this."""


def _temporary(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial.{secrets.token_hex(8)}")


def _place(
    source: Path,
    temporary: Path,
    target: Path,
    sha256: str,
    tell: Callable[[Progress], None],
    stop: Event,
    made: bool,
) -> None:
    """Put a file in its place by way of `temporary`: one that was `made`, empty, or a new one."""
    with removed_on_error(temporary):
        if made or not _link(source, temporary):
            _copy(source, temporary, sha256, tell, stop, made)
        put_in_place(temporary, target)
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
    stop: Event,
    made: bool,
) -> None:
    """Copy in pieces, hashing what is copied."""
    digest = hashlib.sha256()
    done = 0
    create = 0 if made else os.O_CREAT | os.O_EXCL
    with source.open("rb", buffering=0) as old, _open(temporary, create) as new:
        total = os.fstat(old.fileno()).st_size
        while piece := old.read(_PIECE):
            if stop.is_set():
                raise _Stopped
            new.write(piece)
            digest.update(piece)
            done += len(piece)
            tell(Progress("deliver", done, total))
        new.flush()
        os.fsync(new.fileno())
    if digest.hexdigest() != sha256:
        raise DeliveryFailed("The converted file changed before it was delivered.")


def _write(content: bytes, target: Path) -> None:
    temporary = _temporary(target)
    with removed_on_error(temporary):
        with _open(temporary, os.O_CREAT | os.O_EXCL) as new:
            new.write(content)
            new.flush()
            os.fsync(new.fileno())
        put_in_place(temporary, target)


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


def _read(path: Path, limit: int) -> bytes | None:
    found = _installed(path)
    if found is None or found.size > limit:
        return None
    with path.open("rb") as file:
        return file.read(limit)


def _list(directory: Path) -> list[InstalledFile]:
    names = sorted(entry.name for entry in os.scandir(directory) if _NAME.fullmatch(entry.name))
    found = (_installed(directory / name) for name in names)
    return [file for file in found if file is not None]


def _digest(path: Path, stop: Event) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            if stop.is_set():
                raise _Stopped
            digest.update(piece)
    return digest.hexdigest()


def _sweep(directory: Path, before: float) -> int:
    removed = 0
    for entry in list(os.scandir(directory)):
        if _TEMPORARY.fullmatch(entry.name) is None:
            continue
        with suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            # A second name has the times of its file, but for this one.
            made = status.st_ctime if status.st_nlink > 1 else status.st_mtime
            if made < before:
                Path(entry.path).unlink()
                removed += 1
    return removed


@contextmanager
def _errors() -> Iterator[None]:
    """Say what the operating system says, for users and for admins."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpace(
                "The system's image directory has no space left.", detail=str(error)
            ) from error
        raise DeliveryFailed(
            f"The system's image directory cannot be used: {error.strerror}.",
            remedy="Tell the site's support: `shiftergw check` says more.",
            detail=str(error),
        ) from error
