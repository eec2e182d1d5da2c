"""Users who read image files themselves: the access of a file follows the readers of its image."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted

from shiftergw.delivery.local import LocalDirectory
from shiftergw.errors import Unavailable
from shiftergw.states import State
from tests.job.pulls import ALICE, BOB, CAROL, private_image
from tests.job.workbench import Bench

ATTRIBUTE = "system.posix_acl_access"


def open_files(bench: Bench, mode: int = 0o644) -> None:
    """Let users read the image files of the bench's systems, by this mode."""
    directory = LocalDirectory(bench.images, bench.threads, may_link=False)
    for name, target in bench.targets.items():
        bench.targets[name] = replace(target, directory=directory, file_mode=mode)


def mode_of(path: Path) -> int:
    """Return the mode of a file."""
    return path.stat().st_mode & 0o7777


def readers_of(path: Path) -> set[int]:
    """Return the ids of users and groups in the access list of a file."""
    value = os.getxattr(path, ATTRIBUTE)
    entries = (value[at : at + 8] for at in range(4, len(value), 8))
    return {int.from_bytes(entry[4:], "little") for entry in entries} - {2**32 - 1}


@pytest_twisted.ensureDeferred
async def test_a_public_image(bench: Bench) -> None:
    """Everybody may read the file of a public image, and nobody its metadata."""
    open_files(bench)
    await bench.pull()
    assert (mode_of(bench.image_path), mode_of(bench.meta_path)) == (0o644, 0o600)


@pytest_twisted.ensureDeferred
async def test_files_stay_closed_without_the_key(bench: Bench) -> None:
    """Without `FileMode` no mode is changed, not even one that an admin has set."""
    await bench.pull()
    assert mode_of(bench.image_path) == 0o600
    bench.image_path.chmod(0o640)
    await bench.pull()
    assert mode_of(bench.image_path) == 0o640


@pytest_twisted.ensureDeferred
async def test_a_private_image(bench: Bench) -> None:
    """Readers of a private image are in the access list of its file, which changes with them."""
    open_files(bench)
    await private_image(bench)
    assert readers_of(bench.image_path) == {ALICE}
    assert mode_of(bench.image_path) & 0o007 == 0
    await bench.pull(uid=BOB, login="bob:other")
    assert readers_of(bench.image_path) == {ALICE, BOB}
    await bench.pull(user_acl=(CAROL,), group_acl=(2300,), kind="acl")
    assert readers_of(bench.image_path) == {ALICE, CAROL, 2300}
    assert bench.builder.builds == 1


@pytest_twisted.ensureDeferred
async def test_closed_files_have_no_access_list(bench: Bench) -> None:
    """With the mode 0600 the file of a private image is closed as the others are."""
    open_files(bench, 0o600)
    await private_image(bench)
    assert mode_of(bench.image_path) == 0o600
    assert ATTRIBUTE not in os.listxattr(bench.image_path)


@pytest_twisted.ensureDeferred
async def test_the_key_acts_on_files_that_are_there(bench: Bench) -> None:
    """The next pull opens a file, and delivers a copy of one that is a hard link."""
    await bench.pull()
    converted_file = bench.images.parent / "converted"
    os.link(bench.image_path, converted_file)
    open_files(bench)
    await bench.pull()
    assert (mode_of(bench.image_path), mode_of(converted_file)) == (0o644, 0o600)
    bench.image_path.chmod(0o600)
    await bench.pull()
    assert mode_of(bench.image_path) == 0o644


@pytest_twisted.ensureDeferred
async def test_a_system_without_access_lists_refuses_private_images(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pull fails and says why, and leaves no file."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("os.setxattr", refuse)
    open_files(bench)
    record = await private_image(bench)
    assert record.status is State.FAILURE
    assert "readers alone" in (record.cause or "")
    assert list(bench.images.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_a_file_that_records_refer_to_stays_closed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file that was delivered anew cannot be opened to its readers, it stays as it is."""
    open_files(bench)
    await private_image(bench)
    bench.image_path.unlink()

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("os.setxattr", refuse)
    record = await private_image(bench)
    assert record.status is State.FAILURE
    assert (mode_of(bench.image_path), bench.meta().user_acl) == (0o600, (ALICE,))


@pytest_twisted.ensureDeferred
async def test_the_access_is_put_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the records cannot be changed, the file has the readers that the records name."""
    open_files(bench)
    await private_image(bench)

    async def fail(*_: object) -> None:
        raise Unavailable("The store is away.")

    monkeypatch.setattr("shiftergw.plumbing.retry.RETRY_SECONDS", 0.0)
    monkeypatch.setattr(bench.store, "set_access", fail)
    await bench.pull(user_acl=(CAROL,), kind="acl")
    assert readers_of(bench.image_path) == {ALICE}
