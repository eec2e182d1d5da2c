"""Let users open the file of an image: all of them by its mode, or some by a POSIX access list.

The access list is that of acl(5): the entries of users and groups count as far as the mask allows,
and the mask takes the place of the group in the mode of the file.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING

from shiftergw.delivery.files import MODE
from shiftergw.delivery.remote_program import NoCommands
from shiftergw.delivery.shell import run_once
from shiftergw.errors import DeliveryFailed, TimedOut
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import RemoteFiles
    from shiftergw.plumbing.channel import Connection
    from shiftergw.ports import FileAccess

_ATTRIBUTE = "system.posix_acl_access"

# Version 2, then (tag, permissions, id) for each entry, all little-endian: the kernel's
# include/uapi/linux/posix_acl_xattr.h. The entries are sorted by tag and id.
_VERSION = (2).to_bytes(4, "little")
_ENTRY = Struct("<HHI")
_OWNER, _USER, _OWNING_GROUP, _GROUP, _MASK, _PUBLIC = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 2**32 - 1
_READ, _READ_AND_WRITE = 4, 6

_ABSENT = frozenset({errno.ENODATA, errno.EOPNOTSUPP})

SET_ACCESS_LIST = (
    'command -v setfacl > /dev/null || exit 108; setfacl --set "$2" -- "$1" || exit 104'
)
"""Arguments: PATH ENTRIES. Gives a file this access list instead of its own; see setfacl(1)."""

_SECONDS = 30.0


def set_local_access(path: Path, access: FileAccess) -> bool:
    """Set who may open a file; return False, and change nothing, if other names would change, too.

    Blocks. If the file system has no access lists, the file is closed to all users; then raises
    `DeliveryFailed`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_nlink > 1:
            return not access.is_restricted and stat.S_IMODE(status.st_mode) == access.mode
        if access.is_restricted:
            _set_access_list(descriptor, access)
        else:
            _remove_access_list(descriptor)
            os.fchmod(descriptor, access.mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def _set_access_list(descriptor: int, access: FileAccess) -> None:
    try:
        os.setxattr(descriptor, _ATTRIBUTE, access_list(access))
    except OSError as error:
        os.fchmod(descriptor, MODE)
        raise no_access_list(str(error.strerror)) from error


def _remove_access_list(descriptor: int) -> None:
    try:
        os.removexattr(descriptor, _ATTRIBUTE)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def access_list(access: FileAccess) -> bytes:
    """Return the value of the extended attribute that lets the readers of a file read it."""
    users, groups = sorted(set(access.users)), sorted(set(access.groups))
    entries = [
        (_OWNER, _READ_AND_WRITE, _NO_ID),
        *((_USER, _READ, uid) for uid in users),
        (_OWNING_GROUP, 0, _NO_ID),
        *((_GROUP, _READ, gid) for gid in groups),
        (_MASK, _READ, _NO_ID),
        (_PUBLIC, 0, _NO_ID),
    ]
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)


def access_text(access: FileAccess) -> str:
    """Return the same access list as `setfacl` reads it."""
    users = [f"u:{uid}:r--" for uid in sorted(set(access.users))]
    groups = [f"g:{gid}:r--" for gid in sorted(set(access.groups))]
    return ",".join(["u::rw-", *users, "g::---", *groups, "m::r--", "o::---"])


async def set_remote_access(
    files: RemoteFiles,
    connection: Connection,
    path: bytes,
    access: FileAccess,
    clock: IReactorTime,
) -> None:
    """Set who may open a file on a system; an access list needs `setfacl` and an account for it.

    Raises `DeliveryFailed`, once the file is closed to all users, if the access list cannot be set.
    """
    if not access.is_restricted:
        await _set_mode(files, path, access.mode)
        return
    entries = access_text(access).encode()
    try:
        await run_once(connection, clock, SET_ACCESS_LIST, path, entries, seconds=_SECONDS)
    except (SftpRefused, NoCommands, TimedOut) as error:
        await _set_mode(files, path, MODE)
        detail = str(error) if isinstance(error, SftpRefused) else error.detail
        raise no_access_list(detail) from error


async def _set_mode(files: RemoteFiles, path: bytes, mode: int) -> None:
    """Set the mode of a file; raise `SftpRefused` if it has another one afterwards."""
    await files.set_mode(path, mode)
    attributes = await files.lstat(path)
    if attributes is None or attributes.permissions != mode:
        raise SftpRefused(packets.UNSUPPORTED, f"the file did not get the mode {mode:04o}")


def no_access_list(detail: str) -> DeliveryFailed:
    """Return the error for a private image whose readers cannot get access to its file."""
    return DeliveryFailed(
        "The system cannot give the file of a private image to its readers alone.",
        remedy="Tell the site's support: FileMode lets users read images, and private ones then"
        " need POSIX access lists in the image directory (over SSH also the program setfacl, and"
        " an account that runs commands).",
        detail=detail,
    )
