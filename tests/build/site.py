"""A builder with layers on a disk, whose states and progress are recorded."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor

from shiftergw.build.builder import SquashBuilder
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.images import BuiltImage, Digest, LayerFile, Opening
from shiftergw.model.records import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import ImageBuilder, Layer
from tests import images
from tests.parts import need

real: Any = reactor
ID = "ab" * 32
OTHER_ID = "cd" * 32
CREATION_TIME = 1_710_000_000
DAY = 86400.0
REAL = "real=$(command -v mksquashfs)"  # for scripts that stand before it

TREE = [
    images.entry("usr"),
    images.entry("usr/bin"),
    images.entry("usr/bin/tool", b"#!tool", mode=0o755),
    images.entry("usr/bin/alias", b"", type=tarfile.LNKTYPE, linkname="usr/bin/tool"),
    images.entry("bin", b"", type=tarfile.SYMTYPE, linkname="usr/bin"),
    images.entry("new\nline", b"1"),
    images.entry("a -> b", b"2"),
    images.entry("\udcff\udc80", b"3"),
    images.entry("data", os.urandom(1000) * 500),
    images.entry("gone", b"gone"),
]
ABOVE = [
    images.entry(".wh.gone", b""),
    images.entry("bin/through", b"4"),
    images.entry("closed", b"5", mode=0o600),
]


class StoredLayer:
    """A `Layer` whose file is on the disk."""

    def __init__(self, file: LayerFile) -> None:
        """Give this file."""
        self._path = file.path
        self.diff_id = file.diff_id

    @property
    def digest(self) -> Digest:
        """Return the digest of the file's bytes."""
        return Digest.of(self._path.read_bytes())

    @property
    def size(self) -> int:
        """Return the size of the file, if there is one."""
        return self._path.stat().st_size if self._path.exists() else 0

    async def wait_for_opening(self) -> Opening | None:
        """Return None, because the file is complete."""
        return None

    async def wait_for_file(self) -> Path:
        """Return the file."""
        return self._path


class Site:
    """A builder with layers on a disk, and the states and progress that it has reported."""

    def __init__(self, directory: Path, threads: Threads, binary: str | None = None) -> None:
        """Use `directory` for everything."""
        self.directory = directory / "converted"
        self._layers = directory
        self.builder = SquashBuilder(
            self.directory, binary or need("mksquashfs"), threads, threads, real, real
        )
        self.states: list[str] = []
        self.progress: list[Progress] = []

    def layer(self, entries: Sequence[Any], compression: str = "gzip") -> LayerFile:
        """Put a layer on the disk."""
        tar = images.tar_of(entries)
        path = self._layers / f"layer-{Digest.of(tar).hex[:16]}-{compression}"
        path.write_bytes(images.compress(tar, compression))
        return LayerFile(path, Digest.of(tar))

    @property
    def two(self) -> list[LayerFile]:
        """Return two layers, one over the other."""
        return [self.layer(TREE), self.layer(ABOVE, "zstd")]

    def build(
        self,
        layers: Sequence[LayerFile | Layer],
        image_id: str = ID,
        limits: BuildLimits | None = None,
        **options: Any,
    ) -> Any:
        """Return the context of a build; `options` are those of `SquashOptions`."""
        builder: ImageBuilder = self.builder
        return builder.build(
            image_id,
            CREATION_TIME,
            [StoredLayer(layer) if isinstance(layer, LayerFile) else layer for layer in layers],
            SquashOptions(**{"level": 1, "memory": "64M", **options}),
            limits or BuildLimits(),
            self.progress.append,
            self.states.append,
        )

    async def build_image(self, layers: Sequence[LayerFile | Layer], **options: Any) -> BuiltImage:
        """Build an image, and end its use at once."""
        async with self.build(layers, **options) as image:
            result: BuiltImage = image
            return result

    @property
    def names(self) -> list[str]:
        """Return the names in the directory of converted files."""
        return sorted(path.name for path in self.directory.iterdir())
