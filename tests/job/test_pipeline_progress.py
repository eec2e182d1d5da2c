"""What users see of whole conversions, from the first byte to the checked file, by each builder."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.model.build_options import BuilderName
from shiftergw.model.images import Digest
from shiftergw.model.records import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.states import State
from tests.images import compress, entry, tar_of
from tests.job.pipeline_bench import (
    CHECKING,
    LOWER,
    OPTIONS,
    PROVEN,
    PULLING,
    UPPER,
    VERIFYING,
    PipelineBench,
    RecordingWatcher,
)
from tests.job.test_pipeline_damage import flip, forget_converted

READING = {"whole": "Examining image", "packs": "Converting layers"}
WRITING = {"whole": "Converting image", "packs": "Putting the image together"}
ABOVE = tar_of([entry("above", b"above")])


class Screen(RecordingWatcher):
    """Shows each stage and its bytes as clients see them."""

    def __init__(self) -> None:
        """Start without a stage."""
        super().__init__()
        self.shows: list[tuple[str, Progress]] = []

    def enter_stage(self, state: State, message: str) -> None:
        """Show a stage, without bytes."""
        super().enter_stage(state, message)
        self.shows.append((message, Progress()))

    def report(self, progress: Progress) -> None:
        """Show bytes."""
        super().report(progress)
        message, earlier = self.shows[-1]
        self.shows.append((message, progress.after(earlier)))

    def check(self) -> list[tuple[str, str, int]]:
        """Compare the bytes with the promises; return message, name and total of each stage.

        A stage that has failed, and is done again, ends before its total.
        """
        stages = []
        ends: dict[str, Progress] = {}
        shows = [(message, progress) for message, progress in self.shows if progress.stage]
        for (message, name), run in groupby(shows, lambda show: (show[0], show[1].stage)):
            series = [progress for _, progress in run]
            assert all(before.done <= after.done for before, after in pairwise(series))
            assert all(progress.done <= progress.total for progress in series if progress.total)
            ends[name] = series[-1]
            stages.append((message, name, series[-1].total))
        assert all(end.done == end.total for end in ends.values())
        return stages

    @property
    def downloaded_bytes(self) -> int:
        """Return how many bytes of layers were downloaded."""
        return max(progress.downloaded_bytes for progress in self.progress)


@pytest.fixture(params=["whole", "packs"])
def builder(request: pytest.FixtureRequest) -> BuilderName:
    """Return each builder."""
    builder: BuilderName = request.param
    return builder


@pytest.fixture
def bench(tmp_path: Path, threads: Threads, builder: BuilderName) -> PipelineBench:
    """Return a pipeline with each builder, whose images have `diff_id`s."""
    bench = PipelineBench(tmp_path, threads)
    bench.options = replace(OPTIONS, builder=builder)
    bench.config = PROVEN
    return bench


@pytest_twisted.ensureDeferred
async def test_a_new_image_and_the_same_one_again(
    bench: PipelineBench, builder: BuilderName
) -> None:
    """Each stage counts bytes of its own, up to the total; the second time little is left to do."""
    image, screen = bench.image(LOWER, UPPER), Screen()
    squashfs = await bench.build(image, screen)
    names = {"whole": ("index", "squash"), "packs": ("pack", "compose")}[builder]
    sizes = [size for _, _, size in screen.check()]
    assert screen.check() == [
        (PULLING, "fetch", image.download_size),
        (READING[builder], names[0], image.download_size),
        (WRITING[builder], names[1], sizes[2]),
        (CHECKING, "check", squashfs.size),
    ]
    assert 0 < sizes[2] <= squashfs.report.size
    assert screen.downloaded_bytes == image.download_size
    screen = Screen()
    await bench.build(image, screen)
    assert screen.check() == [
        (PULLING, "fetch", image.download_size),
        (VERIFYING, "verify", squashfs.size),
    ]
    assert screen.downloaded_bytes == 0


@pytest_twisted.ensureDeferred
async def test_an_image_on_a_known_base(bench: PipelineBench, builder: BuilderName) -> None:
    """Layers that the gateway has count as done at once, whether as blobs or as packs."""
    await bench.build(bench.image(LOWER, UPPER), RecordingWatcher())
    image, screen = bench.image(LOWER, UPPER, compress(ABOVE)), Screen()
    bench.config = replace(PROVEN, diff_ids=(*PROVEN.diff_ids, Digest.of(ABOVE)))
    await bench.build(image, screen)
    stages = screen.check()
    assert [message for message, _, _ in stages] == [
        PULLING, READING[builder], WRITING[builder], CHECKING,
    ]  # fmt: skip
    assert [size for _, _, size in stages[:2]] == [image.download_size] * 2
    assert screen.downloaded_bytes == image.layers[-1].size


def remove_packs(directory: Path) -> None:
    """Remove all packs below a directory, so that layers are read."""
    for pack in directory.rglob("*.pack"):
        pack.unlink()


@pytest_twisted.ensureDeferred
async def test_an_image_whose_layer_was_damaged(
    bench: PipelineBench, builder: BuilderName, tmp_path: Path
) -> None:
    """What begins again is a stage of its own; the state never goes back (`RecordingWatcher`)."""
    image = bench.image(LOWER, UPPER)
    await bench.build(image, RecordingWatcher())
    forget_converted(tmp_path)
    remove_packs(tmp_path)
    flip(bench.cache_place / image.layers[0].digest.hex)
    screen = Screen()
    squashfs = await bench.build(image, screen)
    ends = {name: size for _, name, size in screen.check()[-4:]}
    assert list(ends)[2:] == [{"whole": "squash", "packs": "compose"}[builder], "check"]
    assert (ends["check"], ends["fetch"]) == (squashfs.size, image.download_size)
