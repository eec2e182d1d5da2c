"""A damaged SQLite file: the start is refused, and damage found later is reported as such."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent

from shiftergw.errors import ConfigurationError, DatabaseDamaged
from shiftergw.store.sqlite import inspection, integrity
from shiftergw.store.sqlite.integrity import CHECK_SECONDS
from shiftergw.store.sqlite.store import SqliteStore
from tests.store.places import running
from tests.store.pulls import NOW, complete_pull, request

PAGE = 4096
RECORDS = 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a closed database with some records."""
    path = tmp_path / "images.sqlite"

    async def fill() -> None:
        async with running(path) as store:
            for number in range(RECORDS):
                await complete_pull(store, request(f"x:{number}"), f"{number:064x}")

    pytest_twisted.blockon(Deferred.fromCoroutine(fill()))
    return path


def zero(path: Path, first: int, last: int | None = None) -> None:
    """Overwrite pages of the file with zeros; without a last page, up to its end."""
    content = bytearray(path.read_bytes())
    begin, end = first * PAGE, len(content) if last is None else last * PAGE
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)


def zero_tables(path: Path) -> None:
    """Overwrite everything except the schema with zeros."""
    zero(path, 1)


def zero_schema(path: Path) -> None:
    """Overwrite the first page, except for the file's header, with zeros."""
    content = bytearray(path.read_bytes())
    content[100:PAGE] = bytes(PAGE - 100)
    path.write_bytes(content)


def zero_header(path: Path) -> None:
    """Overwrite the first page with zeros."""
    zero(path, 0, 1)


def cut(path: Path) -> None:
    """Remove the second half of the file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // PAGE // 2 * PAGE])


@pytest.mark.parametrize("damage", [zero_tables, zero_schema, zero_header, cut])
@pytest_twisted.ensureDeferred
async def test_a_damaged_file_is_refused_at_the_start(
    path: Path, damage: Callable[[Path], None]
) -> None:
    """The error names the file and says that the backup has to be restored."""
    damage(path)
    store = SqliteStore(reactor, path, check_seconds=CHECK_SECONDS)
    with pytest.raises(ConfigurationError, match="damaged") as caught:
        await store.startService()
    assert str(path) in caught.value.what
    assert "restore the backup" in caught.value.remedy
    with pytest.raises(ConfigurationError, match="damaged"):
        inspection.check(path, CHECK_SECONDS)


@pytest_twisted.ensureDeferred
async def test_a_sound_file_is_accepted(path: Path) -> None:
    """A sound file is accepted, and can be checked while it is open."""
    store = SqliteStore(reactor, path, check_seconds=CHECK_SECONDS)
    await store.startService()
    assert inspection.check(path, CHECK_SECONDS)
    await store.ready()
    await store.stopService()
    assert inspection.check(path, CHECK_SECONDS)


@pytest_twisted.ensureDeferred
async def test_the_check_of_a_large_file_is_limited(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start does not wait for its end, and the log says so."""
    monkeypatch.setattr(integrity, "_STEPS", 1)
    assert not inspection.check(path, -1)
    store = SqliteStore(reactor, path, check_seconds=-1)
    with capturedLogs() as log:
        await store.startService()
    assert any("too large to look" in formatEvent(event) for event in log)
    await store.ready()
    await store.stopService()


@pytest_twisted.ensureDeferred
async def test_later_damage_is_reported(path: Path) -> None:
    """The error says that a retry does not help, and the gateway is not ready any more."""
    zero_tables(path)
    store = SqliteStore(reactor, path)
    await store.startService()
    with pytest.raises(DatabaseDamaged, match="is damaged") as caught:
        await store.list("alpha")
    assert not caught.value.retryable
    assert "in a moment" not in str(caught.value)
    assert "malformed" in caught.value.detail
    with pytest.raises(DatabaseDamaged):
        await store.claim(request("new:1"), NOW)
    with pytest.raises(DatabaseDamaged):
        await store.ready()
    await store.stopService()


@pytest_twisted.ensureDeferred
async def test_a_gateway_with_damage_stays_unready(path: Path) -> None:
    """The gateway stays unready even if the test of readiness itself reads sound pages."""
    store = SqliteStore(reactor, path)
    await store.startService()
    lane = store._reader
    assert lane is not None
    lane.damage = DatabaseDamaged("The gateway's database is damaged.")
    with pytest.raises(DatabaseDamaged):
        await store.ready()
    await store.stopService()
