"""Turn refusals of a system into errors that name the reason and the remedy."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from shiftergw.delivery.shell import run_once
from shiftergw.errors import DeliveryFailed, NoSpace, TimedOut
from shiftergw.plumbing.channel import SystemUnavailable
from shiftergw.sftp import packets
from shiftergw.sftp.packets import Attributes, SftpRefused

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import RemoteFiles
    from shiftergw.plumbing.channel import Connection

_ALMOST_FULL = 8 << 20  # with fewer free bytes, a failed write is taken for a full disk
_FULL = re.compile("No space left|Disk quota exceeded|Disc quota exceeded")
_READ_ONLY = re.compile("Read-only file system")
_REASONS = {
    packets.NO_SUCH_FILE: "a file that was expected in it does not exist",
    packets.PERMISSION_DENIED: "the account may not read or write there",
    packets.UNSUPPORTED: "the system does not support the request",
}
_OWNER = "the account on the system must own `imageDir`, and have quota left"


WRITE_TEST = (
    'head -c 1048576 /dev/zero > "$1" || { rm -f -- "$1"; exit 104; }; rm -f -- "$1" || exit 104'
)
"""Argument: PATH. Writes a file of 1 MiB and removes it."""

_TEST_SECONDS = 15.0


async def explain(
    files: RemoteFiles,
    refusal: SftpRefused,
    directory: bytes,
    test: Callable[[], Awaitable[SftpRefused | None]],
) -> DeliveryFailed | NoSpace:
    """Return the error for a refusal, with the real reason if the system reports it.

    SFTP has a status for few reasons. `test` runs a program on the system whose message may name
    the reason. Raises `DeliveryFailed` if the session is over.
    """
    error = _by_message(refusal, directory)
    if error is not None:
        return error
    with suppress(SftpRefused):
        file_system = await files.file_system(directory)
        if file_system.is_read_only:
            return read_only(refusal, directory)
        if refusal.status == packets.FAILURE and file_system.free_bytes < _ALMOST_FULL:
            return no_space(refusal)
        if refusal.status == packets.FAILURE and file_system.free_files == 0:
            return no_space(refusal, "no free inodes are left")
    if refusal.status == packets.FAILURE and (test_refusal := await test()) is not None:
        return _by_message(test_refusal, directory) or unusable(refusal, directory)
    return unusable(refusal, directory)


async def write_test(
    connection: Connection, clock: IReactorTime, path: bytes
) -> SftpRefused | None:
    """Run a program on the system that writes 1 MiB; return its refusal, with its message.

    Returns None if the program succeeds, or if the account runs no commands.
    """
    with suppress(DeliveryFailed, TimedOut):
        try:
            await run_once(connection, clock, WRITE_TEST, path, seconds=_TEST_SECONDS)
        except SftpRefused as refusal:
            return refusal
    return None


def _by_message(refusal: SftpRefused, directory: bytes) -> DeliveryFailed | NoSpace | None:
    """Return the error that the message names, or a status of a later SFTP version."""
    text = str(refusal)
    if refusal.status in {packets.NO_SPACE, packets.QUOTA_EXCEEDED} or _FULL.search(text):
        return no_space(refusal)
    if refusal.status == packets.WRITE_PROTECTED or _READ_ONLY.search(text):
        return read_only(refusal, directory)
    return None


async def directory_error(files: RemoteFiles, directory: bytes) -> DeliveryFailed | None:
    """Return why an image directory cannot be used, or None if it exists.

    Raises `DeliveryFailed` if the session is over.
    """
    try:
        if await files.lstat(directory + b"/.") is not None:
            return None
        attributes = await files.lstat(directory)
    except SftpRefused as refusal:
        return unusable(refusal, directory)
    remedy = "make `imageDir` on the system for the account, or mount its file system"
    if attributes is None:
        return _unusable("it is not there", remedy, directory)
    reason = "it is not a directory"
    if attributes.is_link:
        reason = "it is a symbolic link to nothing"
    return _unusable(reason, remedy, directory)


def no_space(refusal: SftpRefused, why: str = "") -> NoSpace:
    """Return the error for a disk, or a quota, that is full."""
    return NoSpace(
        "The system's image directory has no space left.",
        remedy="Tell the site's support: a disk of the system, or a quota, is full.",
        detail=f"{refusal}; {why}" if why else str(refusal),
    )


def read_only(refusal: SftpRefused, directory: bytes) -> DeliveryFailed:
    """Return the error for a file system that is mounted read-only."""
    remedy = "mount it for writing there; a damaged one is mounted read-only by itself"
    return _unusable("its file system is read-only", remedy, directory, refusal)


def wrong_mode(refusal: SftpRefused, attributes: Attributes) -> DeliveryFailed:
    """Return the error for a delivered file whose mode is not 0600, or unknown."""
    mode = attributes.permissions
    mode_text = "unknown" if mode is None else f"{mode:04o}"
    return DeliveryFailed(
        "The system does not let the gateway close a delivered file to other users.",
        remedy="Tell the site's support: the SFTP server must allow FSETSTAT or SETSTAT, or make"
        " files with the mode that it is asked for (0600).",
        detail=f"the mode is {mode_text}; {refusal}",
    )


def unusable(refusal: SftpRefused, directory: bytes) -> DeliveryFailed:
    """Return the error for a directory in which a request was refused."""
    reason = _REASONS.get(refusal.status, "the system could not carry out the request")
    remedy = _OWNER
    if refusal.status in packets.NOT_OFFERED and refusal.request:
        remedy += f"; its SFTP server must allow {refusal.request}"
    return _unusable(reason, remedy, directory, refusal)


def _unusable(
    reason: str, remedy: str, directory: bytes, refusal: SftpRefused | None = None
) -> DeliveryFailed:
    where = directory.decode("utf-8", "backslashreplace")
    return DeliveryFailed(
        f"The system's image directory cannot be used: {reason}.",
        remedy=f"Tell the site's support: {remedy}.",
        detail=" in ".join(filter(None, (str(refusal or ""), where))),
    )


def temporary_swept(refusal: SftpRefused) -> SystemUnavailable:
    """Return the error for a temporary that another process removed during its upload."""
    return SystemUnavailable(
        "The file was removed on the system while it was delivered.",
        remedy="Try again; tell the site's support if it happens again.",
        detail=str(refusal),
    )
