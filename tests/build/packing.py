"""A packer with layers on a disk or on their way, and the contents of its packs."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from twisted.internet import reactor

from shiftergw.build.pack_files import Pack, pack_groups
from shiftergw.build.packer import Packer
from shiftergw.build.tools import BuildTools
from shiftergw.cache.arriving import Arriving
from shiftergw.model.build_options import BuildLimits, PackerName, SquashOptions
from shiftergw.model.images import Digest, LayerFile, Opening
from shiftergw.oci.budget import Budget, LayerBudget
from shiftergw.oci.sparse import data_extents
from shiftergw.oci.tar import Entry
from shiftergw.plumbing.disk_budget import DiskBudget
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import Layer
from tests.build.parts import content_of
from tests.build.site import StoredLayer
from tests.images import compress
from tests.parts import need

real: Any = reactor


class ComingLayer:
    """A layer whose bytes arrive when the test says so."""

    def __init__(self, path: Path, blob: bytes, diff_id: Digest | None) -> None:
        """Begin without any of the bytes, at `path`."""
        self.digest = Digest.of(blob)
        self.size = len(blob)
        self.diff_id = diff_id
        self._blob = blob
        self._path = path
        self._path.write_bytes(b"")
        self._arriving = Arriving(path)
        self._file: SharedResult[Path] = SharedResult()

    async def wait_for_opening(self) -> Opening | None:
        """Return the means to read the bytes while they arrive."""
        return self._arriving.open

    async def wait_for_file(self) -> Path:
        """Wait until the layer is complete."""
        return await self._file.wait()

    def arrive(self, size: int) -> None:
        """Have the first `size` bytes."""
        with self._path.open("r+b") as file:  # a reader never sees it shorter than before
            file.write(self._blob[:size])
        self._arriving.grow(size)

    def complete(self) -> None:
        """Have all bytes, and their digest."""
        self.arrive(self.size)
        self._arriving.complete(self._path)
        self._file.set_result(self._path)

    def begin_anew(self) -> None:
        """Drop the bytes that arrived; then all of them arrive at once."""
        self._arriving.abort()
        self._path.write_bytes(self._blob)
        self._file.set_result(self._path)

    def end(self) -> None:
        """Let those who wait for the rest continue; a failed test has not completed the layer."""
        if not self._file.is_set:
            self.begin_anew()


class PackSite:
    """A packer in a directory of its own."""

    def __init__(
        self,
        tmp_path: Path,
        threads: Threads,
        binary: str | None = None,
        clock: Any = real,
        packer: PackerName = "mksquashfs",
    ) -> None:
        """Use the real `mksquashfs` unless there is another `binary` or `packer`."""
        self._layers = tmp_path
        self._kind: PackerName = packer
        self.directory = tmp_path / "packs"
        self.tools = BuildTools(
            tmp_path,
            binary or need("mksquashfs"),
            threads,
            threads,
            real,
            clock,
            DiskBudget((pack_groups(self.directory),)),
        )
        self.reports: list[int] = []
        self._coming_layers: list[ComingLayer] = []

    def end(self) -> None:
        """Let no thread wait for a layer, since the threads could not be stopped."""
        for layer in self._coming_layers:
            layer.end()

    def packer(self, key: str = "tools", seconds: float = 3600, **options: Any) -> Packer:
        """Return a packer; `options` are those of `SquashOptions`."""
        members: dict[str, Any] = {
            "compressor": "zstd",
            "level": 1,
            # With few blocks in memory, our own packer writes soon.
            "memory": "1M" if self._kind == "direct" else "64M",
            "packer": self._kind,
        }
        members.update(options)
        return Packer(self.tools, SquashOptions(**members), key, seconds, self.directory)

    def layer(self, tar: bytes, compression: str = "plain", diff_id: Digest | None = None) -> Layer:
        """Put a layer on the disk."""
        blob = compress(tar, compression)
        path = self._layers / f"layer-{Digest.of(blob).hex[:16]}"
        path.write_bytes(blob)
        return StoredLayer(LayerFile(path, diff_id or Digest.of(tar)))

    def coming_layer(self, tar: bytes, compression: str = "gzip") -> ComingLayer:
        """Return a layer that has yet to arrive."""
        blob = compress(tar, compression)
        layer = ComingLayer(self._layers / "arriving", blob, Digest.of(tar))
        self._coming_layers.append(layer)
        return layer

    async def pack(self, layer: Layer, limits: BuildLimits | None = None, **options: Any) -> Pack:
        """Pack a layer, and end the use of the pack at once."""
        if isinstance(layer, ComingLayer):
            self._coming_layers.append(layer)
        async with AsyncExitStack() as use:
            cost = budget(limits)
            return await self.packer(**options).pack(layer, cost, self.reports.append, use)

    def parts(self, layer: Layer) -> list[Path]:
        """Return the incomplete packs of a layer."""
        return list(self.directory.glob(f"{layer.digest.hex}*.part"))

    def part_size(self, layer: Layer) -> int:
        """Return the bytes of the incomplete packs of a layer."""
        return sum(part.stat().st_size for part in self.parts(layer))

    @property
    def names(self) -> list[str]:
        """Return the endings of the names in the directory of packs."""
        return sorted(path.suffix for path in self.directory.iterdir())


def budget(limits: BuildLimits | None = None) -> LayerBudget:
    """Return the counter of a layer that is alone in its image."""
    return Budget(limits or BuildLimits()).layer()


def stored_contents(pack: Pack) -> list[bytes]:
    """Return the contents of a pack by number, as `sqfs2tar` reads them."""
    files = [data for kind, _, data in content_of(pack.path).values() if kind == b"0"]
    assert all(isinstance(data, bytes) for data in files)
    return [data for data in files if isinstance(data, bytes)]


def files_of(pack: Pack, block_size: int = 1 << 17) -> dict[bytes, bytes]:
    """Return the content of every regular file of a layer by its path, from its pack."""
    contents = stored_contents(pack)
    return {
        b"/".join(filter(None, (entry.parent, entry.name))): expand(entry, contents, block_size)
        for entry in pack.index.entries
        if entry.kind == 0
    }


def expand(entry: Entry, contents: list[bytes], block_size: int) -> bytes:
    """Return the content of a file of a layer; zeros are between the blocks of a sparse file."""
    content = b"" if entry.number < 0 else contents[entry.number]
    if entry.sparse is None:
        return content
    data = bytearray(entry.size)
    position = 0
    for start, end in data_extents(entry.sparse, entry.size, block_size):
        data[start:end] = content[position : position + end - start]
        position += end - start
    assert position == len(content)
    return bytes(data)
