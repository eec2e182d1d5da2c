"""Frozen values that say how an image is built: squashfs options, and limits on the work."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Compressor = Literal["gzip", "lzo", "lz4", "xz", "zstd"]
COMPRESSORS: tuple[Compressor, ...] = get_args(Compressor)
"""The compressors of `mksquashfs`."""

PACK_COMPRESSORS = frozenset({"gzip", "xz", "zstd"})
"""The compressors whose metadata the gateway can write, so that images are composed of packs."""

BuilderName = Literal["whole", "packs"]
"""How images are built: each as a whole by `mksquashfs`, or composed of the packs of its layers."""

PackerName = Literal["mksquashfs", "direct"]
"""What makes packs: `mksquashfs`, or the gateway itself."""

DIRECT_COMPRESSORS = frozenset({"gzip", "zstd"})
"""The compressors with which the gateway makes packs itself."""

HIGHEST_LEVEL = {"gzip": 9, "lzo": 9, "zstd": 22}
"""The highest compression level of each compressor that has levels; the lowest is 1."""

_REVISION = 2
"""The number of our own arguments of `mksquashfs`: files of another one are not used again.

1 looked for duplicates, which may damage files: see `build.mksquashfs.arguments`.
"""

_COMPOSED_REVISION = 1
"""The number of the layout of composed files: files of another one are not used again."""

_LZ4_HIGH = 9
"""The level from which lz4 compresses "high"."""

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

GZIP_LEVEL = 5
"""Our level for gzip: 1 % more bytes than the default, 9, for a fifth of its CPU time."""

RATIO_FREE = 8 * 10**9
"""Bytes that the layers of an image may unpack to, however small they are compressed."""

_LAYERS_FACTOR = 3
"""Default limits on all layers together, as a multiple of those on the finished image."""

_HEADERS = 1 << 20
_HEADERS_PER_ENTRY = 8192
"""Bytes of headers and padding that the default limit grants: once, and for each entry."""


@dataclass(frozen=True, slots=True)
class SquashOptions:
    """How an image is built and compressed.

    `processors` 0 means one thread for each processor, `level` None leaves the level to the
    compressor. With `enroot_files` the image has the files in which enroot looks for its
    configuration. `extra` are raw arguments, appended last. `builder` is the configured one; some
    options need the whole builder (`needs_whole_builder`). `packer` makes the packs, if there are
    any; some compressors need `mksquashfs` (`packs_directly`).
    """

    compressor: str = "gzip"
    level: int | None = GZIP_LEVEL
    block_size: str = "128K"
    memory: str = "512M"
    processors: int = 0
    keep_setuid: bool = False
    enroot_files: bool = False
    extra: tuple[str, ...] = ()
    builder: BuilderName = "packs"
    packer: PackerName = "mksquashfs"

    @property
    def needs_whole_builder(self) -> bool:
        """Return whether packs cannot keep these options, so that `mksquashfs` makes the image."""
        return self.compressor not in PACK_COMPRESSORS or bool(self.extra)

    @property
    def uses_packs(self) -> bool:
        """Return whether images with these options are composed of packs."""
        return self.builder == "packs" and not self.needs_whole_builder

    @property
    def packs_directly(self) -> bool:
        """Return whether packs with these options are made without `mksquashfs`."""
        return self.packer == "direct" and self.compressor in DIRECT_COMPRESSORS

    @property
    def compression(self) -> tuple[str, ...]:
        """Return the compressor, its level and the block size as arguments of `mksquashfs`.

        lz4 has no levels: 9 and above mean its "high" compression. xz has none either.
        """
        level: tuple[str, ...] = ()
        if self.level is not None and self.compressor in HIGHEST_LEVEL:
            level = ("-Xcompression-level", str(self.level))
        elif self.level is not None and self.compressor == "lz4" and self.level >= _LZ4_HIGH:
            level = ("-Xhc",)
        return ("-comp", self.compressor, *level, "-b", self.block_size)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return the options as arguments of `mksquashfs`, without `extra`."""
        processors = ("-processors", str(self.processors)) if self.processors else ()
        return (*self.compression, "-mem", self.memory, *processors)

    @property
    def block_bytes(self) -> int:
        """Return the bytes of a block; `block_size` is a number and K or M."""
        return _bytes_of(self.block_size)

    @property
    def memory_bytes(self) -> int:
        """Return the bytes of memory; `memory` is a number and K, M or G."""
        return _bytes_of(self.memory)

    @property
    def key(self) -> str:
        """Return 12 hexadecimal digits that differ if the options may give different bytes."""
        shapeless = {"memory", "processors", "builder", "packer"}
        shaping = {k: v for k, v in asdict(self).items() if k not in shapeless}
        if not self.enroot_files:
            del shaping["enroot_files"]  # earlier versions did not have it
        shaping["revision"] = _REVISION
        if self.uses_packs:
            shaping["composed"] = _COMPOSED_REVISION
            if self.packs_directly:
                shaping["packer"] = self.packer
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:12]


def _bytes_of(size: str) -> int:
    """Return the bytes of a size such as 128K."""
    return int(size[:-1]) * _UNITS[size[-1]]


@dataclass(frozen=True, slots=True)
class StageLimits:
    """The longest time of each stage of one image, in seconds."""

    fetch: float = 12 * 3600
    examination: float = 3600
    conversion: float = 6 * 3600
    transfer: float = 12 * 3600


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """Limits on a finished image, and on the work that its layers cause.

    `size` (bytes of all files) and `entries` limit the finished image. `layers_size` (unpacked
    bytes, headers included), `layers_entries`, `names_size` (bytes) and `path_steps` limit all its
    layers together; a layer that the image names several times counts each time. If the layers
    unpack to more than `RATIO_FREE` bytes, they unpack to at most `ratio` times their compressed
    size.
    """

    size: int = 200 * 10**9
    entries: int = 5_000_000
    layers: int = 500
    layers_size: int | None = None
    layers_entries: int | None = None
    ratio: int = 200
    names_size: int = 512 * 10**6
    path_steps: int = 20_000_000
    stages: StageLimits = StageLimits()

    @property
    def all_size(self) -> int:
        """Return the unpacked bytes of all layers; by default three times the finished image."""
        if self.layers_size is not None:
            return self.layers_size
        return _LAYERS_FACTOR * self.size + _HEADERS + self.all_entries * _HEADERS_PER_ENTRY

    @property
    def all_entries(self) -> int:
        """Return the entries of all layers; by default three times those of the finished image.

        Layers may have more entries than the image, because upper layers replace lower ones.
        """
        return self.layers_entries or _LAYERS_FACTOR * self.entries
