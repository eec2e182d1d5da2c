"""Say what makes the packs of images for each system, where it is not `mksquashfs`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shiftergw.app.checkup.finding import Finding, Level
from shiftergw.build.compose import compression_of
from shiftergw.model.build_options import DIRECT_COMPRESSORS
from shiftergw.squashfs.direct_compressors import compressing_library

if TYPE_CHECKING:
    from shiftergw.config import Config
    from shiftergw.model.build_options import SquashOptions


def packers(config: Config) -> Iterator[Finding]:
    """Yield a finding for each system with `"Packer": "direct"`: whether it is used, and works."""
    for system_name, system in config.systems.items():
        options = system.squash_options(config)
        if options.packer == "direct":
            yield _direct_packer(f"packer of {system_name}", options)


def _direct_packer(name: str, options: SquashOptions) -> Finding:
    if not options.uses_packs:
        return Finding(
            name,
            Level.WARNING,
            '"Packer" has no effect, because the images are built as a whole',
            'Set "Builder": "packs", or remove "Packer".',
        )
    if not options.packs_directly:
        compressors = " or ".join(sorted(DIRECT_COMPRESSORS))
        return Finding(
            name,
            Level.WARNING,
            f'mksquashfs makes the packs, although "Packer" is "direct": only it compresses with'
            f" {options.compressor}",
            f'Set squashfs.compressor to {compressors}, or "Packer": "mksquashfs".',
        )
    try:
        version, _ = compressing_library(compression_of(options).compressor)
    except ImportError as error:
        return Finding(
            name,
            Level.FAILURE,
            f"the library that compresses {options.compressor} cannot be used: {error}",
            'Install it with `pip install "shiftergw[direct]"`, or set "Packer": "mksquashfs".',
        )
    library = "zstd" if options.compressor == "zstd" else "libdeflate of the package deflate"
    return Finding(
        name, Level.OK, f"direct: the gateway compresses the layers with {library} {version}"
    )
