"""The contents in all packs of an image, and which of them the image needs.

A pack is a squashfs with the contents of one layer's files, in the order of their numbers. The
contents of all packs of an image form one sequence here, those of the lowest layer first; the
*place* of a content is its index in this sequence.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Protocol

from shiftergw.build.pack_feed import directory_count
from shiftergw.errors import BlobCorrupt, SquashfsCorrupt, SquashfsUnsupported
from shiftergw.oci.budget import stoppable
from shiftergw.oci.tree import NO_CONTENT, Directory, Leaf
from shiftergw.squashfs.columns import FileColumns
from shiftergw.squashfs.compressors import Compression
from shiftergw.squashfs.inodes import NO_FRAGMENT
from shiftergw.squashfs.nodes import FragmentBlock
from shiftergw.squashfs.tables import read_tables


class LayerPack(Protocol):
    """A pack as composing needs it: its file, and the digest and position of each content.

    `read_columns` reads the positions from the file.
    """

    @property
    def path(self) -> Path:
        """Return the name of the file, which it may have yet to get."""
        ...

    def open(self) -> int:
        """Open the file for reading; raise `FileNotFoundError` if it is gone."""
        ...

    @property
    def digests(self) -> Sequence[bytes]:
        """Return the SHA-256 of each content; of more than `BUFFER_LIMIT` bytes, any value."""
        ...

    @property
    def columns(self) -> FileColumns:
        """Return where the data of the contents is."""
        ...


@dataclass(frozen=True, slots=True)
class OpenPack:
    """A pack whose file is open: the places of its contents, and its fragment blocks.

    Equal contents have equal `digests`, once `digest_large_contents` has set those of large ones.
    The data area begins at `data_start`.
    """

    path: Path
    descriptor: int
    places: range
    digests: list[bytes]
    fragments: list[FragmentBlock]
    data_start: int


class PackContents:
    """The contents of the packs of an image.

    Loops over millions of them raise `StopRequested` soon after the stop flag is set.
    """

    def __init__(self, block_size: int, stop: Event) -> None:
        """Start without packs."""
        self.columns = FileColumns(block_size)
        """The data of all contents, by place. Positions and fragments are those of their pack."""
        self.packs: list[OpenPack] = []
        """The packs, the lowest first; a pack of several layers is here once."""
        self.by_layer: list[OpenPack] = []
        """The pack of each layer."""
        self.originals = array("Q")
        """For the place of each content the first place of the same content that is needed."""
        self.is_needed = bytearray()
        """Whether the content at each place gets into the image, as 0 or 1."""
        self._stop = stop

    def place_of(self, leaf: Leaf) -> int:
        """Return the place of a file's content; raise `BlobCorrupt` if there is none."""
        places = self.by_layer[leaf.layer].places if leaf.layer < len(self.by_layer) else range(0)
        if not 0 <= leaf.number < len(places):
            raise pack_error(f"it has {len(places)} contents, and not number {leaf.number}")
        return places[leaf.number]

    def select(self, leaves: Iterable[Leaf]) -> None:
        """Find out which contents these files need, each content once.

        Of equal contents the first is used, even if no file of its own layer needs it any longer:
        so what an upper layer only copies lies where it lies in other images of the lower layers.
        """
        sizes = self.columns.sizes
        is_live = bytearray(len(sizes))
        for leaf in leaves:
            place = self.place_of(leaf)
            if leaf.sparse is None and leaf.size != sizes[place]:
                raise pack_error(f"{sizes[place]} bytes of a file of {leaf.size}")
            is_live[place] = 1
        first_places: dict[bytes, int | None] = {
            pack.digests[place - pack.places.start]: None
            for pack in self.packs
            for place in self.all_places(pack)
            if is_live[place]
        }
        self.originals = array("Q", bytes(8 * len(sizes)))
        self.is_needed = bytearray(len(sizes))
        for pack in self.packs:
            digests = zip(pack.places, pack.digests, strict=True)
            for place, digest in stoppable(digests, self._stop):
                if digest not in first_places:
                    continue
                original = first_places[digest]
                if original is None:
                    original = first_places[digest] = place
                    self.is_needed[place] = 1
                elif sizes[original] != sizes[place]:
                    raise pack_error("contents of different sizes have the same digest")
                self.originals[place] = original

    def needed_places(self, pack: OpenPack) -> Iterator[int]:
        """Yield the places of the contents of a pack that are needed."""
        is_needed = self.is_needed
        return (place for place in self.all_places(pack) if is_needed[place])

    def all_places(self, pack: OpenPack) -> Iterator[int]:
        """Yield the places of all contents of a pack."""
        return stoppable(pack.places, self._stop)


@contextmanager
def open_packs(
    packs: Sequence[LayerPack], compression: Compression, block_size: int, stop: Event
) -> Iterator[PackContents]:
    """Open the packs of the layers of an image, lowest first, and collect their contents.

    Blocks. Raises `BlobCorrupt` for a pack that is missing, has damaged tables, does not fit its
    columns, or was made with another compression or block size, and `StopRequested` soon after
    `stop` is set.
    """
    contents = PackContents(block_size, stop)
    by_path: dict[Path, OpenPack] = {}
    with ExitStack() as files:
        for pack in stoppable(packs, stop):
            if pack.path not in by_path:
                try:
                    descriptor = pack.open()
                except FileNotFoundError as error:
                    raise pack_error(str(error)) from error
                files.callback(os.close, descriptor)
                by_path[pack.path] = _add_pack(contents, pack, descriptor, compression)
                contents.packs.append(by_path[pack.path])
            contents.by_layer.append(by_path[pack.path])
        yield contents


def _add_pack(
    contents: PackContents, pack: LayerPack, descriptor: int, compression: Compression
) -> OpenPack:
    """Append the contents of a pack."""
    columns = contents.columns
    try:
        tables = read_tables(partial(os.pread, descriptor), os.fstat(descriptor).st_size)
    except (SquashfsCorrupt, SquashfsUnsupported) as error:
        raise pack_error(f"{error.what} {error.detail}") from error
    count = len(pack.columns)
    superblock = tables.superblock
    block_size = superblock.block_size
    if tables.compression != compression or block_size != columns.block_size:
        raise pack_error(f"it has {tables.compression} and blocks of {block_size} bytes")
    if count != len(pack.digests) or superblock.inodes != 1 + directory_count(count) + count:
        raise pack_error(f"it has {superblock.inodes} inodes, {len(pack.digests)} digests")
    fragments = {*pack.columns.fragments} - {NO_FRAGMENT}
    if (
        max(fragments, default=-1) >= len(tables.fragments)
        or max(pack.columns.starts, default=0) > superblock.inode_table
    ):
        raise pack_error("its contents are beyond its data")
    places = range(len(columns), len(columns) + count)
    columns.extend(pack.columns)
    return OpenPack(
        pack.path, descriptor, places, list(pack.digests), tables.fragments, tables.data_start
    )


def leaves_with_content(root: Directory, stop: Event) -> Iterator[Leaf]:
    """Yield the leaves of a tree whose content is in a pack, one for each name."""
    waiting = [root]
    while waiting:
        for node in stoppable(waiting.pop().children.values(), stop):
            if isinstance(node, Directory):
                waiting.append(node)
            elif node.number != NO_CONTENT:
                yield node


def pack_error(detail: str) -> BlobCorrupt:
    """Return the error of a pack that is damaged, or does not belong to its layer."""
    return BlobCorrupt(
        "The converted contents of a layer are damaged.",
        remedy="Try again; if it lasts, tell the site's support: a disk may be failing.",
        detail=detail,
    )
