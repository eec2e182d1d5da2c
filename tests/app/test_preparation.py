"""What keeps a machine from starting the gateway, beside what its configuration says."""

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
from shiftergw.plumbing.threads import Threads
from tests.configurations import loaded
from tests.parts import need


async def prepare(
    root: Path, *image_dirs: str, prepared: Callable[[], object] = lambda: None
) -> None:
    """Prepare for systems with these image directories; call `prepared` once that is done."""
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
    threads = Threads(reactor, 2, "test")
    threads.startService()
    try:
        await Preparation(loaded(changes).config, threads, reactor).startService()
        prepared()
    finally:
        await threads.stopService()


@pytest_twisted.ensureDeferred
async def test_directories_are_made_and_closed(tmp_path: Path) -> None:
    """State, cache and scratch are the gateway's alone."""
    (tmp_path / "images").mkdir()
    await prepare(tmp_path, str(tmp_path / "images"), f"{tmp_path}/x/../images")
    for name in ("cache", "expand", "state"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


@pytest_twisted.ensureDeferred
async def test_one_directory_has_one_name(tmp_path: Path) -> None:
    """Two names of one image directory would be two places: two ACLs, and no lease between them."""
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    with pytest.raises(ConfigurationError) as caught:
        await prepare(tmp_path, str(tmp_path / "images"), str(tmp_path / "link"))
    assert "the same directory" in caught.value.what


@pytest_twisted.ensureDeferred
async def test_directories_that_nothing_can_be_said_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not there, or on a file system that hangs, keeps nobody from starting."""
    (tmp_path / "images").mkdir()
    hangs, answers = tmp_path / "hangs", Event()
    look = preparation.identity

    def identity(directory: Path) -> tuple[int, int]:
        if directory == hangs:
            assert answers.wait(10)
        return look(directory)

    monkeypatch.setattr(preparation, "identity", identity)
    monkeypatch.setattr(preparation, "PLACE_SECONDS", 0.05)
    places = (str(hangs), str(tmp_path / "none"), str(tmp_path / "images"))
    await prepare(tmp_path, *places, prepared=answers.set)
