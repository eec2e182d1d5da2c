"""The processes of a machine share the manifests of a registry that counts requests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.model.images import Digest
from shiftergw.plumbing.threads import Threads
from shiftergw.sources.registry import shared_manifests
from shiftergw.sources.registry.shared_manifests import (
    MOST_BYTES,
    RecentManifest,
    SharedManifests,
)


def manifest(text: str) -> RecentManifest:
    """Return a manifest of a text."""
    content = text.encode()
    return RecentManifest(Digest.of(content), content, "application/json; a=b")


def files(root: Path) -> list[Path]:
    """Return all files."""
    return [path for path in root.rglob("*") if path.is_file()]


@pytest_twisted.ensureDeferred
async def test_another_process_reads_it(tmp_path: Path, threads: Threads) -> None:
    """A manifest is stored for its registry alone, and no other user of the machine can read it."""
    writer = SharedManifests(tmp_path / "manifests", "hub/..", threads)
    assert not await writer.exist()
    assert await writer.read(manifest("{}\n").digest) is None
    await writer.write(manifest("{}\n"))
    reader = SharedManifests(tmp_path / "manifests", "hub/..", threads)
    assert await reader.exist()
    assert await reader.read(manifest("{}\n").digest) == manifest("{}\n")
    assert not await SharedManifests(tmp_path / "manifests", "other", threads).exist()
    (path,) = files(tmp_path)
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.parent == tmp_path / "manifests"


@pytest_twisted.ensureDeferred
async def test_a_damaged_file_is_removed(tmp_path: Path, threads: Threads) -> None:
    """The bytes of a damaged file are not used."""
    manifests = SharedManifests(tmp_path, "hub", threads)
    await manifests.write(manifest("{}"))
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes() + b" ")
    assert await manifests.read(manifest("{}").digest) is None
    assert files(tmp_path) == []


@pytest_twisted.ensureDeferred
async def test_the_files_are_bounded(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest files are removed, and a huge manifest is not stored."""
    monkeypatch.setattr(shared_manifests, "MOST_FILES", 2)
    manifests = SharedManifests(tmp_path, "hub", threads)
    for age, text in enumerate("abc"):
        await manifests.write(manifest(text))
        for path in files(tmp_path):
            if path.name == manifest(text).digest.hex:
                os.utime(path, (age, age))
    assert await manifests.read(manifest("c").digest) == manifest("c")
    assert len(files(tmp_path)) == 2
    await manifests.write(manifest("x" * (MOST_BYTES + 1)))
    assert len(files(tmp_path)) == 2


@pytest_twisted.ensureDeferred
async def test_a_disk_that_refuses(tmp_path: Path, threads: Threads) -> None:
    """A pull succeeds even if its manifest cannot be stored."""
    (tmp_path / "file").write_bytes(b"")
    manifests = SharedManifests(tmp_path / "file", "hub", threads)
    await manifests.write(manifest("{}"))
    assert await manifests.read(manifest("{}").digest) is None
