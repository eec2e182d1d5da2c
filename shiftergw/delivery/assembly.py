"""Put a file together on a system with `dd`, where the server cannot copy but the account may.

The bytes that the system lacks are sent to a file beside, a stretch at a time. A program there
appends ranges of that file and of the installed image to the temporary, in order: so a broken
delivery leaves the beginning of the file, without holes.

The program opens each file once and reads its operations from its input. If the connection breaks,
it ends after the operations that it has, and it does not change a file that was created under the
same name meanwhile.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shiftergw.delivery import proof
from shiftergw.delivery.delta import DeltaPlan, DeltaUnusable, Segment, segments_from
from shiftergw.delivery.remote_program import (
    NoCommands,
    RemoteProgram,
    invalid_reply,
    running_program,
)
from shiftergw.delivery.shell import program_timed_out
from shiftergw.errors import DeliveryFailed, TimedOut, printable
from shiftergw.plumbing.channel import HostFull, ProgramNotStarted, UnexplainedExit
from shiftergw.plumbing.timing import within
from shiftergw.sftp.packets import SftpRefused

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.delivery.files import RemoteFiles
    from shiftergw.delivery.source_file import SourceFile
    from shiftergw.plumbing.channel import Connection

STRETCH = 128 << 20
"""Bytes that are sent before they are appended to the file; the disk needs space for them."""

OPERATION = 32 << 20
"""The limit on the bytes of one `dd`; the progress is reported after each of them."""

CLEAN_UP_SECONDS = 15.0
"""Seconds that the removal of the file beside may take."""

_MOST_OPERATIONS = 4096  # of one program
_AHEAD_BYTES = 64 << 20  # that the program may have to do
_AHEAD_OPERATIONS = 256

_SENT_FD, _SHARED_FD = 7, 8  # the descriptors of the files to copy from

ASSEMBLE = (
    '[ -f "$1" ] && [ -f "$2" ] || exit 102;'
    f' exec {_SENT_FD}< "$3" {_SHARED_FD}< "$2" 9<> "$1" || exit 104;'
    ' m=$(dd if=/dev/null bs=1 "seek=$4" count=0 conv=notrunc 2>&1 >&9)'
    ' || { echo "$m" >&2; exit 104; };'
    ' while read -r d s n; do m=$(dd if=/dev/fd/0 bs=1048576 "skip=$s" "count=$n"'
    ' iflag=skip_bytes,count_bytes conv=notrunc <&"$d" 2>&1 >&9)'
    ' || { echo "$m" >&2; exit 104; }; echo; done'
)
"""Arguments: PATH SHARED SENT START. Appends ranges of SHARED and SENT to PATH, from byte START on.

The input has a line for each range: the descriptor of its file, its offset and its length. A
newline is printed after each of them. All of them write to one descriptor, which keeps the
position; each opens its source anew, since `dd` cannot seek back. A `dd` that finds fewer bytes
than it should succeeds all the same.
"""


@dataclass(frozen=True, slots=True)
class Operation:
    """A range to append: `length` bytes at `offset` of the file with this descriptor."""

    descriptor: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The operations of one program, from byte `start` of the file; `extents` are sent for it."""

    start: int
    operations: tuple[Operation, ...]
    extents: tuple[tuple[int, int], ...]


def batches_of(segments: Sequence[Segment], stretch: int = STRETCH) -> Iterator[Batch]:
    """Yield the batches that put segments together; each sends at most `stretch` bytes."""
    waiting = deque(segments)
    while waiting:
        start = waiting[0].offset
        operations: list[Operation] = []
        extents: list[tuple[int, int]] = []
        sent_bytes = 0
        while waiting and len(operations) < _MOST_OPERATIONS and sent_bytes < stretch:
            segment = waiting.popleft()
            length = min(segment.length, OPERATION)
            if segment.source_offset is None:
                length = min(length, stretch - sent_bytes)
                operations.append(Operation(_SENT_FD, sent_bytes, length))
                extents.append((segment.offset, length))
                sent_bytes += length
            else:
                operations.append(Operation(_SHARED_FD, segment.source_offset, length))
            if length < segment.length:
                waiting.appendleft(segment.between(segment.offset + length, segment.end))
        yield Batch(start, tuple(operations), tuple(extents))


class AssemblyProgram(RemoteProgram):
    """A running `ASSEMBLE`."""

    def __init__(self) -> None:
        """Start without operations."""
        super().__init__()
        self._queue: deque[Operation] = deque()

    async def append(
        self, operations: Sequence[Operation], on_copied: Callable[[int], None]
    ) -> None:
        """Carry out the operations; `on_copied` gets the bytes of each shared range."""
        self._on_copied = on_copied
        for operation in operations:
            while self._is_ahead():
                await self._wait_for_progress()
            self._queue.append(operation)
            self._channel.write(b"%d %d %d\n" % _fields(operation))
        while self._queue:
            await self._wait_for_progress()
        self._channel.end_input()
        await within(proof.time_limit(0), self._clock, self.wait_for_end(), program_timed_out)

    def _is_ahead(self) -> bool:
        byte_count = sum(operation.length for operation in self._queue)
        return byte_count >= _AHEAD_BYTES or len(self._queue) >= _AHEAD_OPERATIONS

    async def _wait_for_progress(self) -> None:
        seconds = proof.time_limit(self._queue[0].length)
        await within(seconds, self._clock, self.wait_for_change(), program_timed_out)

    def check(self) -> None:
        """Raise the error of the program; an end before the last operation is an error."""
        super().check()
        if self._has_succeeded and self._queue:
            raise invalid_reply("it ended before its last operation")

    def take(self, data: bytes) -> None:
        """Process the newlines after operations."""
        if data.strip(b"\r\n") or data.count(b"\n") > len(self._queue):
            raise invalid_reply(f"dd says {printable(data)}")
        for _ in range(data.count(b"\n")):
            operation = self._queue.popleft()
            if operation.descriptor == _SHARED_FD:
                self._on_copied(operation.length)


def _fields(operation: Operation) -> tuple[int, int, int]:
    return operation.descriptor, operation.offset, operation.length


@dataclass(frozen=True, slots=True)
class Assembly:
    """Puts the file `path` together from `source` and what `plan` shares."""

    files: RemoteFiles
    connection: Connection
    clock: IReactorTime
    path: bytes
    source: SourceFile
    plan: DeltaPlan

    async def run(
        self, start: int | None, report: Callable[[int], None], stretch: int = STRETCH
    ) -> None:
        """Complete the file from byte `start`; with None, create it.

        `report` gets the number of bytes of the file that have arrived or were copied. Raises
        `SftpRefused`, `DeliveryFailed`, and `DeltaUnusable` if the account runs no such program.
        """
        if start is None:
            await self.files.remove(self.path)
            await self.files.create(self.path, b"")
        done = start or 0

        def advance(byte_count: int) -> None:
            nonlocal done
            done += byte_count
            report(done)

        beside = path_beside(self.path)
        try:
            for batch in batches_of(segments_from(self.plan.segments, done), stretch):
                await self._append(batch, beside, advance)
        finally:
            if self.files.usable:
                with suppress(SftpRefused, DeliveryFailed, TimedOut):
                    removal = self.files.remove(beside)
                    await within(CLEAN_UP_SECONDS, self.clock, removal, program_timed_out)
        # Nothing is left to send: this sets the mode, syncs the file and checks its size.
        await self.files.upload(self.path, self.source, self.source.size, lambda _: None)

    async def _append(self, batch: Batch, beside: bytes, advance: Callable[[int], None]) -> None:
        sent_path = b"/dev/null"
        if batch.extents:
            sent_path = beside
            sent_bytes = 0

            def report_sent(arrived_bytes: int) -> None:
                nonlocal sent_bytes
                advance(arrived_bytes - sent_bytes)
                sent_bytes = arrived_bytes

            await self.files.upload(beside, self.source.extents(batch.extents), None, report_sent)
        words = (self.path, self.plan.path, sent_path, b"%d" % batch.start)

        async def run() -> None:
            program = AssemblyProgram()
            async with running_program(self.connection, self.clock, program, ASSEMBLE, *words):
                await program.append(batch.operations, advance)

        try:
            await proof.when_not_busy(run, self.clock, proof.time_limit(0))
        except (NoCommands, UnexplainedExit, ProgramNotStarted, HostFull) as error:
            raise DeltaUnusable(f"the account runs no command: {error.detail}") from error


def path_beside(path: bytes) -> bytes:
    """Return the path of the file that receives what is sent.

    Its name is that of another temporary of the same file, so that a sweep removes it.
    """
    return path[:-16] + hashlib.sha256(b"assembly " + path).hexdigest()[:16].encode()
