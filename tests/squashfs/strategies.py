"""Random trees with data of files that could be there, for hypothesis."""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack

from hypothesis import strategies as st

from shiftergw.squashfs.compressors import Compression, Compressor
from shiftergw.squashfs.inodes import NO_FRAGMENT, STORED_BLOCK, InodeKind
from shiftergw.squashfs.nodes import (
    DirectoryNode,
    FileData,
    FileNode,
    FragmentBlock,
    LeafNode,
    Node,
    SpecialNode,
    SymlinkNode,
)

BLOCK_SIZE = 4096
DATA_SIZE = 1 << 18
"""Bytes before the metadata in which the data of random files lies."""

_START = 128
"""A position behind the superblock and any compressor options."""


@dataclass(frozen=True)
class RandomTree:
    """A tree, and the fragment blocks of its files."""

    root: DirectoryNode
    fragments: list[FragmentBlock]


_names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."}
)
_times = st.integers(0, 2**32 - 1)
_ids = st.sampled_from([0, 1000, 65_536, 2**32 - 2])
_common = st.tuples(st.integers(0, 0o7777), _times, _ids, _ids)
compressions = st.one_of(
    st.builds(
        Compression,
        st.just(Compressor.GZIP),
        st.sampled_from([1, 5, 9]),
        st.sampled_from([9, 15]),
        st.sampled_from([0, 3]),
    ),
    st.builds(Compression, st.just(Compressor.ZSTD), st.sampled_from([1, 3, 15])),
    st.builds(Compression, st.just(Compressor.XZ), dictionary=st.sampled_from([0, 8192, 98_304])),
)


@st.composite
def _data(draw: st.DrawFn, fragments: list[FragmentBlock]) -> FileData:
    count = draw(st.integers(0, 5))
    tail = draw(st.integers(0, BLOCK_SIZE - 1))
    fragment, offset = NO_FRAGMENT, 0
    lengths = [BLOCK_SIZE] * count
    if tail and fragments and draw(st.booleans()):
        fragment = draw(st.integers(0, len(fragments) - 1))
        size = fragments[fragment].size
        limit = size & ~STORED_BLOCK if size & STORED_BLOCK else BLOCK_SIZE
        if tail <= limit:
            offset = draw(st.integers(0, limit - tail))
        else:
            fragment, tail = NO_FRAGMENT, 0
    elif tail:
        lengths.append(tail)
    words = [
        draw(st.sampled_from([0, length | STORED_BLOCK, draw(st.integers(1, BLOCK_SIZE - 1))]))
        for length in lengths
    ]
    size = BLOCK_SIZE * count + tail
    holes = sum(length for length, word in zip(lengths, words, strict=True) if not word)
    stored_size = sum(word & ~STORED_BLOCK for word in words)
    start = draw(st.integers(_START, DATA_SIZE - stored_size)) if lengths else 0
    sparse = min(holes, max(size - 1, 0))
    return FileData(size, start, fragment, offset, sparse, pack(f"<{len(words)}I", *words))


@st.composite
def _leaf(draw: st.DrawFn, fragments: list[FragmentBlock]) -> LeafNode:
    kind = draw(st.sampled_from(list(InodeKind)))
    common = draw(_common)
    match kind:
        case InodeKind.DIRECTORY | InodeKind.FILE:
            return FileNode(draw(_data(fragments)), *common)
        case InodeKind.SYMLINK:
            target = st.binary(min_size=1, max_size=4095).filter(lambda text: b"\0" not in text)
            return SymlinkNode(draw(target), *common)
        case InodeKind.BLOCK_DEVICE | InodeKind.CHARACTER_DEVICE:
            minor, major = draw(st.integers(0, 2**20 - 1)), draw(st.integers(0, 2**12 - 1))
            device = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
            return SpecialNode(kind, device, *common)
        case _:
            return SpecialNode(kind, 0, *common)


def _sorted_directory(
    common: tuple[int, int, int, int], children: dict[bytes, Node]
) -> DirectoryNode:
    return DirectoryNode(sorted(children.items()), *common)


@st.composite
def trees(draw: st.DrawFn) -> RandomTree:
    """Draw a tree; some of its leaves have several names."""
    fragments = []
    for _ in range(draw(st.integers(0, 3))):
        size = draw(st.integers(1, BLOCK_SIZE))
        stored_bit = STORED_BLOCK if draw(st.booleans()) else 0
        fragments.append(
            FragmentBlock(draw(st.integers(_START, DATA_SIZE - size)), size | stored_bit)
        )
    nodes: st.SearchStrategy[Node] = st.recursive(
        _leaf(fragments),
        lambda below: st.builds(
            _sorted_directory, _common, st.dictionaries(_names, below, max_size=5)
        ),
        max_leaves=20,
    )
    children = draw(st.dictionaries(_names, nodes, max_size=6))
    for number in range(draw(st.integers(0, 2))):
        links = draw(st.integers(2, 4))
        leaf = draw(_leaf(fragments))._replace(links=links, link=number)
        for place in range(links):
            children[b"link %d %d" % (number, place)] = leaf
    return RandomTree(_sorted_directory(draw(_common), children), fragments)
