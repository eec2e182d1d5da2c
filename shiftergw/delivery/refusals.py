"""What it means for a delivery that a system says no."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from shiftergw.delivery.shell import run_once
from shiftergw.errors import DeliveryFailed, NoSpace, TimedOut
from shiftergw.plumbing.channel import Away
from shiftergw.sftp import packets
from shiftergw.sftp.packets import Attributes, SftpRefused

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import Files
    from shiftergw.plumbing.channel import Connection

_ALMOST_FULL = 8 << 20  # bytes left at which a write that fails is for want of space
_FULL = re.compile("No space left|Disk quota exceeded|Disc quota exceeded")
_READ_ONLY = re.compile("Read-only file system")
_REASONS = {
    packets.NO_SUCH_FILE: "a file that was expected in it is not there",
    packets.PERMISSION_DENIED: "the account may not read or write there",
    packets.UNSUPPORTED: "the system does not offer what was asked for",
}
_OWNER = "the account on the system must own `imageDir`, and have quota left"


WRITE_TEST = (
    'head -c 1048576 /dev/zero > "$1" || { rm -f -- "$1"; exit 104; }; rm -f -- "$1" || exit 104'
)
"""PATH: writes a file of 1 MiB and removes it."""

_TEST_SECONDS = 15.0


async def explain(
    files: Files,
    refused: SftpRefused,
    directory: bytes,
    test: Callable[[], Awaitable[SftpRefused | None]],
) -> DeliveryFailed | NoSpace:
    """Return the error for a refusal, with its real reason if the system tells that.

    SFTP has statuses for few reasons. `test` runs a program on the system, whose message may name
    others. Raises `DeliveryFailed` if the session is over.
    """
    error = _by_message(refused, directory)
    if error is not None:
        return error
    with suppress(SftpRefused):
        file_system = await files.file_system(directory)
        if file_system.is_read_only:
            return read_only(refused, directory)
        if refused.status == packets.FAILURE and file_system.free_bytes < _ALMOST_FULL:
            return no_space(refused)
        if refused.status == packets.FAILURE and file_system.free_files == 0:
            return no_space(refused, "no free inodes are left")
    if refused.status == packets.FAILURE and (answer := await test()) is not None:
        return _by_message(answer, directory) or unusable(refused, directory)
    return unusable(refused, directory)


async def write_test(
    connection: Connection, clock: IReactorTime, path: bytes
) -> SftpRefused | None:
    """Write a file of 1 MiB by a program on the system; return the refusal with its message.

    Returns None if the program succeeds, or the account runs no commands.
    """
    with suppress(DeliveryFailed, TimedOut):
        try:
            await run_once(connection, clock, WRITE_TEST, path, seconds=_TEST_SECONDS)
        except SftpRefused as refused:
            return refused
    return None


def _by_message(refused: SftpRefused, directory: bytes) -> DeliveryFailed | NoSpace | None:
    """Return the error that a message, or a status of a later SFTP version, names."""
    text = str(refused)
    if refused.status in {packets.NO_SPACE, packets.QUOTA_EXCEEDED} or _FULL.search(text):
        return no_space(refused)
    if refused.status == packets.WRITE_PROTECTED or _READ_ONLY.search(text):
        return read_only(refused, directory)
    return None


async def directory_error(files: Files, directory: bytes) -> DeliveryFailed | None:
    """Return why an image directory cannot be used, or None if it is there.

    Raises `DeliveryFailed` if the session is over.
    """
    try:
        if await files.lstat(directory + b"/.") is not None:
            return None
        attributes = await files.lstat(directory)
    except SftpRefused as refused:
        return unusable(refused, directory)
    remedy = "make `imageDir` on the system for the account, or mount its file system"
    if attributes is None:
        return _unusable("it is not there", remedy, directory)
    reason = "it is not a directory"
    if attributes.is_link:
        reason = "it is a symbolic link to nothing"
    return _unusable(reason, remedy, directory)


def no_space(refused: SftpRefused, why: str = "") -> NoSpace:
    """Return the error for a disk, or a quota, that is full."""
    return NoSpace(
        "The system's image directory has no space left.",
        remedy="Tell the site's support: a disk of the system, or a quota, is full.",
        detail=f"{refused}; {why}" if why else str(refused),
    )


def read_only(refused: SftpRefused, directory: bytes) -> DeliveryFailed:
    """Return the error for a file system that is mounted read-only."""
    remedy = "mount it for writing there; a damaged one is mounted read-only by itself"
    return _unusable("its file system is read-only", remedy, directory, refused)


def wrong_mode(refused: SftpRefused, attributes: Attributes) -> DeliveryFailed:
    """Return the error for a file that cannot be closed to other users."""
    mode = attributes.permissions
    shown = "unknown" if mode is None else f"{mode:04o}"
    return DeliveryFailed(
        "The system does not let the gateway close a delivered file to other users.",
        remedy="Tell the site's support: the SFTP server must allow FSETSTAT or SETSTAT, or make"
        " files with the mode that it is asked for (0600).",
        detail=f"the mode is {shown}; {refused}",
    )


def unusable(refused: SftpRefused, directory: bytes) -> DeliveryFailed:
    """Return the error for a directory in which something cannot be done."""
    reason = _REASONS.get(refused.status, "the system could not do what it was asked")
    remedy = _OWNER
    if refused.status in packets.NOT_OFFERED and refused.request:
        remedy += f"; its SFTP server must allow {refused.request}"
    return _unusable(reason, remedy, directory, refused)


def _unusable(
    reason: str, remedy: str, directory: bytes, refused: SftpRefused | None = None
) -> DeliveryFailed:
    where = directory.decode("utf-8", "backslashreplace")
    return DeliveryFailed(
        f"The system's image directory cannot be used: {reason}.",
        remedy=f"Tell the site's support: {remedy}.",
        detail=" in ".join(filter(None, (str(refused or ""), where))),
    )


def swept(refused: SftpRefused) -> Away:
    """Return the error for a temporary that somebody took for one of a dead attempt."""
    return Away(
        "The file was removed on the system while it was delivered.",
        remedy="Try again; tell the site's support if it happens again.",
        detail=str(refused),
    )
