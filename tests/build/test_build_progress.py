"""What a build reports of its progress: the truth in each stage, with each builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.build.packing_waits import PackingWaits
from shiftergw.model.images import BuiltImage, Digest
from shiftergw.model.records import Progress
from shiftergw.plumbing.locks import file_lock
from shiftergw.plumbing.threads import Threads
from tests.build.packing import ComingLayer
from tests.build.site import OTHER_ID, TREE, Site, StoredLayer, real, with_each_packer
from tests.build.test_by_packs import CountingSite, DamagingStates, remove
from tests.images import compress, entry, tar_of
from tests.work.waiting import until


class ReportedStages(list[Progress]):
    """All progress that a build reports, also in runs: one for each stage that began."""

    def __init__(self, site: Site) -> None:
        """Record the reports of this site from now on, and the states that it enters."""
        super().__init__()
        site.states.clear()
        site.progress = self
        self._states = site.states
        self.runs: dict[tuple[int, str], list[Progress]] = {}

    def append(self, progress: Progress) -> None:
        """Record a report."""
        super().append(progress)
        work = [state for state in self._states if state != "PACKING ELSEWHERE"]
        number = sum(before != after for before, after in pairwise([*work, ""]))
        self.runs.setdefault((number, progress.stage), []).append(progress)

    def check(self) -> dict[str, int]:
        """Compare all reports with the promises; return the bytes in all of each stage."""
        ends = {}
        for (_, stage), run in self.runs.items():
            for before, after in pairwise(run):
                assert before.done <= after.done
                assert before.total in {0, after.total}
            assert all(
                0 <= progress.done <= progress.total or not progress.total for progress in run
            )
            ends[stage] = run[-1]
        for end in ends.values():
            assert end.done == end.total
        return {stage: end.total for stage, end in ends.items()}


def many_layers(site: Site) -> list[Any]:
    """Return a dozen small layers."""
    return [site.layer([entry(f"file-{number}", b"%d" % number)]) for number in range(12)]


def equal_layers(site: Site) -> list[Any]:
    """Return a layer, another one, and the first one again."""
    low = StoredLayer(site.layer([entry("a", b"low")]))
    return [low, site.layer([entry("a", b"high")]), low]


def empty_files(site: Site) -> list[Any]:
    """Return a layer whose files have no data."""
    return [site.layer([entry("directory"), entry("a", b""), entry("b", b"")])]


LAYERS: dict[str, Callable[[Site], Sequence[Any]]] = {
    "two": lambda site: site.two,
    "none": lambda _: [],
    "many": many_layers,
    "equal": equal_layers,
    "without data": empty_files,
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest_twisted.ensureDeferred
async def test_progress_of_a_first_build(site: Site, kind: str) -> None:
    """Each stage reports bytes that never go back, never exceed the total, and reach it."""
    layers = LAYERS[kind](site)
    reports = ReportedStages(site)
    image = await site.build_image(layers, memory="256M", processors=2)
    sizes = reports.check()
    assert sizes[site.converter.read_stage] == size_of(layers)
    assert sizes["check"] == image.size
    assert list(sizes) == [site.converter.read_stage, site.converter.write_stage, "check"]
    assert set(image.seconds) == site.stages


def size_of(layers: Sequence[Any]) -> int:
    """Return the bytes of the distinct layers."""
    distinct = {layer: layer for layer in layers}.values()
    return sum(
        layer.size if isinstance(layer, StoredLayer) else layer.path.stat().st_size
        for layer in distinct
    )


@with_each_packer
@pytest_twisted.ensureDeferred
async def test_progress_on_a_known_base(site: Site) -> None:
    """Layers that were converted before count as converted, all bytes of them."""
    base = site.two
    await site.build_image(base)
    layers = [*base, site.layer([entry("new", b"new")])]
    reports = ReportedStages(site)
    await site.build_image(layers, image_id=OTHER_ID)
    assert reports.check()[site.converter.read_stage] == size_of(layers)


@pytest_twisted.ensureDeferred
async def test_progress_of_a_build_that_finds_the_file(site: Site) -> None:
    """The bytes of the file count while it is hashed; one that is damaged is made again."""
    layers = site.two
    image = await site.build_image(layers)
    reports = ReportedStages(site)
    await site.build_image(layers)
    assert (site.states, reports.check()) == (["VERIFICATION"], {"verify": image.size})
    with image.path.open("r+b") as file:
        file.seek(image.size // 2)
        file.write(b"damage")
    reports = ReportedStages(site)
    second = await site.build_image(layers)
    assert (second.sha256, reports.check()["check"]) == (image.sha256, image.size)
    assert site.states[0] == "VERIFICATION"
    assert set(second.seconds) == {"verify", *site.stages}


@pytest_twisted.ensureDeferred
async def test_progress_of_a_repair(tmp_path: Path, threads: Threads) -> None:
    """The repair of converted layers, and the second composition, are stages of their own."""
    site = CountingSite(tmp_path, threads)
    layers = [*site.two, site.layer([entry("c", b"c" * 3000)])]
    site.states = DamagingStates(site, remove)
    reports = ReportedStages(site)
    image = await site.build_image(layers)
    assert site.states == ["PACKING", "COMPOSITION", "REPAIR", "COMPOSITION", "CHECK"]
    assert reports.check()["repair"] == size_of(layers)
    assert set(image.seconds) == {"repair", *site.stages}


@with_each_packer
@pytest_twisted.ensureDeferred
async def test_progress_of_a_layer_that_arrives_twice(site: Site, tmp_path: Path) -> None:
    """A download that proved wrong is read again, and no bytes are taken back."""
    tar = tar_of(TREE)
    layer = ComingLayer(tmp_path / "arriving", compress(tar), Digest.of(tar))
    reports = ReportedStages(site)
    building: Deferred[BuiltImage] = Deferred.fromCoroutine(site.build_image([layer]))
    layer.arrive(layer.size // 2)
    await until(lambda: reports and reports[-1].done > 0)
    layer.begin_anew()
    await building
    assert reports.check()[site.converter.read_stage] == layer.size


@pytest_twisted.ensureDeferred
async def test_a_layer_that_another_pull_converts(tmp_path: Path, threads: Threads) -> None:
    """The wait is said once all layers that are left wait, and ends with the other pull."""
    site = CountingSite(tmp_path, threads)
    layers = [site.layer([entry("a", b"a" * 3000)])]
    await site.build_image(layers)
    lock = site.packs[0].with_suffix(".lock")
    site.packs[0].unlink()
    reports = ReportedStages(site)
    async with file_lock(lock, threads, real):
        building = Deferred.fromCoroutine(site.build_image(layers, image_id=OTHER_ID))
        await until(lambda: site.states == ["PACKING", "PACKING ELSEWHERE"])
        assert not building.called
    await building
    assert site.states == ["PACKING", "PACKING ELSEWHERE", "PACKING", "COMPOSITION", "CHECK"]
    reports.check()


def test_waits_are_said_while_no_layer_is_converted() -> None:
    """As long as one layer is converted here, the stage goes on."""
    stages: list[str] = []
    waits = PackingWaits(stages.append)
    with waits.packing():
        with waits.packing(), waits.waiting():
            assert stages == []
        with waits.waiting():
            assert stages == ["PACKING ELSEWHERE"]
            with waits.packing():
                assert stages == ["PACKING ELSEWHERE", "PACKING"]
            assert stages[2:] == ["PACKING ELSEWHERE"]
        assert stages[3:] == ["PACKING"]
        with waits.queueing():
            assert stages[4:] == ["QUEUED"]
    assert stages[5:] == ["PACKING"]
