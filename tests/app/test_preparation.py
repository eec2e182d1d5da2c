"""The preparation of a machine: directories, and what keeps the gateway from starting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.app import preparation
from shiftergw.app.preparation import Preparation
from shiftergw.errors import ConfigurationError
from tests.configurations import load_config
from tests.parts import need
from tests.patience import patient
from tests.thread_pools import running_threads


async def prepare(
    root: Path, *image_dirs: str, on_prepared: Callable[[], object] = lambda: None
) -> None:
    """Prepare for systems with these image directories; call `on_prepared` after that."""
    need("mksquashfs")
    changes: dict[str, Any] = {
        "CacheDirectory": str(root / "cache"),
        "ExpandDirectory": str(root / "expand"),
        "StateDirectory": str(root / "state"),
        "Platforms": {
            f"system{number}": {"accesstype": "local", "local": {"imageDir": path}}
            for number, path in enumerate(image_dirs)
        },
    }
    async with running_threads() as threads:
        await Preparation(load_config(changes).config, threads, reactor).startService()
        on_prepared()


@pytest_twisted.ensureDeferred
async def test_directories_are_created_and_private(tmp_path: Path) -> None:
    """State, cache and scratch are accessible to the gateway's user only."""
    (tmp_path / "images").mkdir()
    await prepare(tmp_path, str(tmp_path / "images"), f"{tmp_path}/x/../images")
    for name in ("cache", "expand", "state"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


@pytest_twisted.ensureDeferred
async def test_one_directory_has_one_name(tmp_path: Path) -> None:
    """With two names, one image directory would have two access lists and separate leases."""
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    with pytest.raises(ConfigurationError) as caught:
        await prepare(tmp_path, str(tmp_path / "images"), str(tmp_path / "link"))
    assert "the same directory" in caught.value.what


@pytest_twisted.ensureDeferred
async def test_unreachable_image_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that is absent, or on a file system that hangs, does not prevent the start."""
    (tmp_path / "images").mkdir()
    hangs, answers = tmp_path / "hangs", Event()
    original_identity = preparation.identity

    def identity(directory: Path) -> tuple[int, int]:
        if directory == hangs:
            assert answers.wait(patient(10))
        return original_identity(directory)

    monkeypatch.setattr(preparation, "identity", identity)
    monkeypatch.setattr(preparation, "PLACE_SECONDS", 0.05)
    places = (str(hangs), str(tmp_path / "none"), str(tmp_path / "images"))
    await prepare(tmp_path, *places, on_prepared=answers.set)
