"""Delivered files survive a power cut: content and names are synced in the right order."""

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
from tests.delivery.far import UNUSED_ACCOUNT, far_directory, without_ssh
from tests.parts import need

Event = tuple[str, str]


@pytest.fixture
def events(root: Path, monkeypatch: pytest.MonkeyPatch) -> Sequence[Event]:
    """Give the syncs and renames in the image directory on this machine, in their order."""
    recorded_events: list[Event] = []
    fsync, replace = os.fsync, os.replace

    def kind_of(path: Path) -> str:
        if path == root:
            return "directory"
        whole = path.stat().st_size in {len(CONTENT), 1}
        return "whole temporary" if ".partial." in path.name and whole else path.name

    def record_fsync(descriptor: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        recorded_events.append(("fsync", kind_of(Path(os.readlink(f"/proc/self/fd/{descriptor}")))))  # noqa: PTH115
        fsync(descriptor)

    def record_replace(old: Any, new: Any, **keywords: Any) -> None:
        recorded_events.append(("rename", Path(new).name))
        replace(old, new, **keywords)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return recorded_events


@pytest.mark.parametrize("is_copy", [True, False])
@pytest_twisted.ensureDeferred
async def test_local_image(
    root: Path, source: Path, threads: Threads, events: Sequence[Event], is_copy: bool
) -> None:
    """A copy is synced before its rename, the directory after it; a link has no bytes to sync."""
    source.chmod(0o644 if is_copy else 0o600)
    await LocalDirectory(root, threads).install(source, IMAGE, SHA256, ignore)
    rename_events = [("rename", IMAGE), ("fsync", "directory")]
    assert list(events) == ([("fsync", "whole temporary")] if is_copy else []) + rename_events


@pytest_twisted.ensureDeferred
async def test_local_metadata(root: Path, threads: Threads, events: Sequence[Event]) -> None:
    """Metadata are synced before their rename, and the directory after it."""
    await LocalDirectory(root, threads).write(b"x", META)
    rename_events = [("rename", META), ("fsync", "directory")]
    assert list(events) == [("fsync", "whole temporary"), *rename_events]


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
    """Return the writes, syncs and renames that an SFTP server logged, a letter each."""
    letters = {"write": "w", "fsync": "f", "posix-rename": "r"}
    matches = re.findall(r"request \d+: (write|fsync|posix-rename)\b", log.read_text())
    return re.sub("w+", "w", "".join(letters[name] for name in matches))


@pytest.mark.parametrize("what", ["image", "metadata"])
@pytest_twisted.ensureDeferred
async def test_sftp(root: Path, tmp_path: Path, source: Path, threads: Threads, what: str) -> None:
    """OpenSSH's server gets an fsync after the last write, then the rename, then an fsync."""
    log = tmp_path / "log"
    env = without_ssh(tmp_path / "bin", options=f"-e -l DEBUG3 2>> {log}")
    directory = far_directory(UNUSED_ACCOUNT, PurePosixPath(root), threads, env)
    await _deliver(directory, source, what)
    assert requests(log) == "wfrf"


@pytest.mark.parametrize("what", ["image", "metadata"])
@pytest_twisted.ensureDeferred
async def test_scp(root: Path, tmp_path: Path, source: Path, threads: Threads, what: str) -> None:
    """With SCP, `dd` syncs the file, then `mv` renames it, then `sync` syncs the directory."""
    log, programs = tmp_path / "log", tmp_path / "programs"
    programs.mkdir()
    for name, arguments in (("dd", "fsync"), ("mv", IMAGE[:8]), ("sync", str(root))):
        script = f'case "$*" in *{arguments}*) echo {name} >> {log};; esac\n'
        (programs / name).write_text(f'#!/bin/sh\n{script}exec {need(name)} "$@"\n')
        (programs / name).chmod(0o755)
    env = without_ssh(tmp_path / "bin", before=f"PATH={programs}:$PATH")
    path = PurePosixPath(root)
    directory = far_directory(UNUSED_ACCOUNT, path, threads, env, open_files=ScpFiles.begin)
    await _deliver(directory, source, what)
    assert log.read_text().split() == ["dd", "mv", "sync"]
