"""A builder with layers on a disk, and what it tells."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor

from shiftergw.build.whole import SquashBuilder
from shiftergw.image import BuildLimits, BuiltImage, Digest, LayerFile, Opening, SquashOptions
from shiftergw.model import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import ImageBuilder, Layer
from tests import images
from tests.parts import need

real: Any = reactor
ID = "ab" * 32
OTHER = "cd" * 32
CREATED = 1_710_000_000
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


class Arrived:
    """A `Layer` that lies there already."""

    def __init__(self, file: LayerFile) -> None:
        """Give this file."""
        self._path = file.path
        self.diff_id = file.diff_id

    @property
    def size(self) -> int:
        """Return the size of the file, if there is one."""
        return self._path.stat().st_size if self._path.exists() else 0

    async def wait_for_opening(self) -> Opening | None:
        """Be there."""
        return None

    async def wait_for_file(self) -> Path:
        """Return the file."""
        return self._path


class Site:
    """A builder with layers on a disk, and what it told."""

    def __init__(self, directory: Path, threads: Threads, binary: str | None = None) -> None:
        """Use `directory` for everything."""
        self.converted = directory / "converted"
        self._layers = directory
        self.builder = SquashBuilder(
            self.converted, binary or need("mksquashfs"), threads, threads, real, real
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
            CREATED,
            [Arrived(one) if isinstance(one, LayerFile) else one for one in layers],
            SquashOptions(**{"level": 1, "memory": "64M", **options}),
            limits or BuildLimits(),
            self.progress.append,
            self.states.append,
        )

    async def built(self, layers: Sequence[LayerFile | Layer], **options: Any) -> BuiltImage:
        """Build, and end the use at once."""
        async with self.build(layers, **options) as built:
            found: BuiltImage = built
            return found

    @property
    def names(self) -> list[str]:
        """Return what lies in the directory of converted files."""
        return sorted(path.name for path in self.converted.iterdir())
