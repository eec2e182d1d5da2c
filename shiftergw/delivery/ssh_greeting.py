"""The lines with which an SSH server begins: any, and then its version (RFC 4253, section 4.2)."""

from __future__ import annotations

from collections.abc import Collection

from shiftergw.delivery.ssh_kex import broken_protocol
from shiftergw.errors import printable

MOST_LINES = 1024
"""Lines before the version, at most; as OpenSSH's client has it."""

LONGEST_LINE = 8192
"""Bytes of a line before the version, at most; as OpenSSH's client has it."""

MOST_BYTES = 256 << 10
"""Bytes of all lines before the version, at most."""

LONGEST_VERSION = 255  # RFC 4253


class Greeting:
    """Find a server's version in the stream; nothing of the lines before it is kept."""

    def __init__(self, supported: Collection[bytes]) -> None:
        """Accept these versions of the protocol."""
        self._supported = supported
        self._rest = b""
        self._lines = 0
        self._bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Return the line of the version and what follows it, or None before its end.

        Raises `DeliveryFailed` for another version, and for too much before any.
        """
        data, self._rest = self._rest + data, b""
        while True:
            line, newline, data = data.partition(b"\n")
            if len(line) > LONGEST_LINE:
                raise self._endless("a line", line)
            if not newline:
                self._rest = line
                return None
            line = line.rstrip(b"\r")
            if line.startswith(b"SSH-"):
                self._check_version(line)
                return line, data
            self._lines += 1
            self._bytes += len(line) + 1
            if self._lines > MOST_LINES or self._bytes > MOST_BYTES:
                raise self._endless(f"{self._lines} lines", line)

    def _check_version(self, line: bytes) -> None:
        if len(line) > LONGEST_VERSION or line.split(b"-")[1] not in self._supported:
            raise broken_protocol(f"version {printable(line)}")

    def _endless(self, what: str, line: bytes) -> Exception:
        return broken_protocol(f"no version in the first lines: {what} such as {printable(line)}")
