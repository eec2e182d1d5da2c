"""Requests to an SFTP server: files, directories, file systems."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred

from shiftergw.plumbing.gather import cancel_all
from shiftergw.sftp import packets
from shiftergw.sftp.packets import (
    Attributes,
    FileSystem,
    SftpRefused,
    expect,
    protocol_error,
    string,
)
from shiftergw.sftp.session import SftpSession

_LONGEST_HANDLE = 256  # limit of the draft
_READ_ONLY = 1  # SSH2_FXE_STATVFS_ST_RDONLY
_READ = 32768
_READS = 64


class Sftp(SftpSession):
    """An SFTP client. Paths are bytes. Methods raise `SftpRefused` and `DeliveryFailed`."""

    # Kinds of requests

    async def handle(self, kind: int, body: bytes) -> bytes:
        """Send a request whose reply is a handle; return the handle."""
        answer, rest = await self.request(kind, body)
        handle = expect(packets.HANDLE, answer, rest).string()
        if len(handle) > _LONGEST_HANDLE:
            raise protocol_error(f"a handle of {len(handle)} bytes")
        return handle

    async def extended_request(self, name: bytes, body: bytes, patience: float = 0) -> None:
        """Send an extended request whose reply is a status, if the server offers it."""
        if name not in self.extensions:
            raise SftpRefused(packets.UNSUPPORTED, name.decode())
        try:
            await self.do(packets.EXTENDED, string(name) + body, patience)
        except SftpRefused as refusal:
            refusal.request = name.decode()
            raise

    async def do(self, kind: int, body: bytes, patience: float = 0) -> None:
        """Send a request whose reply is a status."""
        answer, _ = await self.request(kind, body, patience)
        if answer != packets.STATUS:
            raise protocol_error(f"type {answer} where a status was expected")

    # Files and directories

    async def open(self, path: bytes, flags: int, mode: int | None = 0o600) -> bytes:
        """Open a file and return its handle; `mode` is for new files, None leaves it open."""
        attributes = packets.NO_ATTRIBUTES if mode is None else packets.mode_only(mode)
        body = string(path) + flags.to_bytes(4, "big") + attributes
        return await self.handle(packets.OPEN, body)

    async def close_handle(self, handle: bytes) -> None:
        """Close a file."""
        await self.do(packets.CLOSE, string(handle))

    async def lstat(self, path: bytes) -> Attributes | None:
        """Return the attributes of a path without following links; None if it does not exist."""
        try:
            kind, body = await self.request(packets.LSTAT, string(path))
            return expect(packets.ATTRS, kind, body).attributes()
        except SftpRefused as refusal:
            if refusal.status == packets.NO_SUCH_FILE:
                return None
            raise

    async def fstat(self, handle: bytes) -> Attributes:
        """Return the attributes of an open file."""
        kind, body = await self.request(packets.FSTAT, string(handle))
        return expect(packets.ATTRS, kind, body).attributes()

    async def set_mode(self, handle: bytes, mode: int) -> None:
        """Set the mode of an open file."""
        await self.do(packets.FSETSTAT, string(handle) + packets.mode_only(mode))

    async def set_mode_of(self, path: bytes, mode: int) -> None:
        """Set the mode of the file at a path."""
        await self.do(packets.SETSTAT, string(path) + packets.mode_only(mode))

    async def sync(self, handle: bytes, patience: float) -> None:
        """Sync a file to the disk, which may take `patience` seconds."""
        await self.extended_request(packets.FSYNC, string(handle), patience)

    async def remove(self, path: bytes) -> None:
        """Remove a file if it exists."""
        try:
            await self.do(packets.REMOVE, string(path))
        except SftpRefused as refusal:
            if refusal.status != packets.NO_SUCH_FILE:
                raise

    async def rename(self, old: bytes, new: bytes) -> None:
        """Replace `new` by `old`, atomically if the server supports that.

        Otherwise `new` is removed first, but only after a rename was refused because `new` exists,
        not if the server forbids renames or `old` does not exist.
        """
        names = string(old) + string(new)
        if not await self._is_offered(self.extended_request(packets.POSIX_RENAME, names)):
            await self._rename_plainly(old, new)

    async def _is_offered(self, request: Coroutine[Any, Any, None]) -> bool:
        """Await a request; return False if the server lacks or forbids it."""
        try:
            await request
        except SftpRefused as refusal:
            if refusal.status in packets.NOT_OFFERED:
                return False
            raise
        return True

    async def _rename_plainly(self, old: bytes, new: bytes) -> None:
        names = string(old) + string(new)
        try:
            await self.do(packets.RENAME, names)
        except SftpRefused as refusal:
            if refusal.status in packets.NOT_OFFERED:
                raise
            if await self.lstat(old) is None or await self.lstat(new) is None:
                raise
            await self.remove(new)
            await self.do(packets.RENAME, names)

    async def file_system(self, path: bytes) -> FileSystem:
        """Return the state of the file system of a path."""
        if packets.STATVFS not in self.extensions:
            raise SftpRefused(packets.UNSUPPORTED, "no statvfs")
        kind, body = await self.request(packets.EXTENDED, string(packets.STATVFS) + string(path))
        expect(packets.EXTENDED_REPLY, kind, body)
        values = [body.long() for _ in range(10)]
        _block, fragment, _all, _free, blocks, files, _free_files, free_files, _id, flags = values
        # File systems that create inodes on demand report a total of 0 inodes.
        return FileSystem(
            fragment * blocks, free_files if files else None, bool(flags & _READ_ONLY)
        )

    async def list(
        self, path: bytes, is_selected: Callable[[bytes], bool]
    ) -> list[tuple[bytes, Attributes]]:
        """Return names and attributes of the directory entries whose names are selected."""
        handle = await self.handle(packets.OPENDIR, string(path))
        entries = []
        try:
            while True:
                kind, body = await self.request(packets.READDIR, string(handle))
                expect(packets.NAME, kind, body)
                count = body.number()
                if not count:  # some servers send this instead of EOF, again and again
                    break
                for _ in range(count):
                    name, _long, attributes = body.string(), body.string(), body.attributes()
                    if is_selected(name):
                        entries.append((name, attributes))
        except SftpRefused as refusal:
            if refusal.status != packets.EOF:
                raise
        await self.close_handle(handle)
        return entries

    async def read(self, handle: bytes, offset: int, length: int) -> bytes:
        """Read `length` bytes of a file; fewer only at its end."""
        pieces = []
        while length:
            request_length = min(length, _READ)
            place = offset.to_bytes(8, "big") + request_length.to_bytes(4, "big")
            try:
                kind, body = await self.request(packets.READ, string(handle) + place)
            except SftpRefused as refusal:
                if refusal.status == packets.EOF:
                    break
                raise
            piece = expect(packets.DATA, kind, body).string()
            if not 0 < len(piece) <= request_length:
                raise protocol_error(f"{len(piece)} bytes where {request_length} were asked for")
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    async def read_through(self, handle: bytes, size: int, take: Callable[[bytes], None]) -> None:
        """Pass the first `size` bytes of a file to `take` in order, reading ahead."""
        reads: deque[Deferred[bytes]] = deque()
        offset = 0
        try:
            while offset < size or reads:
                while offset < size and len(reads) < _READS:
                    length = min(_READ, size - offset)
                    reads.append(Deferred.fromCoroutine(self.read(handle, offset, length)))
                    offset += length
                take(await reads[0])
                reads.popleft()
        finally:
            cancel_all(reads)
