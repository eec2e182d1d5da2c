"""Proof that what lies on the far side is what was sent.

`sha256sum` there makes the digest, where the account may run commands. Where it may not, pieces of
the file are read back and compared; the log and the image's record then say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shiftergw.delivery.remote_program import NoCommands, malformed
from shiftergw.delivery.shell import run_once
from shiftergw.errors import DeliveryFailed, TimedOut, printable
from shiftergw.plumbing.channel import Away, HostBusy, HostFull, ProgramNotStarted, UnexplainedExit
from shiftergw.plumbing.timing import pause
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import Files
    from shiftergw.delivery.reading import SourceFile
    from shiftergw.plumbing.channel import Connection

SLOWEST = 20_000_000
"""Bytes that a system reads, hashes or brings to its disks in a second, if it is slow."""

_LEAST_SECONDS = 60.0
_BUSY_PAUSE = 2.0
_ANSWER = re.compile(rb"^\\?([0-9a-f]{64}) ", re.MULTILINE)
_PIECE = 32768
_PIECES = 64
SAMPLED = _PIECE * _PIECES
"""Bytes of a file that samples compare; a file of this size or less is compared as a whole."""

_HAS_FILE = (
    'command -v sha256sum > /dev/null || exit 108; [ -f "$1" ] || exit 102;'
    ' [ -r "$1" ] || exit 103; '
)
DIGEST = _HAS_FILE + 'sha256sum -- "$1" || { [ -f "$1" ] || exit 102; exit 104; }'
"""PATH: prints the SHA-256 of a file."""

PREFIX_DIGEST = _HAS_FILE + 'head -c "$2" -- "$1" | sha256sum || exit 104'
"""PATH SIZE: prints the SHA-256 of a file's first bytes."""


class NoDigest(Exception):
    """The system makes no digests for this account; the text is the reason, in a few words.

    `detail` is for the site's support: it may quote the system.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        """Keep the reason and the detail."""
        super().__init__(reason)
        self.detail = detail


def patience(size: int) -> float:
    """Return the seconds that work on a whole file of `size` bytes may take over there."""
    return _LEAST_SECONDS + size / SLOWEST


async def far_sha256(
    connection: Connection, path: bytes, size: int, clock: IReactorTime, *, prefix: bool = False
) -> str:
    """Return the SHA-256 of a file on the system; with `prefix`, of its first `size` bytes.

    Raises `NoDigest` if the account cannot make one, `SftpRefused` if the file cannot be read, and
    `DeliveryFailed` if that takes too long or the connection breaks: samples must not replace the
    digest then.
    """
    seconds = patience(size)
    text, words = (PREFIX_DIGEST, [path, b"%d" % size]) if prefix else (DIGEST, [path])
    try:
        output = await _run_when_there_is_room(connection, clock, text, *words, seconds=seconds)
    except TimedOut as error:
        detail = f"sha256sum did not end within {seconds:.0f} s; {error.what} {error.detail}"
        raise DeliveryFailed(
            "The file on the system could not be checked in time.",
            remedy="Tell the site's support: the system's disks or the account's start-up files are"
            ' slow, or its account is one that needs "verify": "sample".',
            detail=detail.strip(),
        ) from error
    except (NoCommands, UnexplainedExit) as error:
        raise NoDigest("the account runs no commands", error.detail) from error
    except ProgramNotStarted as error:
        raise NoDigest("the SSH server starts no commands") from error
    except HostFull as error:
        raise NoDigest("the SSH server starts no command beside SFTP", error.detail) from error
    except SftpRefused as refused:
        if refused.status == packets.UNSUPPORTED:
            raise NoDigest("the system has no sha256sum", str(refused)) from refused
        raise
    answers = _ANSWER.findall(output)  # something in the background may print, too
    if len(answers) != 1:
        raise malformed(f"sha256sum says {printable(output)}")
    return str(answers[0].decode())


async def _run_when_there_is_room(
    connection: Connection, clock: IReactorTime, text: str, *words: bytes, seconds: float
) -> bytes:
    """Run a program; wait up to `seconds` while other programs of the gateway use the host."""
    deadline = clock.seconds() + seconds
    while True:
        try:
            return await _run_twice(connection, clock, text, *words, seconds=seconds)
        except HostBusy:
            if clock.seconds() >= deadline:
                raise
        await pause(_BUSY_PAUSE, clock)


async def _run_twice(
    connection: Connection, clock: IReactorTime, text: str, *words: bytes, seconds: float
) -> bytes:
    """Run a program, and once more if only its own connection broke."""
    try:
        return await run_once(connection, clock, text, *words, seconds=seconds)
    except Away:
        if not connection.usable:
            raise
    return await run_once(connection, clock, text, *words, seconds=seconds)


async def same_samples(files: Files, path: bytes, source: SourceFile, size: int) -> bool:
    """Say whether pieces of the first `size` bytes there are those of the source."""
    places = [(offset, min(_PIECE, size - offset)) for offset in _places(size)]
    there = await files.pieces(path, places)
    here = [await source.piece(*place) for place in places]
    return there == here


def _places(size: int) -> Iterator[int]:
    """Yield where to look: at the beginning, at the end, and evenly between."""
    if size <= SAMPLED:
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
