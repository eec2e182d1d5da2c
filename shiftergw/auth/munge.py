"""Credentials of munge(7): made and read for the command line, and understood for the gateway."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shiftergw.auth.libmunge import Munge, Status, find_munge
from shiftergw.errors import ChildFailed, NotAuthenticated, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

_AWAY = "munge does not answer on this machine."
_AWAY_REMEDY = "See that munged runs (`systemctl status munge`), or tell the site's support."
_DAMAGED = "This credential cannot be read on this machine."
_LOG_IN = "Log in again: `shiftergw login`, or `shifterimg login`."


def encode(payload: bytes, socket: Path | None = None, munge: Munge | None = None) -> str:
    """Return a credential of the calling user with the daemon's own defaults; blocking.

    Raises `Unavailable` when munge is away, and `NotAuthenticated` for a payload it does not take.
    """
    try:
        status, credential = (munge or find_munge()).encode(payload, socket)
    except ChildFailed as error:
        raise Unavailable(_AWAY, remedy=_AWAY_REMEDY, detail=str(error)) from error
    if status == Status.BAD_LENGTH:
        raise NotAuthenticated(
            "These are too many logins for one credential.",
            remedy="Remove those that you do not need from ~/.udiRoot/.cred.",
        )
    if status != Status.SUCCESS or not credential:
        raise Unavailable(_AWAY, remedy=_AWAY_REMEDY, detail=f"munge_encode: {status.name}")
    return credential


def decode_own(credential: str, socket: Path | None = None, munge: Munge | None = None) -> bytes:
    """Return the payload of a credential that the calling user made once; blocking.

    It may be expired or used (that is how `~/.udiRoot/.cred` keeps logins), but nobody else's.
    Raises `NotAuthenticated`, and `Unavailable` when munge is away.
    """
    content = credential.encode("utf-8", "replace")
    try:
        decoded = (munge or find_munge()).decode(content, socket)
    except ChildFailed as error:
        raise Unavailable(_AWAY, remedy=_AWAY_REMEDY, detail=str(error)) from error
    if decoded.status in {Status.SOCKET, Status.TIMEOUT, Status.SNAFU, Status.NO_MEMORY}:
        raise Unavailable(_AWAY, remedy=_AWAY_REMEDY, detail=decoded.status.name)
    if decoded.status not in {Status.SUCCESS, Status.EXPIRED, Status.REPLAYED}:
        raise NotAuthenticated(_DAMAGED, remedy=_LOG_IN, detail=decoded.status.name)
    if decoded.uid != os.getuid():
        raise NotAuthenticated("This credential is another user's.", remedy=_LOG_IN)
    return decoded.payload
