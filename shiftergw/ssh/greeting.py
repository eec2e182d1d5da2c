"""The first lines of an SSH server: arbitrary text, then its version (RFC 4253, section 4.2)."""

from __future__ import annotations

from collections.abc import Collection

from shiftergw.errors import printable
from shiftergw.ssh.kex import broken_protocol

MOST_LINES = 1024
"""Lines before the version, at most; the limit of OpenSSH's client."""

LONGEST_LINE = 8192
"""Bytes of a line before the version, at most; the limit of OpenSSH's client."""

MOST_BYTES = 256 << 10
"""Bytes of all lines before the version, at most."""

LONGEST_VERSION = 255  # RFC 4253


class Greeting:
    """Find the server's version in a stream; discard the lines before it."""

    def __init__(self, supported: Collection[bytes]) -> None:
        """Accept these versions of the protocol."""
        self._supported = supported
        self._rest = b""
        self._lines = 0
        self._bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Take the next bytes; return the version's line and the bytes after it, if complete.

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
