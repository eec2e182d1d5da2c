"""Converted files are shared while they are sound, and swept when they are unused."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.plumbing.locks import try_lock, unlock
from tests.build.site import DAY, ID, OTHER_ID, Site


def _flip(site: Site, base: str) -> None:
    path = site.directory / f"{base}.squashfs"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(site: Site, base: str) -> None:
    os.truncate(site.directory / f"{base}.squashfs", 100)


def _remove(site: Site, base: str) -> None:
    (site.directory / f"{base}.squashfs").unlink()


def _orphan(site: Site, base: str) -> None:
    (site.directory / f"{base}.json").unlink()


def _scribble(site: Site, base: str) -> None:
    (site.directory / f"{base}.json").write_text("{]")


def _write_wrong_types(site: Site, base: str) -> None:
    (site.directory / f"{base}.json").write_text(json.dumps({"size": 1, "sha256": 2, "report": 3}))


def _add_member(site: Site, base: str) -> None:
    path = site.directory / f"{base}.json"
    sidecar = json.loads(path.read_text())
    sidecar["report"]["other"] = 1
    path.write_text(json.dumps(sidecar))


@pytest.mark.parametrize(
    "damage", [_flip, _cut, _remove, _orphan, _scribble, _write_wrong_types, _add_member]
)
@pytest_twisted.ensureDeferred
async def test_a_damaged_file_is_built_anew(site: Site, damage: Any) -> None:
    """A file that differs from its sidecar, or has none, is never delivered."""
    layers = site.two
    first = await site.build_image(layers)
    damage(site, first.path.stem)
    second = await site.build_image(layers)
    assert set(second.seconds) - {"verify"} == site.stages  # a damaged sidecar spares the hash
    assert second.sha256 == first.sha256
    assert hashlib.sha256(second.path.read_bytes()).hexdigest() == first.sha256


def age(site: Site, seconds: float) -> None:
    """Make everything in the directory older."""
    for path in site.directory.iterdir():
        old_time = time.time() - seconds
        os.utime(path, (old_time, old_time))


@pytest_twisted.ensureDeferred
async def test_what_nobody_used_is_swept(site: Site) -> None:
    """The sweep removes old images with their leftovers, and no foreign files."""
    assert await site.builder.sweep(time.time() - DAY) == 0  # there is no directory yet
    layers = site.two
    await site.build_image(layers)
    (site.directory / "foreign").touch()
    (site.directory / f"{OTHER_ID}-{'0' * 12}.part").touch()
    (site.directory / f".{OTHER_ID}-{'0' * 12}.json.x7f").touch()
    (site.directory / f"{OTHER_ID}-{'1' * 12}.lock").touch()
    assert await site.builder.sweep(time.time() - DAY) == 0
    assert len(site.names) == 6
    age(site, 2 * DAY)
    assert await site.builder.sweep(time.time() - DAY) == 3
    assert site.names == ["foreign"]


@pytest_twisted.ensureDeferred
async def test_use_makes_young(site: Site) -> None:
    """A file that was used a moment ago stays, however long ago it was built."""
    layers = site.two
    await site.build_image(layers)
    age(site, 2 * DAY)
    await site.build_image(layers)
    assert await site.builder.sweep(time.time() - DAY) == 0
    assert len(site.names) == 2


@pytest_twisted.ensureDeferred
async def test_use_leaves_the_file_s_own_time(site: Site) -> None:
    """The file may have a second name in an image directory, where its time is compared."""
    image = await site.build_image(site.two)
    os.utime(image.path, (1, 1))
    assert (await site.build_image(site.two)).path.stat().st_mtime == 1


@pytest_twisted.ensureDeferred
async def test_a_file_in_use_is_not_swept(site: Site) -> None:
    """A file stays as long as at least one context uses it."""
    layers = site.two
    async with site.build(layers) as outer:
        async with site.build(layers):
            age(site, 2 * DAY)
            assert await site.builder.sweep(time.time() - DAY) == 0
        age(site, 2 * DAY)
        assert await site.builder.sweep(time.time() - DAY) == 0
        assert outer.path.exists()
    assert await site.builder.sweep(time.time() - DAY) == 1
    assert site.names == []


@pytest_twisted.ensureDeferred
async def test_a_build_in_progress_is_not_swept(site: Site) -> None:
    """A locked file stays, however old it is."""
    site.directory.mkdir()
    lock = site.directory / f"{ID}-{'0' * 12}.lock"
    (site.directory / f"{ID}-{'0' * 12}.part").touch()
    descriptor = try_lock(lock)
    assert descriptor is not None
    age(site, 2 * DAY)
    assert await site.builder.sweep(time.time() - DAY) == 0
    assert len(site.names) == 2
    unlock(lock, descriptor)


@pytest_twisted.ensureDeferred
async def test_what_a_dead_worker_left_does_no_harm(site: Site, tmp_path: Path) -> None:
    """Half a file and a lock of a process that was killed are simply overwritten."""
    layers = site.two
    first = await site.build_image(layers)
    base = first.path.stem
    first.path.unlink()
    (site.directory / f"{base}.part").write_bytes(os.urandom(100_000))
    (site.directory / f"{base}.lock").touch()
    assert (await site.build_image(layers)).sha256 == first.sha256
    assert site.names == [f"{base}.json", f"{base}.squashfs"]
