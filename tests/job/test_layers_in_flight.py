"""The layers that users see while they are downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.model.layer_progress import MOST_LAYERS, LayerProgress
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from tests.job.pipeline_bench import (
    LOWER,
    PROVEN,
    UPPER,
    PipelineBench,
    RecordingWatcher,
    real,
    sending,
)


@pytest_twisted.ensureDeferred
async def test_layers_of_which_a_part_is_there(tmp_path: Path, threads: Threads) -> None:
    """Each report of the download has the layers that have begun, and not those that are whole."""
    bench, watcher = PipelineBench(tmp_path, threads), RecordingWatcher()
    bench.config = PROVEN
    image = bench.image(LOWER, UPPER)
    lower, upper = image.layers
    gate: SharedResult[None] = SharedResult()
    bench.sends[lower.digest] = sending(LOWER, gate)
    building = Deferred.fromCoroutine(bench.build(image, watcher))
    part = LayerProgress(lower.digest.hex[:12], len(LOWER) // 2, len(LOWER))
    done = part.done + upper.size
    for _ in range(500):
        if watcher.progress and watcher.progress[-1].done == done:
            break
        await pause(0.01, real)
    assert (watcher.progress[-1].done, watcher.progress[-1].layers) == (done, (part,))
    gate.set_result(None)
    await building
    fetches = [progress for progress in watcher.progress if progress.stage == "fetch"]
    assert (fetches[-1].done, fetches[-1].layers) == (image.download_size, ())
    assert all(len(progress.layers) <= MOST_LAYERS for progress in fetches)
