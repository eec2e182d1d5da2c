"""Layers that are examined while others are still on their way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.build.examination import examine_layers
from shiftergw.errors import ImageTooLarge
from shiftergw.model.build_options import BuildLimits
from shiftergw.model.images import LayerFile, Opening
from shiftergw.oci import budget
from shiftergw.oci.budget import Budget, Cost
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.plumbing.threads import Threads
from tests.build.site import StoredLayer
from tests.images import compress, entry, tar_of

real: Any = reactor


class LateLayer(StoredLayer):
    """A layer that arrives only once another layer has unpacked to too much."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Wait for a budget to postpone its verdict."""
        super().__init__(LayerFile(path))
        self._excess: SharedResult[None] = SharedResult()
        add = Budget.add

        def add_and_look(budget: Budget, cost: Cost, times: int) -> bool:
            is_added = add(budget, cost, times)
            if not is_added:
                real.callFromThread(self._arrive)
            return is_added

        monkeypatch.setattr(Budget, "add", add_and_look)

    def _arrive(self) -> None:
        if not self._excess.is_set:
            self._excess.set_result(None)

    async def wait_for_opening(self) -> Opening | None:
        """Wait, and have arrived by then."""
        await self._excess.wait()
        return None

    async def wait_for_file(self) -> Path:
        """Wait for the arrival."""
        await self._excess.wait()
        return await super().wait_for_file()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("size", [100_000, 1000])
async def test_zeros_are_measured_by_all_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Threads, size: int
) -> None:
    """The limit on zeros follows from all layers, also from those that arrive later."""
    monkeypatch.setattr(budget, "RATIO_FREE", 1 << 20)
    zeros, data = tmp_path / "zeros", tmp_path / "data"
    zeros.write_bytes(compress(tar_of([entry("zeros", bytes(4_000_000))])))
    data.write_bytes(tar_of([entry("data", os.urandom(size))]))
    layers = [StoredLayer(LayerFile(zeros)), LateLayer(data, monkeypatch)]
    examining = examine_layers(layers, BuildLimits(ratio=50), threads, real, lambda _: None)
    if size > zeros.stat().st_size * 10:
        assert [file.path for file, _ in await examining] == [zeros, data]
    else:
        with pytest.raises(ImageTooLarge, match="50 times"):
            await examining
