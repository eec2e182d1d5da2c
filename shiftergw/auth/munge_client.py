"""Make and read munge credentials of the calling user. Everything here blocks.

Imports no Twisted: the command line makes a credential for each request, and is to start quickly.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from shiftergw.auth.libmunge import TROUBLE, Munge, Status, find_munge
from shiftergw.auth.munge_socket import trouble_of
from shiftergw.errors import ChildFailed, NotAuthenticated, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

_UNAVAILABLE = "munge does not answer on this machine."
_UNAVAILABLE_REMEDY = "See that munged runs (`systemctl status munge`), or tell the site's support."
_UNREADABLE = "This credential cannot be read on this machine."
_LOG_IN = "Log in again: `shiftergw login`, or `shifterimg login`."


def encode(payload: bytes, socket: Path | None = None, munge: Munge | None = None) -> str:
    """Return a credential of the calling user, with the daemon's default options.

    Raises `Unavailable` while munge is away, and `NotAuthenticated` if munge rejects the payload.
    """
    try:
        status, credential = (munge or find_munge()).encode(payload, socket)
    except ChildFailed as error:
        raise Unavailable(_UNAVAILABLE, remedy=_UNAVAILABLE_REMEDY, detail=str(error)) from error
    if status == Status.BAD_LENGTH:
        raise NotAuthenticated(
            "These are too many logins for one credential.",
            remedy="Remove those that you do not need from ~/.udiRoot/.cred.",
        )
    if status != Status.SUCCESS or not credential:
        raise _unusable(socket, status)
    return credential


def _unusable(socket: Path | None, status: Status) -> Unavailable:
    """Return the error for a daemon that cannot be used, with its cause in the detail."""
    trouble = trouble_of(socket, status)
    return Unavailable(_UNAVAILABLE, remedy=_UNAVAILABLE_REMEDY, detail=trouble.what)


def try_daemon(socket: Path, munge: Munge | None = None) -> float:
    """Let a daemon make and read a credential; return by how many seconds its clock is ahead.

    The number is negative for a clock that is behind. Raises `Unavailable` with cause and remedy.
    """
    munge = munge or find_munge()
    try:
        status, credential = munge.encode(b"", socket)
        if status == Status.SUCCESS:
            answer = munge.decode(credential.encode(), socket)
            if answer.status == Status.SUCCESS and answer.made_at is not None:
                return answer.made_at - time.time()
            status = answer.status
    except ChildFailed as error:
        raise Unavailable(
            error.what,
            remedy="Install munge: the library libmunge, or the programs munge and unmunge.",
        ) from error
    trouble = trouble_of(socket, status)
    raise Unavailable(trouble.what, remedy=trouble.remedy)


def decode_own(credential: str, socket: Path | None = None, munge: Munge | None = None) -> bytes:
    """Return the payload of a credential that the calling user has made.

    The credential may be expired or used: `~/.udiRoot/.cred` keeps logins in such credentials.
    Raises `NotAuthenticated` for a credential of another user or key, and `Unavailable` while munge
    is away.
    """
    content = credential.encode("utf-8", "replace")
    try:
        answer = (munge or find_munge()).decode(content, socket)
    except ChildFailed as error:
        raise Unavailable(_UNAVAILABLE, remedy=_UNAVAILABLE_REMEDY, detail=str(error)) from error
    if answer.status in TROUBLE:
        raise _unusable(socket, answer.status)
    if answer.status not in {Status.SUCCESS, Status.EXPIRED, Status.REPLAYED}:
        raise NotAuthenticated(_UNREADABLE, remedy=_LOG_IN, detail=answer.status.name)
    if answer.uid != os.getuid():
        raise NotAuthenticated("This credential is another user's.", remedy=_LOG_IN)
    return answer.payload
