"""Access the files of a system without SFTP: with `scp` and small programs of the account's shell.

The SCP protocol always writes a file from its beginning. So the rest of a partial file is sent in
stretches: each is sent to a file beside it and then copied to its place. A broken connection costs
one stretch at most, the disk needs space for one more stretch, and copying one twice does no harm.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shiftergw.delivery import proof
from shiftergw.delivery import scp_programs as programs
from shiftergw.delivery.remote_program import RemoteProgram, invalid_reply
from shiftergw.delivery.scp import ScpSink
from shiftergw.delivery.shell import RemoteShell, program_timed_out
from shiftergw.errors import DeliveryFailed, printable
from shiftergw.plumbing.timing import within
from shiftergw.sftp import packets
from shiftergw.sftp.packets import Attributes, FileSystem, SftpRefused

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import Content
    from shiftergw.plumbing.channel import Connection

STRETCH = 128 << 20
"""Bytes of the rest of a file that are sent before they are copied to their place."""

_DD_BLOCK = 1 << 20  # stretches begin at a multiple of it
_PIECE_BLOCK = 4096
_LISTING_LIMIT = 64 << 20
_LISTING_TRIES = 3  # busybox fails if an entry disappears meanwhile
_ATTRIBUTES = re.compile(rb"([0-9a-f]{1,8}) (\d{1,19}) (-?\d{1,19})")
_TEMPORARY = re.compile(rb".*\.partial\.[0-9a-f]{16}", re.DOTALL)
_SPACE = re.compile(rb"\s\d+\s+\d+\s+(-?\d{1,18})\s+\d+%\s")


class ScpFiles:
    """Implement the protocol `RemoteFiles`."""

    unreliable_tail = 0

    def __init__(self, shell: RemoteShell, clock: IReactorTime, stretch: int = STRETCH) -> None:
        """Use a shell that has all programs; `stretch` is a multiple of 1 MiB."""
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
        """Open a session as `OpenFiles` does; check which programs the system has."""
        shell = RemoteShell(connection, clock, idle_seconds)
        missing_programs = await shell.run(programs.MISSING_PROGRAMS)
        if missing_programs:
            raise DeliveryFailed(
                'The system lacks programs that "transfer": "scp" needs.',
                remedy="Tell the site's support: the gateway's log names them.",
                detail=printable(bytes(missing_programs)),
            )
        return cls(shell, clock, stretch)

    @property
    def usable(self) -> bool:
        """Return whether the session is still open."""
        return self._shell.usable

    def close(self) -> None:
        """End the session."""
        self._shell.close()

    @property
    def copying(self) -> None:
        """Return None: only programs of the system can copy."""

    @property
    def shortcomings(self) -> Sequence[str]:
        """Return no missing features: `begin` fails if there are any."""
        return ()

    async def file_system(self, path: bytes) -> FileSystem:
        """Return the free bytes; a read-only file system shows in later errors only."""
        output = await self._shell.run(programs.SPACE, path)
        match = _SPACE.search(output)
        if match is None:
            raise SftpRefused(packets.UNSUPPORTED, f"df says {printable(output)}")
        return FileSystem(max(0, int(match[1])) * 1024)

    async def lstat(self, path: bytes) -> Attributes | None:
        """See `RemoteFiles`."""
        try:
            return _attributes(await self._shell.run(programs.LSTAT, path))
        except SftpRefused as refusal:
            if refusal.status == packets.NO_SUCH_FILE:
                return None
            raise

    async def entries(
        self, path: bytes, accepts: Callable[[bytes], bool]
    ) -> list[tuple[bytes, Attributes]]:
        """See `RemoteFiles`."""
        for tries_left in reversed(range(_LISTING_TRIES)):
            try:
                output = await self._shell.run(programs.ENTRIES, path, limit=_LISTING_LIMIT)
                break
            except SftpRefused as refusal:
                if refusal.status != packets.FAILURE or not tries_left:
                    raise
        entries = []
        for line in output.splitlines():
            attributes, _, name = line.partition(b" ./")
            if name and accepts(name):
                entries.append((name, _attributes(attributes)))
        return entries

    async def remove(self, path: bytes) -> None:
        """Remove a file; if it is a temporary, also the file that receives its stretches."""
        is_temporary = _TEMPORARY.fullmatch(path) is not None
        await self._shell.run(
            programs.REMOVE, path, *([_path_of_stretch(path)] if is_temporary else [])
        )

    async def set_mode(self, path: bytes, mode: int) -> None:
        """See `RemoteFiles`."""
        await self._shell.run(programs.SET_MODE, path, b"%o" % mode)

    async def rename(self, old: bytes, new: bytes) -> None:
        """See `RemoteFiles`. Few systems can make the rename durable."""
        await self._shell.run(programs.RENAME, old, new, seconds=proof.time_limit(0))

    async def upload(
        self, path: bytes, source: Content, start: int | None, report: Callable[[int], None]
    ) -> None:
        """See `RemoteFiles`."""
        arrived_bytes = start or 0

        def report_increase(done: int) -> None:
            nonlocal arrived_bytes
            if done > arrived_bytes:
                arrived_bytes = done
                report(done)

        stretch_path = _path_of_stretch(path)
        if not start:
            text = programs.WHOLE if start is None else programs.EMPTY
            whole = (0, source.size)
            await self._send(source, whole, report_increase, text, path, stretch_path)
        elif start < source.size:
            for begin in range(start - start % _DD_BLOCK, source.size, self._stretch):
                part = (begin, min(begin + self._stretch, source.size))
                words = (path, stretch_path, b"%d" % (begin // _DD_BLOCK))
                await self._send(source, part, report_increase, programs.STRETCH, *words)
        output = await self._shell.run(
            programs.FINISH, path, stretch_path, seconds=proof.time_limit(source.size)
        )
        if _attributes(output).size != source.size:
            raise proof.content_differs()

    async def _send(
        self,
        source: Content,
        part: tuple[int, int],
        report: Callable[[int], None],
        text: str,
        *words: bytes,
    ) -> None:
        """Run a program that contains `scp -t`; send it `part`, a (begin, end), of `source`."""
        begin, end = part
        seconds = proof.time_limit(end - begin)
        sink = ScpSink(end - begin, lambda n: report(begin + n), self._shell.idle_seconds)
        async with self._shell.running(sink, text, *words):
            with source.blocks(begin) as blocks:
                await sink.send(blocks)
            await within(seconds, self._clock, sink.wait_for_end(), program_timed_out)

    async def create(self, path: bytes, content: bytes) -> None:
        """See `RemoteFiles`."""
        written_content = await self._shell.run(
            programs.CREATE,
            path,
            stdin=content,
            limit=max(len(content), 1),
            seconds=proof.time_limit(len(content)),
        )
        if written_content != content:
            raise proof.content_differs()

    async def pieces(self, path: bytes, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `RemoteFiles`. `dd` reads whole blocks, from which the pieces are cut here."""
        words, extents = [], []
        for offset, length in places:
            first = offset // _PIECE_BLOCK
            count = -(-(offset + length) // _PIECE_BLOCK) - first
            words += [b"%d" % first, b"%d" % count]
            extents.append((first * _PIECE_BLOCK, count * _PIECE_BLOCK))
        limit = sum(length for _, length in extents) + 100
        output = await self._shell.run(
            programs.PIECES, path, *words, limit=limit, seconds=proof.time_limit(limit)
        )
        attributes, _, rest = output.partition(b"\n")
        size = _attributes(attributes).size or 0
        pieces = []
        for (offset, length), (begin, extent) in zip(places, extents, strict=True):
            expected_length = max(0, min(extent, size - begin))
            blocks, rest = rest[:expected_length], rest[expected_length:]
            if len(blocks) != expected_length:
                raise invalid_reply(f"{len(blocks)} bytes where {expected_length} are")
            pieces.append(blocks[offset - begin :][:length])
        return pieces

    async def read_through(self, path: bytes, size: int, take: Callable[[bytes], None]) -> None:
        """See `RemoteFiles`."""
        reader = _ReadingProgram(size, take)
        seconds = self._shell.idle_seconds
        async with self._shell.running(reader, programs.READ, path, b"%d" % size):
            reader.send_input(b"")
            while reader.missing_bytes:
                await within(seconds, self._clock, reader.wait_for_change(), program_timed_out)
            await within(seconds, self._clock, reader.wait_for_end(), program_timed_out)


class _ReadingProgram(RemoteProgram):
    """A program that prints exactly `size` bytes."""

    def __init__(self, size: int, take: Callable[[bytes], None]) -> None:
        super().__init__()
        self.missing_bytes = size
        self._take = take

    def take(self, data: bytes) -> None:
        """Pass the output on."""
        self.missing_bytes -= len(data)
        if self.missing_bytes < 0:
            raise invalid_reply("more of a file than was asked for")
        self._take(data)

    def check(self) -> None:
        """Raise the error of the program; an end before the last byte is an error."""
        super().check()
        if self._has_succeeded and self.missing_bytes:
            raise SftpRefused(packets.FAILURE, f"a file ended {self.missing_bytes} bytes early")


def _attributes(output: bytes) -> Attributes:
    """Return the attributes that `stat` printed: mode, size, time of the last write."""
    match = _ATTRIBUTES.fullmatch(output.rstrip(b"\n"))
    if match is None:
        raise invalid_reply(f"stat says {printable(output)}")
    return Attributes(int(match[2]), int(match[1], 16), int(match[3]))


def _path_of_stretch(path: bytes) -> bytes:
    """Return the path of the file that receives stretches of a temporary.

    Its name is that of another temporary of the same file, so that a sweep removes it.
    """
    return path[:-16] + hashlib.sha256(path).hexdigest()[:16].encode()
