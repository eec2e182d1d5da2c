"""Indexes that are encoded and decoded: nothing is lost, and damage is noticed."""

from __future__ import annotations

from threading import Event

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.errors import ImageTooLarge
from shiftergw.model.images import Digest
from shiftergw.oci import stored_index
from shiftergw.oci.budget import Cost
from shiftergw.oci.compression import StopRequested
from shiftergw.oci.tar import DIRECTORY, HARDLINK, Entry, LayerIndex
from shiftergw.oci.tree import LATEST_MTIME, NO_CONTENT, REGULAR, SPECIAL, SYMLINK

DIFF_ID = Digest.of(b"layer")
SIZES = st.integers(0, 2**63 - 1)
TEXTS = st.binary(max_size=30)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Return any entry that a layer may have and an index keeps whole."""
    kind = draw(st.sampled_from([REGULAR, SYMLINK, SPECIAL, DIRECTORY, HARDLINK]))
    pieces = st.lists(st.tuples(SIZES, SIZES), max_size=3).map(tuple)
    return Entry(
        kind,
        draw(st.sampled_from([b"", b"usr", b"usr/lib"])),
        draw(TEXTS),
        draw(st.integers(0, 0o7777)),
        draw(st.integers(0, LATEST_MTIME)),
        draw(SIZES) if kind == REGULAR else 0,
        draw(TEXTS),
        draw(SIZES),
        draw(st.none() | pieces) if kind == REGULAR else None,
        draw(st.booleans()),
        draw(st.sampled_from([NO_CONTENT, 0, 1, 51_199_999])),
    )


def index_of(*entries: Entry) -> LayerIndex:
    """Return an index with a cost."""
    return LayerIndex(list(entries), DIFF_ID, Cost(4, 3, 2, 1))


def encode(index: LayerIndex) -> bytes:
    """Encode an index without a stop."""
    return stored_index.encode_index(index, Event())


def decode(data: bytes) -> LayerIndex:
    """Decode an index without a stop."""
    return stored_index.decode_index(data, DIFF_ID, Event())


@given(st.lists(entries(), max_size=6))
def test_an_index_comes_back(layer: list[Entry]) -> None:
    """Every member of every entry, the cost and the digest are as before."""
    index = decode(encode(index_of(*layer)))
    assert [*map(repr, index.entries)] == [*map(repr, layer)]
    assert (index.cost, index.diff_id) == (Cost(4, 3, 2, 1), DIFF_ID)


def test_what_no_image_needs_is_dropped() -> None:
    """Times beyond those of squashfs are limited, and sizes of other entries than files are 0."""
    directory = Entry(DIRECTORY, b"", b"d", 0o755, -5, 2**90, b"", 0, None, False)
    file = Entry(REGULAR, b"", b"f", 0o644, 2**40, 1, b"", 0, None, False)
    first, second = decode(encode(index_of(directory, file))).entries
    assert (first.size, first.mtime, second.mtime) == (0, 0, LATEST_MTIME)


def test_neighbors_share_their_parent() -> None:
    """A parent's path is in memory once."""
    layer = [Entry(REGULAR, bytes([97]) * 9, b"f", 0, 0, 0, b"", 0, None, False) for _ in "ab"]
    first, second = decode(encode(index_of(*layer))).entries
    assert first.parent is second.parent


FILE = Entry(REGULAR, b"p", b"name", 0o644, 1, 5, b"", 512, ((0, 5),), False, 0)
RAW = zstandard.ZstdDecompressor().decompress(encode(index_of(FILE, FILE)))


def test_a_short_index_is_refused() -> None:
    """No prefix of an index is an index."""
    for size in range(len(RAW)):
        with pytest.raises(ValueError, match="index"):
            decode(zstandard.compress(RAW[:size]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a frame",
        zstandard.compress(RAW + b"\0"),
        zstandard.compress(b"\xff" * len(RAW)),
        encode(index_of(FILE))[:-1],
        b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8,
    ],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    """Bytes after the end, counts that are too large and damaged frames are errors."""
    with pytest.raises(ValueError, match="index"):
        decode(data)


def test_an_index_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes than the limit are neither written nor read."""
    data = encode(index_of(FILE))
    monkeypatch.setattr(stored_index, "SIZE_LIMIT", 20)
    with pytest.raises(ImageTooLarge):
        encode(index_of(FILE))
    with pytest.raises(ValueError, match="an index of"):
        decode(data)


def test_both_ways_can_be_stopped() -> None:
    """A large index takes seconds, so both ways end soon after the flag is set."""
    stop = Event()
    stop.set()
    with pytest.raises(StopRequested):
        stored_index.encode_index(index_of(FILE), stop)
    with pytest.raises(StopRequested):
        stored_index.decode_index(encode(index_of(FILE)), DIFF_ID, stop)
