"""Names of files on remote systems and in homes, and sealed logins."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.delivery.far import UNUSED_ACCOUNT, far_directory, without_ssh
from tests.golden import program
from tests.golden.records import check, plain_name
from tests.golden.registry import PASSWORDS
from tests.golden.state import DATABASE, STATES, restore
from tests.installed_reactor import reactor

ID = "ab" * 32
CONTENT = bytes(range(256)) * 400
PARTIAL = f"{ID}.squashfs.partial.{hashlib.sha256(CONTENT).hexdigest()[:16]}"


@pytest.fixture
def remote_directory(tmp_path: Path) -> Iterator[Any]:
    """Return an image directory over SFTP."""
    images = tmp_path / "images"
    images.mkdir()
    threads = program.threads(reactor)
    env = without_ssh(tmp_path / "bin")
    directory = far_directory(UNUSED_ACCOUNT, PurePosixPath(images), threads, env)
    yield directory
    pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))
    pytest_twisted.blockon(threads.stopService())


@pytest_twisted.ensureDeferred
async def test_partial_files_on_a_remote_system(remote_directory: Any, tmp_path: Path) -> None:
    """An interrupted upload with the recorded name is resumed; old temporary files are removed."""
    images, source = tmp_path / "images", tmp_path / "converted"
    source.write_bytes(CONTENT)
    (images / PARTIAL).write_bytes(CONTENT[: len(CONTENT) // 2])
    temporaries = [f"{ID}.squashfs.partial.{'0' * 16}", f"{ID}.meta.partial.{'0' * 16}"]
    foreign_files = [
        f"{ID}.meta.partial",
        f"{ID}.meta.{'0' * 16}",
        f"{ID}.other.partial.{'0' * 16}",
    ]
    for name in (*temporaries, *foreign_files):
        (images / name).write_bytes(b"x")
        os.utime(images / name, (1, 1))
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    await remote_directory.install(source, f"{ID}.squashfs", sha256, lambda _: None)
    await remote_directory.write(b"FORMAT: squashfs\n", f"{ID}.meta")
    assert await remote_directory.sweep(1000) == len(temporaries)
    names = sorted(path.name for path in images.iterdir())
    assert names == sorted([f"{ID}.squashfs", f"{ID}.meta", *foreign_files])


def test_files_in_homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of users' logins and of known hosts, and their locks, have the recorded names."""
    names: list[str] = []
    real_open = os.open

    def note_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            names.append(plain_name(os.fsdecode(path).removeprefix(f"{tmp_path}/")))
        return real_open(path, flags, *arguments, **options)

    with monkeypatch.context() as context:
        context.setattr(os, "open", note_open)
        program.keep_login(tmp_path, "mycluster", "quay.io", "MUNGE:AwQDAAC1:")
        program.add_known_host(tmp_path / ".ssh" / "known_hosts", "host ssh-ed25519 AAAA")
    logins = tmp_path / ".udiRoot" / ".cred"
    assert logins.read_text() == "mycluster:quay.io=MUNGE:AwQDAAC1:\n"
    assert logins.stat().st_mode & 0o777 == 0o600
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    check("homes", {"creations": names, "files": files})


@pytest.mark.parametrize("version", sorted(path.name for path in STATES.iterdir()))
def test_sealed_logins(version: str, tmp_path: Path) -> None:
    """The key of an earlier version opens its sealed logins and makes the recorded digests."""
    restore(version, tmp_path)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        query = "SELECT claim, json_extract(document, '$.sealed') AS sealed FROM images"
        rows = db.execute(f"{query} WHERE sealed IS NOT NULL ORDER BY claim").fetchall()
    seal = program.seal_of(tmp_path / "state" / "secret.key")
    assert [seal.open(login, claim) for claim, login in rows] == [
        f"{user}:{PASSWORDS[user]}" for user in ("bob", "alice", "alice")
    ]
    check(
        f"seal-{version}", {"fingerprint": seal.fingerprint("alice:wonderland", "registry login")}
    )
