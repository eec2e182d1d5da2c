"""Limits on the head of an HTTP response, for every HTTP client of the program."""

from __future__ import annotations

MAX_BYTES = 64 << 10
"""Bytes of a response head, 1xx responses before it included.

Registries redirect to signed URLs of a few kilobytes, some of more than 16, and send some dozen
fields.
"""

MAX_LINES = 512

MAX_LINE = 32 << 10
"""Bytes of a line."""


class HeadTooLong(Exception):
    """A server's response head is longer than any that makes sense."""

    def __init__(self) -> None:
        """Name the limits in the message."""
        super().__init__(
            f"a response head of more than {MAX_BYTES} bytes or {MAX_LINES} lines, or"
            f" with a line of more than {MAX_LINE} bytes"
        )
