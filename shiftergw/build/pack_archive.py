"""The archive of a layer's contents, which becomes a pack in `mksquashfs`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from shiftergw.build.mksquashfs import Mksquashfs
from shiftergw.build.pack_feed import PackedLayer, PackFeed, ReadLayer, content_name
from shiftergw.build.pack_options import pack_arguments
from shiftergw.build.pipes import LARGE, enlarge_pipe, write_all
from shiftergw.errors import ConversionFailed
from shiftergw.oci.header import BLOCK, END, HeaderTemplate, padding

if TYPE_CHECKING:
    from shiftergw.build.tools import BuildTools
    from shiftergw.model.build_options import SquashOptions

_HEADERS = HeaderTemplate(len(b"/".join(content_name(0))), 0o644)

_BATCH = 1 << 18
"""Bytes of headers and small files that are written at once."""


async def pack_by_mksquashfs(
    tools: BuildTools,
    options: SquashOptions,
    part: Path,
    read_layer: ReadLayer,
    report: Callable[[int], None],
) -> PackedLayer:
    """Have `mksquashfs` write the pack of a layer into the empty file `part`.

    `report` gets the compressed bytes that were read so far, on the reactor's thread. Raises the
    errors of `read_layer`, `ConversionFailed` and `NoSpace`. After an error nothing runs any
    longer.
    """
    layers: list[PackedLayer] = []

    def write(pipe: int, stop: Event, set_progress: Callable[[int, int], None]) -> None:
        archive = PackArchive(pipe, stop)
        feed = PackFeed(archive, options.block_bytes)

        def set_position(position: int) -> None:
            set_progress(position, archive.size)

        index = read_layer(feed.read_file, stop, set_position)
        archive.finish()
        set_progress(index.cost.stored_size, archive.size)
        layers.append((index, feed.digests))

    program = Mksquashfs(tools.binary, tools.threads, tools.reactor, tools.clock)
    argv = pack_arguments(options, part)
    await program.run(argv, None, part, write, report, writers=tools.readers)
    if not layers:
        raise ConversionFailed("mksquashfs ended before it had read all of a layer.")
    return layers[0]


class PackArchive:
    """Writes contents as a tar into the pipe of `mksquashfs`; see `ContentSink`."""

    def __init__(self, pipe: int, stop: Event) -> None:
        """Write into `pipe`, which the caller closes, until `stop` is set.

        The methods raise `BrokenPipeError` once the reader is gone, and `StopRequested` (see
        `write_all`).
        """
        enlarge_pipe(pipe)
        self._pipe = pipe
        self._stop = stop
        self._parts: list[bytes] = []
        self._parts_size = 0
        self._padding = b""
        """What stands behind the content that was begun."""
        self.size = 0
        """Bytes of the archive that were written."""

    def add_content(self, number: int, content: bytes) -> None:
        """Write a whole content, perhaps together with the next ones."""
        size = len(content)
        tail = padding(size)
        self._parts += (_header(number, size), content, tail)
        self._parts_size += BLOCK + size + len(tail)
        if self._parts_size >= _BATCH:
            self._flush()

    def begin(self, number: int, size: int) -> None:
        """Write the header of a content."""
        self.add(_header(number, size))
        self._padding = padding(size)

    def add(self, part: bytes | memoryview) -> None:
        """Write a part of the archive, perhaps together with the next ones."""
        size = len(part)
        if size >= LARGE:
            self._flush()
            write_all(self._pipe, part, self._stop)
            self.size += size
            return
        self._parts.append(bytes(part))  # a view would keep all of its piece in memory
        self._parts_size += size
        if self._parts_size >= _BATCH:
            self._flush()

    def end(self) -> None:
        """Write the padding of the content."""
        self.add(self._padding)

    def finish(self) -> None:
        """Write the end of the archive, without which `mksquashfs` makes no pack."""
        self.add(END)
        self._flush()

    def _flush(self) -> None:
        write_all(self._pipe, b"".join(self._parts), self._stop)
        self.size += self._parts_size
        self._parts.clear()
        self._parts_size = 0


def _header(number: int, size: int) -> bytes:
    """Return the header of a content."""
    return _HEADERS.header(b"%b/%b" % content_name(number), size)
