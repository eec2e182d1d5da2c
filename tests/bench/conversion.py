"""Run one conversion in a process of its own, as a worker does; print its figures as JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from shiftergw.build.builder import SquashBuilder
from shiftergw.model.build_options import BuildLimits, SquashOptions
from shiftergw.model.images import Digest, LayerFile
from shiftergw.plumbing.threads import Threads
from tests.build.site import StoredLayer

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor


async def convert(reactor: Reactor, directory: Path, request: dict[str, Any]) -> None:
    """Convert an image; `request` has `options`, and `layers` as pairs of path and digest."""
    threads = Threads(reactor, max(4, os.cpu_count() or 1), "worker")
    threads.startService()
    builder = SquashBuilder(directory, "mksquashfs", threads, threads, reactor, reactor)
    files = [LayerFile(Path(path), Digest.parse(diff_id)) for path, diff_id in request["layers"]]
    layers = [StoredLayer(file) for file in files]
    options = SquashOptions(**request["options"])
    start = time.monotonic()
    try:
        async with builder.build(
            "0" * 64,
            0,
            layers,
            options,
            BuildLimits(),
            lambda _: None,
            lambda _: None,
            directory / "packs",
        ) as image:
            wall = time.monotonic() - start
    finally:
        await threads.stopService()
    own = resource.getrusage(resource.RUSAGE_SELF)
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = {
        "wall": wall,
        "own_cpu": own.ru_utime + own.ru_stime,
        "cpu": own.ru_utime + own.ru_stime + child.ru_utime + child.ru_stime,
        "own_rss": peak_memory(),
        "rss": child.ru_maxrss / 1024,
        "size": image.size,
        "seconds": image.seconds,
        "entries": image.report.entries,
    }
    print(json.dumps(answer))  # noqa: T201 - the parent reads it


def peak_memory() -> float:
    """Return the peak memory of this process in MiB, without that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    react(
        lambda reactor: Deferred.fromCoroutine(
            convert(reactor, Path(sys.argv[1]), json.loads(sys.stdin.read()))
        )
    )
