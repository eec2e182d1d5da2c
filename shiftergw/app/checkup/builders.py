"""Say how the images for each system are built, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shiftergw.app.checkup.finding import Finding, Level
from shiftergw.build.mksquashfs import has_link_race
from shiftergw.model.build_options import PACK_COMPRESSORS

if TYPE_CHECKING:
    from shiftergw.config import Config, System
    from shiftergw.model.build_options import SquashOptions

_PACKS = "packs: each layer is converted once, and images are composed of converted layers"
_WHOLE = (
    "whole: mksquashfs converts each image as a whole; one directory with 40,000 files takes it"
    " half a minute, one with 100,000 many minutes"
)


def builders(config: Config) -> Iterator[Finding]:
    """Yield the builder of each system; a warning if it is another one than the configured one."""
    for system_name, system in config.systems.items():
        name, options = f"builder of {system_name}", system.squash_options(config)
        if options.uses_packs:
            yield Finding(name, Level.OK, _PACKS)
        elif options.builder == "whole":
            yield Finding(name, Level.OK, _WHOLE)
        else:
            yield _whole_instead_of_packs(name, options)


def link_races(config: Config, numbers: tuple[int, ...]) -> Iterator[Finding]:
    """Yield a warning if a system's images meet the race of this `mksquashfs` at hard links.

    Packs have no hard links.
    """
    names = [name for name, system in config.systems.items() if not _uses_packs(config, system)]
    if names and has_link_race(numbers):
        version = ".".join(map(str, numbers))
        yield Finding(
            "mksquashfs and hard links",
            Level.WARNING,
            f"mksquashfs {version} may rarely crash at hard links when it converts an image as a"
            f" whole, as for {', '.join(names)}; such a pull fails, and may be tried again",
            'Set "Builder": "packs", or install a version after 4.7.5.',
        )


def _uses_packs(config: Config, system: System) -> bool:
    return system.squash_options(config).uses_packs


def _whole_instead_of_packs(name: str, options: SquashOptions) -> Finding:
    """Return the warning about options that packs cannot keep."""
    text = 'the images are built as a whole, although "Builder" is "packs": '
    if options.extra:
        return Finding(
            name,
            Level.WARNING,
            f"{text}ConverterOptions has arguments for mksquashfs",
            "Remove ConverterOptions, whose arguments need mksquashfs for the whole image, or set"
            ' "Builder": "whole".',
        )
    compressors = ", ".join(sorted(PACK_COMPRESSORS))
    return Finding(
        name,
        Level.WARNING,
        f"{text}images of {options.compressor} cannot be composed",
        f'Set squashfs.compressor to one of {compressors}, or "Builder": "whole".',
    )
