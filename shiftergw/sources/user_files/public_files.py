"""Open files that everybody may read, below directories that everybody may enter.

A path is opened step by step and no link is followed, so that what is checked is what is read.
Everything but `check_public_file` blocks, for as long as the file system does not answer.
"""

from __future__ import annotations

import errno
import os
import stat

from shiftergw.errors import BadRequest, NotAllowed, printable
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls

PATH_LIMIT = 4096
"""Bytes of a path, as in Linux."""

_ACL = "system.posix_acl_access"
"""The extended attribute of an access control list, which may exclude users."""


def check_path(path: str) -> tuple[str, ...]:
    """Return the components of an absolute path; raise `BadRequest` for any other text."""
    parts = tuple(path.split("/"))[1:]
    is_valid = (
        path.startswith("/")
        and path.isprintable()
        and len(os.fsencode(path)) <= PATH_LIMIT
        and all(part not in {"", ".", ".."} for part in parts)
    )
    if not is_valid:
        raise BadRequest(
            f"{printable(path, 120)!r} is not the absolute path of a file.",
            remedy="Write it from the root, without `..`, `//` and control characters.",
        )
    return parts


def open_public_file(path: str) -> int:
    """Open a regular file that everybody may read, and return its descriptor. Blocks.

    Raises `NotAllowed`, with the same words for a file that is absent: who may not enter a
    directory does not learn what is in it.
    """
    *directories, name = check_path(path)
    flags = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW
    parent = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for directory in directories:
            child = os.open(directory, os.O_DIRECTORY | flags, dir_fd=parent)
            os.close(parent)
            parent = child
            _check_mode(parent, 0o111)
        file = os.open(name, flags, dir_fd=parent)
    except OSError as error:
        raise _not_public(path) from error
    finally:
        os.close(parent)
    # It is opened to be read only now: that can change a device, or release the writer of a pipe.
    try:
        _check_mode(file, 0o444, regular=True)
        return os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _not_public(path) from error
    finally:
        os.close(file)


def _check_mode(descriptor: int, bits: int, *, regular: bool = False) -> None:
    """Raise `OSError` unless user, group and all others have a permission.

    With `regular`, anything but a regular file is refused as well.
    """
    mode = os.fstat(descriptor).st_mode
    if mode & bits != bits or (regular and not stat.S_ISREG(mode)) or _has_acl(descriptor):
        raise PermissionError("not for everybody")


_NO_ATTRIBUTE = frozenset({errno.ENODATA, errno.ENOTSUP})


def _has_acl(descriptor: int) -> bool:
    """Return whether a file has an access list; raise `OSError` if that cannot be found out."""
    try:
        # A descriptor of O_PATH has no extended attributes; the link in /proc leads to the file.
        os.getxattr(f"/proc/self/fd/{descriptor}", _ACL)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTE:
            return False
        raise
    return True


def _not_public(path: str) -> NotAllowed:
    return NotAllowed(
        f"The gateway cannot import {printable(path, 200)}: it imports only files that everybody"
        " may read, in directories that everybody may enter, and follows no links.",
        remedy="Upload the file with `shiftergw import FILE NAME`.",
    )


async def check_public_file(path: str, calls: BoundedThreadCalls) -> None:
    """Raise `NotAllowed` unless `open_public_file` opens the file.

    The file system may hang, and users choose it: `calls` limits the threads that it keeps.
    """
    await calls.run(lambda: os.close(open_public_file(path)))
