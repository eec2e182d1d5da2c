"""Packs that were just written: images are composed of them while they are installed.

To install a pack means to sync and to hash it, to give it its name, and to write its sidecar. All
functions block: they run in threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from shiftergw.build import pack_sidecar
from shiftergw.build.pack_files import Pack, PackFiles, open_pack
from shiftergw.build.pack_measures import measure, read_columns
from shiftergw.build.pack_sidecar import EncodedContents
from shiftergw.errors import ConversionFailed, SquashfsCorrupt, SquashfsUnsupported
from shiftergw.oci.tar import LayerIndex
from shiftergw.plumbing.files import removed_on_error, replace_durably, write_private
from shiftergw.squashfs.columns import FileColumns


@dataclass(frozen=True, slots=True)
class WrittenPack:
    """A complete pack, whose installation may not have ended.

    It is in the file `part` until then. The other members are those of `Pack`; `sidecar_contents`
    is encoded before the plan of an image empties `index`.
    """

    files: PackFiles
    part: Path
    index: LayerIndex
    digests: Sequence[bytes]
    columns: FileColumns
    size: int
    sidecar_contents: EncodedContents

    @property
    def path(self) -> Path:
        """Return the name that its installation gives the file."""
        return self.files.pack

    def open(self) -> int:
        """Open the file for reading, under its present name; the caller closes the descriptor.

        Raises `FileNotFoundError` if the installation failed, and the pack was not made again. The
        part file of that attempt has another name, so it is never read before it is complete.
        """
        with suppress(FileNotFoundError):
            return open_pack(self.part)
        return open_pack(self.path)


def read_written_pack(
    files: PackFiles, index: LayerIndex, digests: Sequence[bytes], stop: Event
) -> WrittenPack:
    """Read a complete pack from its part file.

    Raises `ConversionFailed` if it is damaged, `ImageTooLarge` if its sidecar would be too large,
    and `StopRequested` soon after `stop` is set.
    """
    try:
        with files.part.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            columns = read_columns(file.fileno(), stop)
    except (SquashfsCorrupt, SquashfsUnsupported) as error:
        raise _damage_error(error) from error
    sidecar_contents = pack_sidecar.encode_contents(index, digests, columns, stop)
    return WrittenPack(files, files.part, index, digests, columns, size, sidecar_contents)


def install_pack(written_pack: WrittenPack, stop: Event) -> Pack:
    """Sync and measure a pack, give it its name, and write its sidecar.

    Raises `ConversionFailed` if the packer has written another number of files than it got, and
    `StopRequested` soon after `stop` is set.
    """
    files, part = written_pack.files, written_pack.part
    try:
        with part.open("rb") as file, ThreadPoolExecutor(1, "sync") as disk:
            syncing = disk.submit(os.fsync, file.fileno())
            measures = measure(file.fileno(), len(written_pack.digests), stop)
            syncing.result()
    except SquashfsCorrupt as error:
        raise _damage_error(error) from error
    sidecar = pack_sidecar.encode(written_pack.sidecar_contents, measures)
    replace_durably(part, files.pack)
    with removed_on_error(files.pack):
        write_private(files.sidecar, sidecar)
    return Pack(
        files.pack,
        written_pack.index,
        written_pack.digests,
        written_pack.columns,
        measures.size,
        measures.data_sha256,
    )


def _damage_error(error: SquashfsCorrupt | SquashfsUnsupported) -> ConversionFailed:
    return ConversionFailed(
        "The packer has written a damaged pack of a layer.", detail=error.detail
    )
