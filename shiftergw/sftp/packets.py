"""The packets of SFTP version 3 (draft-ietf-secsh-filexfer-02) and of OpenSSH's extensions.

A packet is a length (4 bytes, itself not counted), a type (1 byte), and a body that begins with the
request's number (4 bytes) in all but the first packet each way. Strings are a length and bytes.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shiftergw.errors import DeliveryFailed, printable

INIT, VERSION = 1, 2
OPEN, CLOSE, READ, WRITE = 3, 4, 5, 6
LSTAT, FSTAT, SETSTAT, FSETSTAT = 7, 8, 9, 10
OPENDIR, READDIR, REMOVE, RENAME = 11, 12, 13, 18
STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105
EXTENDED, EXTENDED_REPLY = 200, 201

NAMES = {
    OPEN: "OPEN", CLOSE: "CLOSE", READ: "READ", WRITE: "WRITE", LSTAT: "LSTAT", FSTAT: "FSTAT",
    SETSTAT: "SETSTAT", FSETSTAT: "FSETSTAT", OPENDIR: "OPENDIR", READDIR: "READDIR",
    REMOVE: "REMOVE", RENAME: "RENAME",
}  # fmt: skip
"""The names of the requests in the protocol."""

FOR_READING, FOR_WRITING, CREATE, EXCLUSIVE = 0x01, 0x02, 0x08, 0x20

OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE = 0, 1, 2, 3, 4
UNSUPPORTED = 8
WRITE_PROTECTED, NO_SPACE, QUOTA_EXCEEDED = 12, 14, 15  # of later versions; some servers send them

NOT_OFFERED = frozenset({PERMISSION_DENIED, UNSUPPORTED})
"""The statuses of servers that lack a request or forbid it."""

POSIX_RENAME = b"posix-rename@openssh.com"
FSYNC = b"fsync@openssh.com"
STATVFS = b"statvfs@openssh.com"
LIMITS = b"limits@openssh.com"
COPY_DATA = b"copy-data"  # draft-ietf-secsh-filexfer-extensions-00, section 7

LONGEST_PACKET = 256 * 1024 + 1024
"""The limit on the bytes of a packet of the server; OpenSSH sends at most 256 KiB."""

_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES, _HAS_MORE = 1, 2, 4, 8, 0x80000000
NO_ATTRIBUTES = bytes(4)
_number = struct.Struct(">L")
_head = struct.Struct(">LBL")
_write_place = struct.Struct(">QL")
_copy_place = struct.Struct(">QQ")


def protocol_error(why: str) -> DeliveryFailed:
    """Return the error for an invalid reply."""
    return DeliveryFailed("The system's SFTP server does not keep the protocol.", detail=why)


def not_sftp(detail: str) -> DeliveryFailed:
    """Return the error for a first answer that is not SFTP."""
    return DeliveryFailed(
        "The system's answer is not SFTP.",
        remedy="Tell the site's support: the account on the system must have SFTP, and its"
        " start-up files must print nothing.",
        detail=detail,
    )


class SftpRefused(Exception):
    """The server refused a request.

    `status` is the status code of the reply, `request` the name of the request, such as `OPEN`, or
    empty.
    """

    def __init__(self, status: int, text: str) -> None:
        """Take the status code and the printable text of the server."""
        super().__init__(f"status {status}: {text}")
        self.status = status
        self.request = ""

    def __str__(self) -> str:
        """Return request, status and text."""
        return f"{self.request}: {super().__str__()}" if self.request else super().__str__()


@dataclass(frozen=True, slots=True)
class Attributes:
    """Attributes of a file: size in bytes, mode as in stat(2), time of the last write in seconds.

    Attributes that the server does not send are None.
    """

    size: int | None = None
    mode: int | None = None
    modified: int | None = None

    @property
    def is_file(self) -> bool:
        """Return whether this is a regular file."""
        return self.mode is not None and stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Return whether this is a symbolic link."""
        return self.mode is not None and stat.S_ISLNK(self.mode)

    @property
    def permissions(self) -> int | None:
        """Return the permission bits."""
        return None if self.mode is None else stat.S_IMODE(self.mode)


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The state of a file system: free bytes and free inodes for an unprivileged user."""

    free_bytes: int
    free_files: int | None = None
    is_read_only: bool = False


def string(value: bytes) -> bytes:
    """Return the encoding of a string."""
    return _number.pack(len(value)) + value


def request(kind: int, number: int, body: bytes) -> bytes:
    """Return a complete packet."""
    return _head.pack(5 + len(body), kind, number) + body


def hello() -> bytes:
    """Return the first packet, which announces version 3."""
    return _head.pack(5, INIT, 3)


def write_head(number: int, handle: bytes, offset: int, length: int) -> bytes:
    """Return the part of a WRITE before its `length` bytes of data."""
    head = _head.pack(21 + len(handle) + length, WRITE, number)
    return b"".join((head, string(handle), _write_place.pack(offset, length)))


def write_overhead(handle: bytes) -> int:
    """Return how many bytes a WRITE adds to its data."""
    return 25 + len(handle)


def copy_request(
    number: int, source: bytes, source_offset: int, length: int, handle: bytes, offset: int
) -> bytes:
    """Return a request to copy `length` bytes of the open file `source` to `offset` of `handle`.

    A length of 0 would mean the whole rest of the source, so it raises `ValueError`.
    """
    if not length:
        raise ValueError("a request to copy needs a length")
    place = _copy_place.pack(source_offset, length)
    body = (string(COPY_DATA), string(source), place, string(handle), offset.to_bytes(8, "big"))
    return request(EXTENDED, number, b"".join(body))


def mode_only(mode: int) -> bytes:
    """Return attributes that set a mode and nothing else."""
    return struct.pack(">LL", _HAS_MODE, mode)


class PacketBody:
    """Parses the body of a packet. Methods raise `DeliveryFailed` if it is too short."""

    def __init__(self, packet: memoryview) -> None:
        """Begin at the first byte after the type."""
        self._packet = packet
        self._at = 0

    def _take(self, length: int) -> memoryview:
        end = self._at + length
        if end > len(self._packet):
            raise protocol_error("a packet that ends too early")
        piece = self._packet[self._at : end]
        self._at = end
        return piece

    def number(self) -> int:
        """Read four bytes."""
        return int.from_bytes(self._take(4), "big")

    def long(self) -> int:
        """Read eight bytes."""
        return int.from_bytes(self._take(8), "big")

    def string(self) -> bytes:
        """Read a length and as many bytes."""
        return bytes(self._take(self.number()))

    def has_more(self) -> bool:
        """Return whether more bytes follow."""
        return self._at < len(self._packet)

    def attributes(self) -> Attributes:
        """Read the attributes of a file."""
        flags = self.number()
        size = self.long() if flags & _HAS_SIZE else None
        if flags & _HAS_OWNER:
            self._take(8)
        mode = self.number() if flags & _HAS_MODE else None
        modified = None
        if flags & _HAS_TIMES:
            self._take(4)
            modified = self.number()
        if flags & _HAS_MORE:
            for _ in range(self.number()):
                self.string()
                self.string()
        return Attributes(size, mode, modified)

    def status(self) -> SftpRefused:
        """Read a STATUS; old servers omit its text."""
        code = self.number()
        return SftpRefused(code, printable(self.string()) if self.has_more() else "")

    def longest_write(self) -> int:
        """Read the reply about the limits of the server: the bytes of a WRITE, 0 for no limit."""
        self.long()  # of a packet
        self.long()  # of a READ
        return self.long()

    def extensions(self) -> Mapping[bytes, bytes]:
        """Read the extensions after the version: names and values."""
        extensions = {}
        while self.has_more():
            name = self.string()
            extensions[name] = self.string()
        return extensions


class Splitter:
    """Splits a stream into packets; buffers at most one incomplete packet."""

    def __init__(self) -> None:
        """Start with an empty buffer."""
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, PacketBody]]:
        """Yield type and body of every complete packet.

        Raises `DeliveryFailed` for an impossible length.
        """
        content = memoryview(self._rest + data if self._rest else data)
        start = 0
        while len(content) - start >= 4:  # noqa: PLR2004 - the length
            length = int.from_bytes(content[start : start + 4], "big")
            if not 5 <= length <= LONGEST_PACKET:  # noqa: PLR2004 - type and number
                raise protocol_error(f"a packet of {length} bytes")
            end = start + 4 + length
            if end > len(content):
                break
            yield content[start + 4], PacketBody(content[start + 5 : end])
            start = end
        self._rest = bytes(content[start:])


def expect(expected: int, kind: int, body: PacketBody) -> PacketBody:
    """Return the body of a reply; raise `DeliveryFailed` unless its type is `expected`."""
    if kind != expected:
        raise protocol_error(f"type {kind} where {expected} was expected")
    return body
