"""How many packings run on a machine, and their shares of its memory and processors."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.build.packing_slots import (
    SMALL_LAYER,
    PackingSlots,
    count_parallel_layers,
    share_of,
    slot_count,
)
from shiftergw.build.tools import BuildTools
from shiftergw.model.build_options import SquashOptions
from shiftergw.plumbing.file_slots import TakenSlot
from shiftergw.plumbing.locks import tried_lock
from shiftergw.plumbing.threads import Threads
from tests.build.packing import PackSite
from tests.plumbing.test_file_slots import recording
from tests.work.waiting import until


@pytest.mark.parametrize(
    ("options", "layers", "slots", "count"),
    [
        ({"memory": "512M", "processors": 4}, 9, 8, 4),
        ({"memory": "512M", "processors": 4}, 2, 8, 2),
        ({"memory": "512M", "processors": 2}, 9, 4, 2),
        ({"memory": "512M", "processors": 64}, 9, 8, 4),
        ({"memory": "128M", "processors": 4}, 9, 2, 2),
        ({"memory": "64M", "processors": 4}, 9, 1, 1),
        ({"memory": "16M", "processors": 4}, 0, 1, 1),
        ({"memory": "2G", "processors": 1}, 9, 2, 1),
    ],
)
def test_how_many_packings_run(
    options: dict[str, Any], layers: int, slots: int, count: int
) -> None:
    """Memory and processors limit the packings of the machine, and those of an image."""
    whole = SquashOptions(**options)
    assert slot_count(whole) == slots
    assert count_parallel_layers(whole, layers) == count


@pytest.mark.parametrize(
    ("options", "running", "share"),
    [
        ({"memory": "512M", "processors": 4}, 1, ("65536K", 4)),
        ({"memory": "512M", "processors": 4}, 2, ("65536K", 2)),
        ({"memory": "512M", "processors": 4}, 8, ("65536K", 1)),
        ({"memory": "512M", "processors": 2}, 3, ("131072K", 1)),
        ({"memory": "64M", "processors": 4}, 1, ("65536K", 4)),
        ({"memory": "16M", "processors": 4}, 1, ("16384K", 4)),
    ],
)
def test_packings_share_memory_and_processors(
    options: dict[str, Any], running: int, share: tuple[str, int]
) -> None:
    """All packings of the machine together have what the options allow for one."""
    whole = SquashOptions(**options)
    part = share_of(whole, running)
    assert (part.memory, part.processors) == share
    assert part.compression == whole.compression


def test_processors_that_are_not_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each packing has twice its part of the machine, since some layers take longer."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert count_parallel_layers(SquashOptions(), 9) == 4
    assert [share_of(SquashOptions(), running).processors for running in (1, 2, 4)] == [0, 8, 4]


@pytest_twisted.ensureDeferred
async def test_a_small_layer_does_not_wait_for_large_ones(tmp_path: Path, threads: Threads) -> None:
    """The first slot is free for it when large layers have all others; a large one waits."""
    tools = PackSite(tmp_path, threads, "no-program").tools
    waits: list[bool] = []
    slots = PackingSlots(
        tools, SquashOptions(memory="128M", processors=1), partial(recording, waits)
    )
    async with slots.take(SMALL_LAYER + 1) as slot:
        assert slot.path.name == "1.slot"
        async with slots.try_take(SMALL_LAYER + 1) as large_slot:
            assert large_slot is None
        async with slots.take(SMALL_LAYER) as small:
            assert (small.path.name, small.holders) == ("0.slot", 2)
    assert waits == []


@pytest_twisted.ensureDeferred
async def test_a_single_slot_serves_all_layers(tmp_path: Path, threads: Threads) -> None:
    """Without memory for two packings, large and small layers wait in one queue."""
    tools = PackSite(tmp_path, threads, "no-program").tools
    waits: list[bool] = []
    slots = PackingSlots(tools, SquashOptions(memory="64M"), partial(recording, waits))

    async def take(size: int) -> None:
        async with slots.take(size) as slot:
            assert slot.path.name == "0.slot"

    tools.slot_directory.mkdir(parents=True)
    with tried_lock(tools.slot_directory / "0.slot"):
        takings = [Deferred.fromCoroutine(take(size)) for size in (1, SMALL_LAYER + 1)]
        await until(lambda: waits == [True, True])
        assert await slots.is_needed(TakenSlot(0, tools.slot_directory / "0.slot", -1, 1))
    for taking in takings:
        await taking
    assert waits.count(False) == 2


@pytest_twisted.ensureDeferred
async def test_who_needs_a_slot(tmp_path: Path, threads: Threads) -> None:
    """Small layers wait for any slot, large ones for all but the first."""
    tools = PackSite(tmp_path, threads, "no-program").tools
    slots = PackingSlots(tools, SquashOptions(memory="128M", processors=1), nullcontext)
    async with slots.try_take(1) as first, slots.try_take(1) as second:
        assert first is not None
        assert second is not None
        for queue, needs in {"large": [False, True], "small": [True, True]}.items():
            with tried_lock(tools.slot_directory / f"{queue}-{0:020}-1-0.ticket"):
                assert [await slots.is_needed(slot) for slot in (first, second)] == needs
        assert [await slots.is_needed(slot) for slot in (first, second)] == [False, False]


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("node1.cluster", "node1.cluster"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("a/../b", "a%2F..%2Fb"),
        ("caf\udce9", "caf%E9"),
    ],
)
def test_each_machine_has_its_own_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, name: str
) -> None:
    """The name of the machine, whatever it is, is the name of one directory below `slots`."""
    tools = BuildTools(tmp_path, *[cast("Any", None)] * 6)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename=machine))
    assert tools.slot_directory == tmp_path / "slots" / name
