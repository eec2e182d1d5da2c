"""Files that cannot be the gateway's database: the start and `check` give the same reason."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from twisted.internet import reactor

from shiftergw.errors import ConfigurationError
from shiftergw.store.sqlite import database, inspection
from shiftergw.store.sqlite.database import SCHEMA, open_alone, open_database
from shiftergw.store.sqlite.faults import explain_errors
from shiftergw.store.sqlite.store import SqliteStore
from shiftergw.store.survey import Survey


def newer(path: Path) -> None:
    """Create a database of a later version of this gateway."""
    open_database(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(SCHEMA) + 1}")


def of_another_program(path: Path) -> None:
    """Create the database of a program that does not use `user_version`."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE bookmarks (url)")


def with_a_version(path: Path) -> None:
    """Create the database of a program that uses `user_version` as this gateway does."""
    of_another_program(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")


FILES: list[tuple[Callable[[Path], None], str]] = [
    (newer, "newer version"),
    (of_another_program, "belongs to another program"),
    (with_a_version, "belongs to another program"),
    (Path.mkdir, "it is not a regular file"),
    (os.mkfifo, "it is not a regular file"),
]


@pytest.mark.parametrize(("make", "words"), FILES)
def test_an_unusable_file_is_explained(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    """Each way to open it names the file, the reason and the remedy."""
    path = tmp_path / "shiftergw.sqlite"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    survey = Survey(["alpha"], 0.0)
    ways: list[Callable[[], object]] = [
        lambda: open_database(path),
        lambda: open_alone(path),
        lambda: inspection.check(path, 1.0),
        lambda: inspection.survey(path, survey),
    ]
    for way in ways:
        with pytest.raises(ConfigurationError, match=words) as caught:
            way()
        assert str(path) in caught.value.what
        assert caught.value.remedy
        assert "in a moment" not in str(caught.value)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    """An empty file has no records, and becomes a database at the start."""
    path = tmp_path / "shiftergw.sqlite"
    path.touch()
    assert inspection.check(path, 1.0)
    assert inspection.survey(path, Survey(["alpha"], 0.0)) == 0
    assert path.read_bytes() == b""
    open_database(path).close()
    assert inspection.survey(path, Survey(["alpha"], 0.0)) == 0


def test_a_full_disk_is_named_at_the_start(tmp_path: Path) -> None:
    """The error does not say that the database is busy."""
    path = tmp_path / "shiftergw.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA page_size = 512")
        db.execute("VACUUM")
    with pytest.raises(ConfigurationError, match="the disk is full") as caught:
        _open_with_a_limit(path)
    assert "Make room" in caught.value.remedy


def _open_with_a_limit(path: Path) -> None:
    """Open a file with a limit of pages, as on a full disk."""
    with explain_errors(path), closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA max_page_count = 2")
        database._upgrade(db, path)


def test_one_gateway_shares_no_used_credentials(tmp_path: Path) -> None:
    """The file serves a single gateway, which remembers used credentials in its own memory."""
    assert SqliteStore(reactor, tmp_path / "store.sqlite").used_credentials is None
