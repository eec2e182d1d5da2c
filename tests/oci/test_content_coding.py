"""Content codings of documents are decoded, or refused."""

from __future__ import annotations

import gzip
import zlib

import pytest

from shiftergw.oci.content_coding import decode_content

DOCUMENT = b'{"schemaVersion": 2}' * 50


@pytest.mark.parametrize(
    ("codings", "body"),
    [
        ("", DOCUMENT),
        ("identity", DOCUMENT),
        ("gzip", gzip.compress(DOCUMENT)),
        (" X-GZIP ,identity", gzip.compress(DOCUMENT)),
        ("deflate", zlib.compress(DOCUMENT)),
        # A proxy that decodes the body may leave the header field.
        ("gzip", DOCUMENT),
    ],
)
def test_codings_are_undone(codings: str, body: bytes) -> None:
    """Gzip and deflate are decoded; the coding `identity` leaves the document unchanged."""
    assert decode_content(body, codings, len(DOCUMENT)) == DOCUMENT


def test_the_limit() -> None:
    """At most one byte beyond the limit of a long document is decompressed."""
    bomb = gzip.compress(bytes(100 << 20), 9)
    assert len(decode_content(bomb, "gzip", 1000)) == 1001


@pytest.mark.parametrize(
    ("codings", "body", "words"),
    [
        ("br", b"x", "'br'"),
        ("gzip, gzip", gzip.compress(gzip.compress(DOCUMENT)), "'gzip, gzip'"),
        ("zstd\x1b", b"x", r"\\x1b"),
        ("gzip", gzip.compress(DOCUMENT)[:-10], "breaks off"),
        ("gzip", b"\x1f\x8bxxxxxxxxxxxxxxxxx", "damaged"),
        ("deflate", b"xxxx", "damaged"),
    ],
)
def test_other_codings_are_refused(codings: str, body: bytes, words: str) -> None:
    """An unknown coding, a coding within a coding, and a damaged body are errors with a reason."""
    with pytest.raises(ValueError, match=words):
        decode_content(body, codings, 10_000)
