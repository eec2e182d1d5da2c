"""Hash files in pieces. Blocks: call it in a thread."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

PIECE_BYTES = 4 << 20
"""Bytes that are read at once unless the caller says otherwise."""


def hash_file(
    file: Path | int,
    algorithm: str = "sha256",
    *,
    length: int | None = None,
    should_stop: Callable[[], object] = bool,
    piece_bytes: int = PIECE_BYTES,
) -> tuple[int, str]:
    """Return how many bytes were hashed, and their digest in hexadecimal.

    `file` is a path, or a descriptor, whose position stays as it is. `length` limits the bytes that
    are hashed. `should_stop` is called before each piece: if it returns true, the digest covers the
    bytes before that piece only; it may also raise. Raises `OSError`.
    """
    if isinstance(file, Path):
        with file.open("rb", buffering=0) as stream:
            return hash_file(
                stream.fileno(),
                algorithm,
                length=length,
                should_stop=should_stop,
                piece_bytes=piece_bytes,
            )
    digest = hashlib.new(algorithm)
    buffer = memoryview(bytearray(piece_bytes))
    offset = 0
    while (length is None or offset < length) and not should_stop():
        limit = piece_bytes if length is None else min(piece_bytes, length - offset)
        count = os.preadv(file, [buffer[:limit]], offset)
        if not count:
            break
        digest.update(buffer[:count])
        offset += count
    return offset, digest.hexdigest()
