"""Undo the content codings of HTTP (RFC 9110, section 8.4.1) for small documents."""

from __future__ import annotations

import zlib

from shiftergw.errors import printable

_GZIP_MAGIC = b"\x1f\x8b"
_ANY_HEADER = 32 + zlib.MAX_WBITS
"""Lets zlib read the header of gzip and of zlib."""


def decode_content(body: bytes, codings: str, limit: int) -> bytes:
    """Return a body without its codings; of a longer result the first `limit` + 1 bytes.

    `codings` is the value of `Content-Encoding`. Raises `ValueError`, whose text continues "the
    document ", for a coding that is not supported, and for a body that is damaged or incomplete.
    """
    names = [name for text in codings.split(",") if (name := text.strip().lower())]
    names = [name for name in names if name != "identity"]
    if not names:
        return body
    if names[0] in {"gzip", "x-gzip"} and len(names) == 1:
        if not body.startswith(_GZIP_MAGIC):
            return body  # a proxy has decoded it and left the header field
    elif names != ["deflate"]:
        raise ValueError(f"has the content coding {printable(codings, 40)!r}")
    decoder = zlib.decompressobj(_ANY_HEADER)
    try:
        content = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise ValueError("is damaged: it cannot be decompressed") from error
    if not decoder.eof and len(content) <= limit:
        raise ValueError("is incomplete: its compressed data breaks off")
    return content
