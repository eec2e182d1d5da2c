"""Prove that a file on a system is the file that was sent.

`openssl` or `sha256sum` on the system computes the digest if the account may run commands.
Otherwise samples of the file are read back and compared; the log and the record of the image then
say so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from shiftergw.delivery.remote_program import NoCommands, invalid_reply
from shiftergw.delivery.shell import run_once
from shiftergw.errors import DeliveryFailed, TimedOut, printable
from shiftergw.plumbing.channel import (
    HostBusy,
    HostFull,
    ProgramNotStarted,
    SystemUnavailable,
    UnexplainedExit,
)
from shiftergw.plumbing.timing import pause
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import RemoteFiles
    from shiftergw.delivery.source_file import SourceFile
    from shiftergw.plumbing.channel import Connection

T = TypeVar("T")

SLOWEST = 20_000_000
"""Bytes that a slow system reads, hashes or writes to its disks in a second."""

_LEAST_SECONDS = 60.0
_BUSY_PAUSE = 2.0
_DIGEST_LINE = re.compile(rb"^\\?([0-9a-f]{64}) ", re.MULTILINE)
_PIECE = 32768
_PIECES = 64
SAMPLE_BYTES = _PIECE * _PIECES
"""Bytes of a file that samples cover; a file of at most this size is compared completely."""

# `openssl` uses the SHA instructions of the processor; `sha256sum` of most distributions does not
# (measured: 0.17 s and 0.85 s of CPU for 300 MB). An `openssl` without a usable digest is not used.
_PROGRAM = (
    'openssl=; case "$(openssl dgst -sha256 -r < /dev/null 2> /dev/null)" in'
    f" {hashlib.sha256().hexdigest()}*) openssl=1;;"
    " *) command -v sha256sum > /dev/null || exit 108;; esac;"
)
_HAS_FILE = f'{_PROGRAM} [ -f "$1" ] || exit 102; [ -r "$1" ] || exit 103; '
_OPENSSL = '[ -n "$openssl" ]; then openssl dgst -sha256 -r'

DIGEST = (
    f'{_HAS_FILE}if {_OPENSSL} < "$1"; else sha256sum -- "$1"; fi'
    ' || { [ -f "$1" ] || exit 102; exit 104; }'
)
"""Arguments: PATH. Prints the SHA-256 of a file."""

PREFIX_DIGEST = f'{_HAS_FILE}head -c "$2" -- "$1" | if {_OPENSSL}; else sha256sum; fi || exit 104'
"""Arguments: PATH SIZE. Prints the SHA-256 of the first bytes of a file."""


class NoDigest(Exception):
    """The system computes no digests for this account; the text is the reason, in a few words.

    `detail` is for the site's support and may quote the system.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        """Store the reason and the detail."""
        super().__init__(reason)
        self.detail = detail


def time_limit(size: int) -> float:
    """Return the seconds that a system may spend on a whole file of `size` bytes."""
    return _LEAST_SECONDS + size / SLOWEST


async def remote_sha256(
    connection: Connection, path: bytes, size: int, clock: IReactorTime, *, prefix: bool = False
) -> str:
    """Return the SHA-256 of a file on the system; with `prefix`, of its first `size` bytes.

    Raises `NoDigest` if the account cannot compute one, and `SftpRefused` if the file cannot be
    read. Raises `DeliveryFailed` if the computation takes too long or the connection breaks;
    samples must not replace the digest in this case.
    """
    seconds = time_limit(size)
    text, words = (PREFIX_DIGEST, [path, b"%d" % size]) if prefix else (DIGEST, [path])
    try:
        output = await when_not_busy(
            lambda: _run_with_one_retry(connection, clock, text, *words, seconds=seconds),
            clock,
            seconds,
        )
    except TimedOut as error:
        detail = f"no digest within {seconds:.0f} s; {error.what} {error.detail}"
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
    except SftpRefused as refusal:
        if refusal.status == packets.UNSUPPORTED:
            raise NoDigest("the system has no sha256sum", str(refusal)) from refusal
        raise
    digests = _DIGEST_LINE.findall(output)  # a background process may print as well
    if len(digests) != 1:
        raise invalid_reply(f"the digest program says {printable(output)}")
    return str(digests[0].decode())


async def when_not_busy(run: Callable[[], Awaitable[T]], clock: IReactorTime, seconds: float) -> T:
    """Return the result of `run`; wait up to `seconds` while other programs fill the host."""
    deadline = clock.seconds() + seconds
    while True:
        try:
            return await run()
        except HostBusy:
            if clock.seconds() >= deadline:
                raise
        await pause(_BUSY_PAUSE, clock)


async def _run_with_one_retry(
    connection: Connection, clock: IReactorTime, text: str, *words: bytes, seconds: float
) -> bytes:
    """Run a program; repeat it once if its channel broke but the connection is still usable."""
    try:
        return await run_once(connection, clock, text, *words, seconds=seconds)
    except SystemUnavailable:
        if not connection.usable:
            raise
    return await run_once(connection, clock, text, *words, seconds=seconds)


async def has_same_samples(files: RemoteFiles, path: bytes, source: SourceFile, size: int) -> bool:
    """Return whether samples of the first `size` bytes on the system equal those of the source."""
    places = [(offset, min(_PIECE, size - offset)) for offset in _sample_offsets(size)]
    remote_samples = await files.pieces(path, places)
    return remote_samples == [await source.piece(*place) for place in places]


def _sample_offsets(size: int) -> Iterator[int]:
    """Yield offsets at the beginning, at the end, and evenly spaced in between."""
    if size <= SAMPLE_BYTES:
        yield from range(0, size, _PIECE)
        return
    for n in range(_PIECES):
        yield (size - _PIECE) * n // (_PIECES - 1)


def content_differs() -> DeliveryFailed:
    """Return the error for a delivered file whose content differs from what was sent."""
    return DeliveryFailed(
        "The delivered file is not what was sent.",
        remedy="Try again; tell the site's support if it happens again.",
    )
