"""What keeps a machine from starting the gateway, beside what its configuration says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.errors import ConfigurationError
from shiftergw.plumbing.threads import Threads
from shiftergw.preparation import Preparation
from tests.configurations import loaded
from tests.parts import need


async def prepare(root: Path, *image_dirs: str) -> None:
    """Prepare for systems with these image directories."""
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
    threads = Threads(reactor, 1, "test")
    threads.startService()
    try:
        await Preparation(loaded(changes).config, threads, reactor).startService()
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
