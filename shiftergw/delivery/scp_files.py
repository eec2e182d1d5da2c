"""The files of a system without SFTP: by `scp` and small programs of the account's shell.

The protocol writes a file from its beginning, always. The rest of a file that lies there in part
goes in stretches: each is sent to a file beside it and copied to its place, so that a break costs
one stretch at most, and the disk needs room for no more than one. Copying it twice does no harm.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shiftergw.delivery import proof
from shiftergw.delivery import scp_programs as programs
from shiftergw.delivery.remote_program import Program, malformed
from shiftergw.delivery.scp import Sink
from shiftergw.delivery.shell import Shell, timed_out
from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.timing import within
from shiftergw.sftp import packets
from shiftergw.sftp.packets import Attributes, FileSystem, SftpRefused

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.reading import SourceFile
    from shiftergw.plumbing.channel import Connection

STRETCH = 128 << 20
"""Bytes of the rest of a file that are sent before they are copied to their place."""

_BLOCK = 1 << 20  # of `dd`; a rest begins at a multiple of it
_PIECE_BLOCK = 4096
_LISTING_LIMIT = 64 << 20
_LISTINGS = 3  # tries: busybox fails when an entry goes meanwhile
_ATTRIBUTES = re.compile(rb"([0-9a-f]{1,8}) (\d{1,19}) (-?\d{1,19})")
_TEMPORARY = re.compile(rb".*\.partial\.[0-9a-f]{16}", re.DOTALL)
_SPACE = re.compile(rb"\s\d+\s+\d+\s+(-?\d{1,18})\s+\d+%\s")


class ScpFiles:
    """Keeps the protocol `Files`."""

    reach = 0

    def __init__(self, shell: Shell, clock: IReactorTime, stretch: int = STRETCH) -> None:
        """Use a shell that has all programs; a stretch is a multiple of 1 MiB."""
        self._shell = shell
        self._clock = clock
        self._stretch = stretch

    @classmethod
    async def begin(
        cls,
        connection: Connection,
        clock: IReactorTime,
        idle_seconds: float,
        stretch: int = STRETCH,
    ) -> ScpFiles:
        """Begin a session over a connection, as `OpenFiles` says; see which programs are there."""
        shell = Shell(connection, clock, idle_seconds)
        lacking = await shell.run(programs.NEEDED)
        if lacking:
            raise DeliveryFailed(
                'The system lacks programs that "transfer": "scp" needs.',
                remedy="Tell the site's support: the gateway's log names them.",
                detail=printable(bytes(lacking)),
            )
        return cls(shell, clock, stretch)

    @property
    def usable(self) -> bool:
        """Say whether the session is not over."""
        return self._shell.usable

    def close(self) -> None:
        """End the session."""
        self._shell.close()

    @property
    def shortcomings(self) -> Sequence[str]:
        """Return no missing features: `begin` fails if there are any."""
        return ()

    async def file_system(self, path: bytes) -> FileSystem:
        """Return the free bytes, as `Files` says; a read-only file system shows in an error."""
        said = await self._shell.run(programs.SPACE, path)
        found = _SPACE.search(said)
        if found is None:
            raise SftpRefused(packets.UNSUPPORTED, f"df says {printable(said)}")
        return FileSystem(max(0, int(found[1])) * 1024)

    async def lstat(self, path: bytes) -> Attributes | None:
        """Return the attributes of a name, as `Files` says."""
        try:
            return _attributes(await self._shell.run(programs.LSTAT, path))
        except SftpRefused as refused:
            if refused.status == packets.NO_SUCH_FILE:
                return None
            raise

    async def entries(
        self, path: bytes, wanted: Callable[[bytes], bool]
    ) -> list[tuple[bytes, Attributes]]:
        """Return entries of a directory, as `Files` says."""
        for left in reversed(range(_LISTINGS)):
            try:
                said = await self._shell.run(programs.ENTRIES, path, limit=_LISTING_LIMIT)
                break
            except SftpRefused as refused:
                if refused.status != packets.FAILURE or not left:
                    raise
        found = []
        for line in said.splitlines():
            told, _, name = line.partition(b" ./")
            if name and wanted(name):
                found.append((name, _attributes(told)))
        return found

    async def remove(self, path: bytes) -> None:
        """Remove a file, as `Files` says, with what was to become its next stretch."""
        await self._shell.run(
            programs.REMOVE, path, *([_beside(path)] if _is_temporary(path) else [])
        )

    async def rename(self, old: bytes, new: bytes) -> None:
        """Rename a file, as `Files` says; systems that sync directories are few."""
        await self._shell.run(programs.RENAME, old, new, seconds=proof.patience(0))

    async def upload(
        self, path: bytes, source: SourceFile, start: int | None, report: Callable[[int], None]
    ) -> None:
        """Write a file, as `Files` says."""
        there = start or 0

        def tell(done: int) -> None:
            nonlocal there
            if done > there:
                there = done
                report(done)

        beside = _beside(path)
        if not start:
            text = programs.WHOLE if start is None else programs.EMPTY
            await self._send(source, (0, source.size), tell, text, path, beside)
        elif start < source.size:
            for begin in range(start - start % _BLOCK, source.size, self._stretch):
                end = min(begin + self._stretch, source.size)
                place = b"%d" % (begin // _BLOCK)
                await self._send(source, (begin, end), tell, programs.STRETCH, path, beside, place)
        said = await self._shell.run(
            programs.FINISH, path, beside, seconds=proof.patience(source.size)
        )
        if _attributes(said).size != source.size:
            raise proof.differs()

    async def _send(
        self,
        source: SourceFile,
        part: tuple[int, int],
        tell: Callable[[int], None],
        text: str,
        *words: bytes,
    ) -> None:
        """Run a program with a sink in it, and send it a part of a file, by its two ends."""
        begin, end = part
        sink = Sink(end - begin, lambda n: tell(begin + n), self._shell.idle_seconds)
        async with self._shell.started(sink, text, *words):
            with source.blocks(begin) as blocks:
                await sink.send(blocks)
            await within(proof.patience(end - begin), self._clock, sink.finished(), timed_out)

    async def create(self, path: bytes, content: bytes) -> None:
        """Make a small file, as `Files` says."""
        seconds = proof.patience(len(content))
        limit = max(len(content), 1)
        if (
            await self._shell.run(
                programs.CREATE, path, given=content, limit=limit, seconds=seconds
            )
            != content
        ):
            raise proof.differs()

    async def pieces(self, path: bytes, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return pieces of a file, as `Files` says."""
        # dd reads blocks; those that a piece lies in are cut here.
        words, lengths = [], []
        for offset, length in places:
            first = offset // _PIECE_BLOCK
            count = -(-(offset + length) // _PIECE_BLOCK) - first
            words += [b"%d" % first, b"%d" % count]
            lengths.append((first * _PIECE_BLOCK, count * _PIECE_BLOCK))
        limit = sum(length for _, length in lengths) + 100
        said = await self._shell.run(
            programs.PIECES, path, *words, limit=limit, seconds=proof.patience(limit)
        )
        told, _, rest = said.partition(b"\n")
        size = _attributes(told).size or 0
        found = []
        for (offset, length), (begin, blocks) in zip(places, lengths, strict=True):
            whole = max(0, min(blocks, size - begin))
            piece, rest = rest[:whole], rest[whole:]
            if len(piece) != whole:
                raise malformed(f"{len(piece)} bytes where {whole} are")
            found.append(piece[offset - begin :][:length])
        return found

    async def read_through(self, path: bytes, size: int, take: Callable[[bytes], None]) -> None:
        """Read a file, as `Files` says."""
        reading = _Reading(size, take)
        async with self._shell.started(reading, programs.READ, path, b"%d" % size):
            reading.give(b"")
            while reading.left:
                await within(self._shell.idle_seconds, self._clock, reading.changed(), timed_out)
            await within(self._shell.idle_seconds, self._clock, reading.finished(), timed_out)


class _Reading(Program):
    """A program that says so many bytes and no more."""

    def __init__(self, size: int, take: Callable[[bytes], None]) -> None:
        super().__init__()
        self.left = size
        self._take = take

    def take(self, data: bytes) -> None:
        """Pass it on."""
        self.left -= len(data)
        if self.left < 0:
            raise malformed("more of a file than was asked for")
        self._take(data)

    def check(self) -> None:
        """Raise what is wrong; an end before the last byte is."""
        super().check()
        if self._ended and self.left:
            raise SftpRefused(packets.FAILURE, f"a file ended {self.left} bytes early")


def _attributes(said: bytes) -> Attributes:
    found = _ATTRIBUTES.fullmatch(said.rstrip(b"\n"))
    if found is None:
        raise malformed(f"stat says {printable(said)}")
    return Attributes(int(found[2]), int(found[1], 16), int(found[3]))


def _is_temporary(path: bytes) -> bool:
    return _TEMPORARY.fullmatch(path) is not None


def _beside(path: bytes) -> bytes:
    """Return where a stretch for this temporary lies: another temporary, of the same file."""
    return path[:-16] + hashlib.sha256(path).hexdigest()[:16].encode()
