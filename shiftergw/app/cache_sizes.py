"""Measure the caches of this machine, for the page of operators."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from shiftergw.build.converted import converted_groups
from shiftergw.build.pack_places import PackPlaces
from shiftergw.cache.blobs import CachedBlobs, pack_directories
from shiftergw.config import Config
from shiftergw.plumbing.disk_budget import RESERVE, FileKind
from shiftergw.plumbing.files import free_space, nearest_existing, total_space
from shiftergw.service.housekeeping import SCRATCH_SECONDS
from shiftergw.service.site_caches import CacheReport


def measure_caches(config: Config) -> Sequence[CacheReport]:
    """Return the caches of the workers of this machine. Blocks.

    They have no fixed sizes: files are removed when a disk has no room for new ones, except for a
    reserve. So the budget of a cache is what it has, and what its disk has left for it.
    """
    directory = config.cache_directory
    packs = PackPlaces(directory, partial(pack_directories, directory))
    converted_seconds = SCRATCH_SECONDS + config.delivery_wait
    return [
        _report("Layers", CachedBlobs(directory), config.keep_layers),
        _report("Packs of layers", packs, config.keep_layers),
        _report("Converted files", converted_groups(config.expand_directory), converted_seconds),
    ]


def _report(name: str, kind: FileKind, keep_seconds: float) -> CacheReport:
    sizes = [files.size for files in kind.list_removable()]
    disk = nearest_existing(kind.directory)
    room = max(0, free_space(disk) - total_space(disk) // RESERVE)
    return CacheReport(name, keep_seconds, len(sizes), sum(sizes), sum(sizes) + room)
