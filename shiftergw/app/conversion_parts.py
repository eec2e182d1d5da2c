"""Wire what converts images on this machine: the cache, the packs, the builder, their threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from shiftergw.app.locations import layout_directories
from shiftergw.build.builder import SquashBuilder
from shiftergw.build.converted import converted_groups
from shiftergw.build.pack_places import PackPlaces, PackSweep, last_uses
from shiftergw.build.pack_scrub import PackScrub
from shiftergw.cache.blob_cache import BlobCaches
from shiftergw.cache.blobs import CachedBlobs, pack_directories
from shiftergw.config import Config
from shiftergw.model.metrics import EVICTED_BYTES, EVICTIONS
from shiftergw.plumbing.disk_budget import DiskBudget, FileKind
from shiftergw.plumbing.reactor import with_threads
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import NO_METRICS, Metrics
from shiftergw.sources.local.layout_location import SLOTS as LAYOUT_THREADS
from shiftergw.sources.registry.client import PARALLEL_BLOBS

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor


def _count_eviction(metrics: Metrics, names: Sequence[str], kind: int, size: int) -> None:
    metrics.add(EVICTIONS, 1, names[kind])
    metrics.add(EVICTED_BYTES, size, names[kind])


class ConversionParts:
    """The cache and the builder of one process, and the threads that they work in.

    Their files make room for each other: blobs, packs of layers, and converted files.
    """

    def __init__(self, reactor: Reactor, config: Config, metrics: Metrics = NO_METRICS) -> None:
        """Use the directories and the `mksquashfs` of `config`.

        Layers are read in threads of their own, on which the threads of the builder wait: one for
        each parallel download, and one for each processor to read what has arrived.
        """
        processors = os.cpu_count() or 1
        self.threads = Threads(reactor, 4 + processors, "work")
        self.readers = Threads(reactor, PARALLEL_BLOBS + processors, "readers")
        # Threads of their own, since a directory that hangs keeps its threads.
        directories = len(layout_directories(config))
        self.layouts = Threads(reactor, max(1, LAYOUT_THREADS * directories), "layouts")
        cache_directory = config.cache_directory
        packs = PackPlaces(cache_directory, partial(pack_directories, cache_directory))
        kinds: dict[str, FileKind] = {
            "layers": CachedBlobs(cache_directory, last_uses),
            "packs": packs,
            "images": converted_groups(config.expand_directory),
        }
        note = partial(with_threads(reactor).callFromThread, _count_eviction, metrics, tuple(kinds))
        budget = DiskBudget(tuple(kinds.values()), note)
        self.packs = PackSweep(packs, self.threads)
        lock = cache_directory / "scrub.lock"
        self.scrub = PackScrub(packs, self.threads, reactor, lock)
        self.caches = BlobCaches(cache_directory, self.threads, reactor, budget)
        self.builder = SquashBuilder(
            config.expand_directory,
            config.mksquashfs,
            self.threads,
            self.readers,
            reactor,
            reactor,
            budget,
        )
