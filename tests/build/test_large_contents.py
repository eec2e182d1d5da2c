"""Contents that are not hashed while their layer is packed: equal ones are in an image once."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from shiftergw.build.compose import compression_of
from shiftergw.build.large_contents import digest_large_contents
from shiftergw.build.pack_contents import PackContents, open_packs
from shiftergw.build.pack_feed import BUFFER_LIMIT, NO_DIGEST
from shiftergw.errors import BlobCorrupt
from shiftergw.oci.compression import StopRequested
from tests.build.pack_maker import ZSTD, MadePack, make_pack

BLOCK = 1 << 17
TAIL = 5
CONTENT = random.Random(5).randbytes(BUFFER_LIMIT + 3 * BLOCK + TAIL)
"""Noise, so that the blocks of all contents of this size are stored in as many bytes."""
HOLES = bytes(BUFFER_LIMIT + BLOCK) + CONTENT[:BLOCK]


def flip_byte(position: int) -> bytes:
    """Return the content with another byte at a position."""
    byte = bytes([CONTENT[position] ^ 1])
    return CONTENT[:position] + byte + CONTENT[position + 1 :]


@contextmanager
def open_unhashed(*packs: MadePack) -> Iterator[PackContents]:
    """Open packs; no digest of a large content is known."""
    for pack in packs:
        pack.digests[:] = [NO_DIGEST] * len(pack.digests)
    with open_packs(packs, compression_of(ZSTD), BLOCK, Event()) as contents:
        yield contents


def groups_of(directory: Path, *layers: list[bytes]) -> list[int]:
    """Return for each content of all packs the first place with the same digest."""
    packs = [make_pack(directory / f"{n}", contents, ZSTD) for n, contents in enumerate(layers)]
    with open_unhashed(*packs) as contents:
        digest_large_contents(contents, compression_of(ZSTD), Event())
        digests = [digest for pack in contents.packs for digest in pack.digests]
    return [digests.index(digest) for digest in digests]


def test_equal_contents_of_all_packs_have_one_digest(tmp_path: Path) -> None:
    """Contents whose sizes and compressed sizes are equal differ by their bytes."""
    lower = [CONTENT, flip_byte(0), CONTENT, CONTENT[:-1]]
    upper = [flip_byte(len(CONTENT) - 1), flip_byte(BLOCK), CONTENT, flip_byte(0)]
    assert groups_of(tmp_path, lower, upper) == [0, 1, 0, 3, 4, 5, 0, 1]


def test_holes_and_missing_tails_are_compared(tmp_path: Path) -> None:
    """Blocks of zeros are not stored, and a content of whole blocks has no tail."""
    whole = CONTENT[:-TAIL]
    variant = whole[:-1] + bytes([whole[-1] ^ 1])
    zeros = [bytes(BUFFER_LIMIT + BLOCK), HOLES, HOLES[::-1]]
    assert groups_of(tmp_path, [*zeros, whole], [variant, *zeros]) == [0, 1, 2, 3, 4, 0, 1, 2]


def test_the_largest_content_that_is_hashed_keeps_its_digest(tmp_path: Path) -> None:
    """A content of exactly `BUFFER_LIMIT` bytes keeps the digest that its pack has."""
    with open_unhashed(make_pack(tmp_path / "pack", [CONTENT[:BUFFER_LIMIT]], ZSTD)) as contents:
        digest_large_contents(contents, compression_of(ZSTD), Event())
        assert contents.packs[0].digests == [NO_DIGEST]


def test_a_pack_that_ends_within_a_content_is_damaged(tmp_path: Path) -> None:
    """The pack is cut after it was opened, so only the hashing can notice."""
    pack = make_pack(tmp_path / "pack", [CONTENT, flip_byte(0)], ZSTD)
    with open_unhashed(pack) as contents:
        os.truncate(pack.path, BUFFER_LIMIT)
        with pytest.raises(BlobCorrupt) as caught:
            digest_large_contents(contents, compression_of(ZSTD), Event())
    assert "it ends within the content" in caught.value.detail


def test_a_stop_ends_the_hashing(tmp_path: Path) -> None:
    """It is heard before each step, not only between contents."""
    with open_unhashed(make_pack(tmp_path / "pack", [CONTENT, CONTENT], ZSTD)) as contents:
        stop = Event()
        stop.set()
        with pytest.raises(StopRequested):
            digest_large_contents(contents, compression_of(ZSTD), stop)
