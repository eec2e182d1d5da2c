"""A builder with layers on a disk, whose states and progress are recorded."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from twisted.internet import reactor

from shiftergw.build.builder import SquashBuilder
from shiftergw.build.by_packs import PackConverter
from shiftergw.build.converter import LayerConverter
from shiftergw.build.whole import WholeConverter
from shiftergw.model.build_options import BuilderName, BuildLimits, PackerName, SquashOptions
from shiftergw.model.images import BuiltImage, Digest, LayerFile, Opening
from shiftergw.model.records import Progress
from shiftergw.plumbing.hashing import hash_file
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


with_each_packer = pytest.mark.parametrize(
    ("builder", "packer"),
    [("whole", "mksquashfs"), ("packs", "mksquashfs"), ("packs", "direct")],
)
"""Marks a test that runs with each builder and, with packs, each packer."""


class StoredLayer:
    """A `Layer` whose file is on the disk."""

    def __init__(self, file: LayerFile) -> None:
        """Give this file."""
        self._path = file.path
        self.diff_id = file.diff_id

    @property
    def digest(self) -> Digest:
        """Return the digest of the file's bytes, or a wrong one if there is no file."""
        if self._path.exists():
            return Digest("sha256", hash_file(self._path)[1])
        return Digest.of(b"")

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

    CONVERTERS: ClassVar[dict[BuilderName, type[LayerConverter]]] = {
        "whole": WholeConverter,
        "packs": PackConverter,
    }

    def __init__(
        self,
        directory: Path,
        threads: Threads,
        binary: str | None = None,
        builder: BuilderName = "whole",
        packer: PackerName = "mksquashfs",
    ) -> None:
        """Use `directory` for everything.

        Builds use `builder` and `packer` unless their options name others; our own packer needs a
        library for gzip, so its images are of zstd.
        """
        self._defaults: dict[str, Any] = {"level": 1, "memory": "64M", "builder": builder}
        if packer == "direct":
            self._defaults |= {"packer": packer, "compressor": "zstd"}
        self.converter = self.CONVERTERS[builder]
        self.directory = directory / "converted"
        self.pack_directory = directory / "packs"
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
            self.options(**options),
            limits or BuildLimits(),
            self.progress.append,
            self.states.append,
            self.pack_directory,
        )

    def options(self, **changes: Any) -> SquashOptions:
        """Return the options of builds with these changes."""
        return SquashOptions(**{**self._defaults, **changes})

    async def build_image(self, layers: Sequence[LayerFile | Layer], **options: Any) -> BuiltImage:
        """Build an image, and end its use at once."""
        async with self.build(layers, **options) as image:
            result: BuiltImage = image
            return result

    @property
    def names(self) -> list[str]:
        """Return the names of the files in the directory of converted files."""
        return sorted(path.name for path in self.directory.iterdir() if path.is_file())

    @property
    def pack_suffixes(self) -> list[str]:
        """Return the suffixes of the names in the directory of packs."""
        return sorted(path.suffix for path in self.pack_directory.glob("*"))

    @property
    def stages(self) -> set[str]:
        """Return the measured stages of a build that makes the file."""
        return {self.converter.read_stage, "plan", self.converter.write_stage, "check"}
