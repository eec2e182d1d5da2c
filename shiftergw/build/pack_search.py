"""Find the packs that stand for layers, so that these layers need not arrive."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.build.converted import disk_errors
from shiftergw.build.direct_packer import library_digest
from shiftergw.build.pack_files import PackFiles, hold_pack, is_pack_expected
from shiftergw.build.pack_options import pack_key, tools_digest
from shiftergw.model.images import Digest

if TYPE_CHECKING:
    from shiftergw.build.tools import BuildTools
    from shiftergw.model.build_options import SquashOptions


async def tools_key(tools: BuildTools, options: SquashOptions) -> str:
    """Return a digest of what makes packs with these options; raise `ConversionFailed`."""
    if options.packs_directly:
        return await tools.threads.run(library_digest, options)
    return await tools_digest(tools.binary, tools.threads, tools.reactor, tools.clock)


async def find_packs(
    tools: BuildTools,
    directory: Path,
    claims: Iterable[tuple[Digest, Digest | None]],
    options: SquashOptions,
    use: AsyncExitStack | None,
) -> AbstractSet[Digest]:
    """Return the digests of the layers that have a pack; see `ImageBuilder.find_packs`."""
    if not options.uses_packs:
        return frozenset()
    diff_ids = defaultdict[Digest, set[Digest | None]](set)
    for digest, diff_id in claims:
        diff_ids[digest].add(diff_id)
    key = pack_key(options, await tools_key(tools, options))
    packed_layers = set()
    for digest, claimed_ids in diff_ids.items():
        files = PackFiles(directory, digest, key)
        if use is None:
            is_packed = await tools.threads.run(is_pack_expected, files, claimed_ids)
        else:
            is_packed = await _hold(tools, files, claimed_ids, use)
        if is_packed:
            packed_layers.add(digest)
    return packed_layers


async def _hold(
    tools: BuildTools, files: PackFiles, diff_ids: Iterable[Digest | None], use: AsyncExitStack
) -> bool:
    """Keep a pack in place until `use` is closed, if it can stand for its layer."""

    def hold() -> int | None:
        return hold_pack(files) if is_pack_expected(files, diff_ids) else None

    with disk_errors():
        descriptor = await tools.threads.acquire(hold, _close)
    if descriptor is not None:
        use.push_async_callback(partial(tools.threads.release, _close, descriptor))
    return descriptor is not None


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
