"""Proof that what lies on the far side is what was sent.

Asked of `sha256sum` there, where the account may run commands. Where it may not, pieces of the file
are read back and compared, and the log says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from twisted.logger import Logger

from shiftergw.delivery import sftp_packets as packets
from shiftergw.delivery.commands import Ended, run_there
from shiftergw.delivery.sftp_packets import Refused
from shiftergw.errors import DeliveryFailed, TimedOut

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.channel import Connection
    from shiftergw.delivery.files import Files
    from shiftergw.delivery.reading import SourceFile

SLOWEST = 20_000_000
"""Bytes that a system reads, hashes or brings to its disks in a second, if it is slow."""

_LEAST_SECONDS = 60.0
_ANSWER = re.compile(rb"\\?([0-9a-f]{64})\b")
_PIECE = 32768
_PIECES = 64
_PREFIX = 'head -c "$1" -- "$2" | sha256sum'
_NOT_RUN = (126, 127)  # a shell's own words for a program that it cannot run
_log = Logger()


def patience(size: int) -> float:
    """Return the seconds that work on a whole file of `size` bytes may take over there."""
    return _LEAST_SECONDS + size / SLOWEST


async def far_sha256(
    connection: Connection, path: bytes, size: int, clock: IReactorTime, *, prefix: bool = False
) -> str | None:
    """Return the digest of a file there, or of its first `size` bytes; None: nobody can tell.

    Raises `Refused` if `sha256sum` cannot read the file, and `DeliveryFailed` if that takes too
    long: samples must not stand in for it.
    """
    # The path goes as it came; what is no UTF-8 in it stays as it is.
    name = path.decode("utf-8", "surrogateescape")
    argv = ["sh", "-c", _PREFIX, "sh", str(size), name] if prefix else ["sha256sum", "--", name]
    try:
        ended = await run_there(connection, argv, patience(size), clock)
    except TimedOut as error:
        raise DeliveryFailed(
            "The file on the system could not be checked in time.",
            remedy="Tell the site's support: the system's disks are slow, or its account is one"
            ' that needs "verify": "sample".',
            detail=f"sha256sum did not end within {patience(size):.0f} s",
        ) from error
    except DeliveryFailed as error:
        _log.info("no sha256sum on the system: {error} {detail}", error=error, detail=error.detail)
        return None
    if _unreadable(ended):
        gone = "No such file" in ended.stderr
        raise Refused(packets.NO_SUCH_FILE if gone else packets.FAILURE, ended.stderr)
    answer = None if ended.status else _ANSWER.match(ended.stdout)
    if answer is None:
        _log.info("no sha256sum on the system: the account runs no commands")
        return None
    return answer[1].decode()


def _unreadable(ended: Ended) -> bool:
    """Say whether `sha256sum` ran, and failed; a shell that has none may use its name, too."""
    said = ended.stderr.lower()
    return (
        ended.status not in {0, None, *_NOT_RUN}
        and "sha256sum: " in said
        and "not found" not in said
    )


async def same_samples(files: Files, path: bytes, source: SourceFile, size: int) -> bool:
    """Say whether pieces of the first `size` bytes there are those of the source."""
    places = [(offset, min(_PIECE, size - offset)) for offset in _places(size)]
    there = await files.pieces(path, places)
    here = [await source.piece(*place) for place in places]
    return there == here


def _places(size: int) -> Iterator[int]:
    """Yield where to look: at the beginning, at the end, and evenly between."""
    if size <= _PIECE * _PIECES:
        yield from range(0, size, _PIECE)
        return
    for n in range(_PIECES):
        yield (size - _PIECE) * n // (_PIECES - 1)


def differs() -> DeliveryFailed:
    """Return the error for a file that did not arrive as it was sent."""
    return DeliveryFailed(
        "The delivered file is not what was sent.",
        remedy="Try again; tell the site's support if it happens again.",
    )
