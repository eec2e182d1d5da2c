"""Errors of the operating system become errors of the gateway."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from twisted.logger import capturedLogs

from shiftergw.errors import DeliveryFailed, GatewayError, NoSpace
from shiftergw.plumbing import disk_errors
from shiftergw.plumbing.disk_errors import SkipUnreadable, check_room, translated_disk_errors


@pytest.mark.parametrize(
    ("number", "kind", "what"),
    [
        (errno.ENOSPC, NoSpace, "It is full."),
        (errno.EDQUOT, NoSpace, "It is full."),
        (errno.EIO, DeliveryFailed, "It failed: broken."),
    ],
)
def test_translation(number: int, kind: type[GatewayError], what: str) -> None:
    """A full disk or quota is `NoSpace`, everything else the caller's error; both have details."""
    with (
        pytest.raises(kind) as excinfo,
        translated_disk_errors(
            "It is full.", lambda error: DeliveryFailed(f"It failed: {error.strerror}.")
        ),
    ):
        raise OSError(number, "broken", "/file")
    assert excinfo.value.what == what
    assert excinfo.value.detail == f"[Errno {number}] broken: '/file'"
    assert isinstance(excinfo.value.__cause__, OSError)


def test_other_exceptions_pass() -> None:
    """Only `OSError` is translated."""
    with (
        pytest.raises(ValueError, match="x"),
        translated_disk_errors("Full.", lambda _: DeliveryFailed("Failed.")),
    ):
        raise ValueError("x")


def test_room_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that needs more bytes than are free is refused, in the words of its caller."""
    monkeypatch.setattr(disk_errors, "free_space", lambda _: 1000)
    check_room(tmp_path, 1000, "full")
    with pytest.raises(NoSpace, match="full") as caught:
        check_room(tmp_path, 1001, "full")
    assert str(tmp_path) in caught.value.detail


def test_many_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is logged once, and the memory of those that were logged has a bound."""
    monkeypatch.setattr(disk_errors, "_logged_paths", set())
    paths = [tmp_path / f"{number}" for number in range(disk_errors._MOST_REPORTED + 1)]
    with capturedLogs() as log:
        for path in [*paths, *paths[-2:]]:
            with SkipUnreadable(path):
                raise OSError(errno.ESTALE, "Stale file handle")
    assert len(log) == len(paths) + 1
    assert len(disk_errors._logged_paths) <= disk_errors._MOST_REPORTED


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOSPC])
def test_errors_that_say_nothing_of_an_inode(tmp_path: Path, number: int) -> None:
    """They are raised: all other files would fail as well."""
    with pytest.raises(OSError, match="broken"), SkipUnreadable(tmp_path):
        raise OSError(number, "broken")
