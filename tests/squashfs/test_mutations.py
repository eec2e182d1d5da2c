"""Files with random damage: an error, or a tree that lies in the file, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from struct import pack_into, unpack_from

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftergw.errors import SquashfsCorrupt
from shiftergw.squashfs import writer
from shiftergw.squashfs.compressors import Compression
from shiftergw.squashfs.reader import ListedEntry, SquashfsReader
from shiftergw.squashfs.superblock import Superblock
from tests.matrices import LONG, examples
from tests.squashfs.damage import DATA, bounded_memory, listing, small_image, store
from tests.squashfs.parts import GZIP, XZ, ZSTD, make_squashfs

VALUES = (0x01, 0x10, 0x80, 0xFF) if LONG else (0x01, 0x80)
"""What each byte is combined with by exclusive or."""


def without_ids(entries: list[ListedEntry]) -> list[ListedEntry]:
    """Return entries without owners and positions of data, which small tables store as they are."""
    return [entry._replace(uid=0, gid=0) for entry in entries]


@pytest.mark.parametrize("compression", [GZIP, XZ, ZSTD], ids=["gzip", "xz", "zstd"])
def test_every_byte_is_flipped(compression: Compression) -> None:
    """A changed byte is noticed, or changes nothing that a checksum could have guarded.

    gzip and xz have checksums, so their inodes and names are right if there is no error. The ids
    are too few to be compressed.
    """
    image = bytearray(small_image(compression))
    original = listing(image)
    assert original is not None
    errors = 0
    for place in range(len(image)):
        for value in VALUES:
            image[place] ^= value
            entries = listing(image)
            image[place] ^= value
            if entries is None:
                errors += 1
            elif compression != ZSTD or 96 <= place < 96 + len(DATA):
                assert without_ids(entries) == without_ids(original), (place, value)
    assert errors > (len(image) - len(DATA)) * len(VALUES) // 2
    assert listing(image) == original


def test_every_byte_of_stored_metadata_is_flipped(stored_image: bytearray) -> None:
    """Nothing guards these bytes: the tree may differ, but it stays within the file."""
    image = stored_image

    def flip(places: range) -> None:
        for place in places:
            for value in VALUES:
                image[place] ^= value
                listing(image)
                image[place] ^= value

    with bounded_memory():  # which makes everything slow
        flip(range(96))
    flip(range(96 + len(DATA), len(image)))
    assert listing(image) is not None


@pytest.mark.parametrize("compression", [GZIP, XZ, ZSTD], ids=["gzip", "xz", "zstd"])
def test_every_truncation_is_noticed(compression: Compression) -> None:
    """No beginning of a file is a file, whether its size is told or not."""
    image = small_image(compression)
    for length in range(len(image)):
        assert listing(image[:length]) is None
    for length in range(0, len(image), 7):

        def read_at(size: int, offset: int, end: int = length) -> bytes:
            return image[offset : min(offset + size, end)]

        with pytest.raises(SquashfsCorrupt):
            SquashfsReader(read_at, len(image))


_edits = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 12), st.binary(max_size=12)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=examples(150))
@given(_edits, st.booleans())
def test_random_edits(edits: list[tuple[int, int, bytes]], is_compressed: bool) -> None:
    """Bytes that are replaced, removed and inserted end in an error, or in a tree of the file."""
    with pytest.MonkeyPatch.context() as patch:
        if not is_compressed:
            patch.setattr(writer, "metadata_compressor", store)
        image = bytearray(small_image(GZIP))
    for place, length, replacement in edits:
        place %= len(image)  # noqa: PLW2901 - a place of this file
        image[place : place + length] = replacement
    listing(bytes(image))


@settings(max_examples=examples(150))
@given(st.data())
def test_random_numbers_in_the_metadata(data: st.DataObject) -> None:
    """Numbers at the limits of their width end in an error, or in a tree of the file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "metadata_compressor", store)
        image = bytearray(small_image(GZIP))
    block = Superblock.unpack(image)
    for _ in range(data.draw(st.integers(1, 3))):
        layout = data.draw(st.sampled_from(["<H", "<I", "<Q"]))
        place = data.draw(st.integers(0, 80) | st.integers(block.inode_table, block.bytes_used - 8))
        (number,) = unpack_from(layout, image, place)
        limit = {"<H": 16, "<I": 32, "<Q": 64}[layout]
        number = data.draw(
            st.sampled_from([0, 1, number + 1, number - 1, 2**limit - 1, 2 ** (limit - 1)])
        )
        pack_into(layout, image, place, number % 2**limit)
    listing(bytes(image))


def test_the_bytes_of_mksquashfs_are_flipped(tmp_path: Path) -> None:
    """A file with xattrs and compressor options survives all flips, too."""
    root = tmp_path / "root"
    root.mkdir()
    for number in range(5):
        (root / f"file {number}").write_bytes(b"%d" % number * 100)
    path = make_squashfs(root, tmp_path / "x", "-comp", "zstd", "-Xcompression-level", "2")
    image = bytearray(path.read_bytes())
    image = image[: Superblock.unpack(image).bytes_used]
    assert listing(image) is not None
    for place in range(len(image)):
        image[place] ^= 0x55
        listing(image)
        image[place] ^= 0x55
