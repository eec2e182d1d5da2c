"""Reading a tar stream across the borders of its pieces."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.errors import LayerInvalid
from shiftergw.oci.tar_stream import TarStream

DATA = bytes(range(256)) * 8


def stream_of(data: bytes, piece_size: int) -> TarStream:
    """Return a stream of pieces of this size."""
    pieces = [data[start : start + piece_size] for start in range(0, len(data), piece_size)]
    return TarStream(iter(pieces), hashlib.sha256())


@given(st.integers(1, 600), st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=6))
def test_reads_follow_one_another(piece_size: int, reads: list[tuple[bool, int]]) -> None:
    """Whole reads and views give the bytes in order, and the digest is that of all bytes."""
    stream = stream_of(DATA, piece_size)
    position = 0
    for is_view, size in reads:
        if is_view and size:
            data = bytes(stream.view(size))
            assert 1 <= len(data) <= size
        else:
            data = stream.take(size)
            assert len(data) == size
        assert data == DATA[position : position + len(data)]
        position += len(data)
        assert stream.position == position
    stream.drain()
    assert stream.digest() == hashlib.sha256(DATA).hexdigest()


def test_an_early_end_is_an_error() -> None:
    """Neither a whole read nor a view goes beyond the end of the stream."""
    stream = stream_of(b"12345", 2)
    assert bytes(stream.view(9)) == b"12"
    with pytest.raises(LayerInvalid, match="ends within an entry"):
        stream.take(4)
    with pytest.raises(LayerInvalid, match="ends within an entry"):
        stream.view(1)
