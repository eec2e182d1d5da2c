"""Delivered files survive a power cut: they reach the disk before their names, and so do those."""

# ruff: noqa: ASYNC240 - a test may look at its own files while nothing else happens

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import pytest_twisted

from shiftergw.delivery.local import LocalDirectory
from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.plumbing.threads import Threads
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore
from tests.delivery.far import NOBODY, far_directory, without_ssh
from tests.parts import need

Event = tuple[str, str]


@pytest.fixture
def events(root: Path, monkeypatch: pytest.MonkeyPatch) -> Sequence[Event]:
    """Give what is synced and renamed in the image directory on this machine, in order."""
    seen: list[Event] = []
    fsync, replace = os.fsync, os.replace

    def kind_of(path: Path) -> str:
        if path == root:
            return "directory"
        whole = path.stat().st_size in {len(CONTENT), 1}
        return "whole temporary" if ".partial." in path.name and whole else path.name

    def synced(descriptor: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        seen.append(("fsync", kind_of(Path(os.readlink(f"/proc/self/fd/{descriptor}")))))  # noqa: PTH115
        fsync(descriptor)

    def replaced(old: Any, new: Any, **more: Any) -> None:
        seen.append(("rename", Path(new).name))
        replace(old, new, **more)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    return seen


@pytest.mark.parametrize("copied", [True, False])
@pytest_twisted.ensureDeferred
async def test_local_image(
    root: Path, source: Path, threads: Threads, events: Sequence[Event], copied: bool
) -> None:
    """A copy is synced before its rename, the directory after it; a link has no bytes to sync."""
    source.chmod(0o644 if copied else 0o600)
    await LocalDirectory(root, threads).install(source, IMAGE, SHA256, ignore)
    named = [("rename", IMAGE), ("fsync", "directory")]
    assert list(events) == ([("fsync", "whole temporary")] if copied else []) + named


@pytest_twisted.ensureDeferred
async def test_local_metadata(root: Path, threads: Threads, events: Sequence[Event]) -> None:
    """Metadata are synced before their rename, and the directory after it."""
    await LocalDirectory(root, threads).write(b"x", META)
    named = [("rename", META), ("fsync", "directory")]
    assert list(events) == [("fsync", "whole temporary"), *named]


async def _deliver(directory: RemoteDirectory, source: Path, what: str) -> None:
    """Deliver an image or its metadata, and close the directory."""
    try:
        if what == "image":
            await directory.install(source, IMAGE, SHA256, ignore)
        else:
            await directory.write(b"x", META)
    finally:
        await directory.close()


def requests(log: Path) -> str:
    """Return which requests an SFTP server heard that matter here, a letter each."""
    letters = {"write": "w", "fsync": "f", "posix-rename": "r"}
    found = re.findall(r"request \d+: (write|fsync|posix-rename)\b", log.read_text())
    return re.sub("w+", "w", "".join(letters[name] for name in found))


@pytest.mark.parametrize("what", ["image", "metadata"])
@pytest_twisted.ensureDeferred
async def test_sftp(root: Path, tmp_path: Path, source: Path, threads: Threads, what: str) -> None:
    """OpenSSH's server hears an fsync after the last write, then the rename, then another fsync."""
    log = tmp_path / "log"
    env = without_ssh(tmp_path / "bin", options=f"-e -l DEBUG3 2>> {log}")
    directory = far_directory(NOBODY, PurePosixPath(root), threads, env)
    await _deliver(directory, source, what)
    assert requests(log) == "wfrf"


@pytest.mark.parametrize("what", ["image", "metadata"])
@pytest_twisted.ensureDeferred
async def test_scp(root: Path, tmp_path: Path, source: Path, threads: Threads, what: str) -> None:
    """By SCP, `dd` syncs the file before `mv` renames it, and `sync` the directory after that."""
    log, programs = tmp_path / "log", tmp_path / "programs"
    programs.mkdir()
    for name, arguments in (("dd", "fsync"), ("mv", IMAGE[:8]), ("sync", str(root))):
        script = f'case "$*" in *{arguments}*) echo {name} >> {log};; esac\n'
        (programs / name).write_text(f'#!/bin/sh\n{script}exec {need(name)} "$@"\n')
        (programs / name).chmod(0o755)
    env = without_ssh(tmp_path / "bin", before=f"PATH={programs}:$PATH")
    there = PurePosixPath(root)
    directory = far_directory(NOBODY, there, threads, env, open_files=ScpFiles.begin)
    await _deliver(directory, source, what)
    assert log.read_text().split() == ["dd", "mv", "sync"]
