"""Find equal contents among those that are too large to be hashed while their layer is packed.

The packs of an image have the same packer, options and versions, and each block is compressed for
itself. So equal contents have equal compressed blocks, and only contents of the same size whose
blocks have the same sizes can be equal. Nearly all large contents differ in that already. For the
others the compressed blocks are hashed, which are fewer bytes than the contents.
"""

from __future__ import annotations

import os
from collections import defaultdict
from hashlib import sha256
from threading import Event

from shiftergw.build.fragment_reader import FragmentReader
from shiftergw.build.pack_contents import OpenPack, PackContents, pack_error
from shiftergw.build.pack_feed import BUFFER_LIMIT
from shiftergw.oci.compression import StopRequested
from shiftergw.squashfs.compressors import Compression
from shiftergw.squashfs.inodes import NO_FRAGMENT

_STEP = 1 << 20
"""Bytes that are read at once."""

_MARK = b"stored"
"""The first bytes of a digest of compressed blocks: no digest of a small content equals it."""


def digest_large_contents(contents: PackContents, compression: Compression, stop: Event) -> None:
    """Give each content of more than `BUFFER_LIMIT` bytes a digest that equal ones share.

    Blocks. Raises `BlobCorrupt` for a damaged pack, `OSError`, and `StopRequested` soon after
    `stop` is set.
    """
    sizes = contents.columns.sizes
    groups = defaultdict[tuple[int, bytes], list[tuple[OpenPack, int]]](list)
    for pack in contents.packs:
        for place in contents.all_places(pack):
            if sizes[place] > BUFFER_LIMIT:
                groups[sizes[place], contents.columns[place].blocks].append((pack, place))
    tails = FragmentReader(contents.columns, compression)
    for group in groups.values():
        is_alone = len(group) == 1
        for pack, place in group:
            digest = b"%d" % place if is_alone else _digest(contents, tails, pack, place, stop)
            pack.digests[place - pack.places.start] = digest


def _digest(
    contents: PackContents, tails: FragmentReader, pack: OpenPack, place: int, stop: Event
) -> bytes:
    """Return a digest of the compressed blocks of a content and of its tail."""
    columns = contents.columns
    hasher = sha256()
    start = columns.starts[place]
    end = start + columns.stored_size(place)
    while start < end:
        if stop.is_set():
            raise StopRequested
        data = os.pread(pack.descriptor, min(_STEP, end - start), start)
        if not data:
            raise pack_error(f"it ends within the content at {start}")
        hasher.update(data)
        start += len(data)
    if columns.fragments[place] != NO_FRAGMENT:
        hasher.update(tails.tail(pack, place))
    return _MARK + hasher.digest()
