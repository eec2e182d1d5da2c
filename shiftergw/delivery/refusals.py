"""What it means for a delivery that a system says no."""

from __future__ import annotations

import re

from shiftergw.delivery import sftp_packets as packets
from shiftergw.delivery.channel import Away
from shiftergw.delivery.sftp_packets import Refused
from shiftergw.errors import DeliveryFailed, NoSpace

_FULL = re.compile("No space left|Disk quota exceeded")
_REASONS = {
    packets.NO_SUCH_FILE: "it is not there",
    packets.PERMISSION_DENIED: "the account may not read or write there",
}


def says_full(refused: Refused) -> bool:
    """Say whether a system calls its disk or a quota full: SFTP has no word for it."""
    return _FULL.search(str(refused)) is not None


def no_space(refused: Refused) -> NoSpace:
    """Return the error for a disk, or a quota, that is full."""
    return NoSpace(
        "The system's image directory has no space left.",
        remedy="Tell the site's support: a disk of the system, or a quota, is full.",
        detail=str(refused),
    )


def unusable(refused: Refused, directory: bytes) -> DeliveryFailed:
    """Return the error for a directory in which something cannot be done."""
    reason = _REASONS.get(refused.status, "the system could not do what it was asked")
    return DeliveryFailed(
        f"The system's image directory cannot be used: {reason}.",
        remedy="Tell the site's support: the account on the system must own `imageDir`, and have"
        " quota left.",
        detail=f"{refused} in {directory.decode('utf-8', 'backslashreplace')}",
    )


def swept(refused: Refused) -> Away:
    """Return the error for a temporary that somebody took for one of a dead attempt."""
    return Away(
        "The file was removed on the system while it was delivered.",
        remedy="Try again; tell the site's support if it happens again.",
        detail=str(refused),
    )
