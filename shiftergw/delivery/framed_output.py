"""The output of a program that runs behind an account's login shell.

The shell's start-up files, a forced command or a message of the day may print before and after the
program. So the program is framed: it first prints a random mark and a newline, and in the end the
mark, its exit status and a newline. Everything outside the frame is noise.
"""

from __future__ import annotations

import secrets

NOISE_LIMIT = 16 << 20
"""Bytes that may precede the program's own output."""

_NOISE_TAIL = 300
_NEWLINES = (b"\n", b"\r\n")  # the second from a terminal
_STATUS_LENGTH = 3

# The mark is passed in halves, so that a shell that prints its commands does not print the mark.
# bash as `sh` inherits options from SHELLOPTS: with `xtrace` it would print the mark, and with
# `errexit` it would not print the second mark after an error.
_FRAME = (
    'set +eux; LC_ALL=C; export LC_ALL; mark="$1$2"; shift 2; echo "$mark"; ( {text} );'
    ' echo "$mark $?"'
)


class TooMuchNoise(Exception):
    """More than `NOISE_LIMIT` bytes came before the mark."""


class FramedOutput:
    """Extract a program's output and exit status from a byte stream."""

    def __init__(self) -> None:
        """Choose a mark."""
        self._halves = secrets.token_hex(8), secrets.token_hex(8)
        self._mark = "".join(self._halves).encode()
        self._rest = b""
        self._noise_bytes = 0
        self.noise = b""
        """The last bytes before the first mark."""
        self.has_begun = False
        self.status: int | None = None
        """The program's exit status; None before its end."""

    def command(self, text: str, *words: bytes) -> list[str]:
        """Return the arguments that run the shell program `text`; `words` become `$1`, `$2`, ….

        Bytes of a word that are not UTF-8 stay as they are.
        """
        parameters = [word.decode("utf-8", "surrogateescape") for word in words]
        return ["sh", "-c", _FRAME.format(text=text), "sh", *self._halves, *parameters]

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the stream; return the program's output among them.

        The last bytes are returned later if they may be the beginning of the second mark. Raises
        `TooMuchNoise`.
        """
        if self.status is not None:
            return b""
        data, self._rest = self._rest + data, b""
        if not self.has_begun:
            rest = self._after_first_mark(data)
            if rest is None:
                return b""
            data = rest
        return self._before_second_mark(data)

    def _after_first_mark(self, data: bytes) -> bytes | None:
        """Skip noise; return the bytes after the first mark and its newline, or None before it."""
        noise, mark, rest = data.partition(self._mark)
        while mark and len(rest) > 1 and not rest.startswith(_NEWLINES):
            self._skip(noise + mark)
            noise, mark, rest = rest.partition(self._mark)
        if not mark:
            end = len(noise) - self._partial_mark(noise)
            noise, rest = noise[:end], noise[end:]
        self._skip(noise)
        if mark and rest.startswith(_NEWLINES):
            self.has_begun = True
            return rest.partition(b"\n")[2]
        self._rest = mark + rest
        return None

    def _skip(self, noise: bytes) -> None:
        self._noise_bytes += len(noise)
        self.noise = (self.noise + noise)[-_NOISE_TAIL:]
        if self._noise_bytes > NOISE_LIMIT:
            raise TooMuchNoise

    def _before_second_mark(self, data: bytes) -> bytes:
        """Return the bytes before the second mark; store the status once it is complete."""
        output, mark, rest = data.partition(self._mark)
        if not mark:
            end = len(data) - self._partial_mark(data)
            self._rest = data[end:]
            return data[:end]
        status, newline, _ = rest.partition(b"\n")
        status = status.strip()
        if newline and status.isdigit() and len(status) <= _STATUS_LENGTH:
            self.status = int(status)
        else:
            self._rest = mark + rest[: _STATUS_LENGTH + 4]
        return output

    def _partial_mark(self, data: bytes) -> int:
        """Return how many of the last bytes may be the beginning of a mark."""
        longest = min(len(self._mark) - 1, len(data))
        lengths = range(longest, 0, -1)
        return next((n for n in lengths if data.endswith(self._mark[:n])), 0)
