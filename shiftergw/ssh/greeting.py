"""Parse the first lines of an SSH server: text, then its version (RFC 4253, section 4.2)."""

from __future__ import annotations

from collections.abc import Collection

from shiftergw.errors import printable
from shiftergw.ssh.kex import broken_protocol

MOST_LINES = 1024
"""The limit on lines before the version, as in OpenSSH's client."""

LONGEST_LINE = 8192
"""The limit on bytes of a line before the version, as in OpenSSH's client."""

MOST_BYTES = 256 << 10
"""The limit on bytes of all lines before the version."""

LONGEST_VERSION = 255  # RFC 4253


class Greeting:
    """Finds the server's version in a stream, and discards the lines before it."""

    def __init__(self, versions: Collection[bytes]) -> None:
        """Accept these protocol versions."""
        self._versions = versions
        self._rest = b""
        self._lines = 0
        self._bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Parse the next bytes; return the line of the version and the bytes after it, if complete.

        Raises `DeliveryFailed` for an unsupported version, and for too much text before it.
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
        if len(line) > LONGEST_VERSION or line.split(b"-")[1] not in self._versions:
            raise broken_protocol(f"version {printable(line)}")

    def _endless(self, amount: str, line: bytes) -> Exception:
        return broken_protocol(f"no version in the first lines: {amount} such as {printable(line)}")
