"""A damaged SQLite file: the start is refused, and damage met later is called by its name."""

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
    """Return a database with some records, that nobody has open."""
    path = tmp_path / "images.sqlite"

    async def fill() -> None:
        async with running(path) as store:
            for number in range(RECORDS):
                await complete_pull(store, request(f"x:{number}"), f"{number:064x}")

    pytest_twisted.blockon(Deferred.fromCoroutine(fill()))
    return path


def zero(path: Path, first: int, last: int | None = None) -> None:
    """Fill pages of the file with zeros; to its end if no last one is named."""
    content = bytearray(path.read_bytes())
    begin, end = first * PAGE, len(content) if last is None else last * PAGE
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)


def zero_tables(path: Path) -> None:
    """Fill everything but the schema with zeros."""
    zero(path, 1)


def zero_schema(path: Path) -> None:
    """Fill the first page, but for the file's header, with zeros."""
    content = bytearray(path.read_bytes())
    content[100:PAGE] = bytes(PAGE - 100)
    path.write_bytes(content)


def zero_header(path: Path) -> None:
    """Fill the first page with zeros."""
    zero(path, 0, 1)


def cut(path: Path) -> None:
    """Drop the second half of the file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // PAGE // 2 * PAGE])


@pytest.mark.parametrize("damage", [zero_tables, zero_schema, zero_header, cut])
@pytest_twisted.ensureDeferred
async def test_the_start_is_refused(path: Path, damage: Callable[[Path], None]) -> None:
    """The operator reads which file is damaged, and that its backup is to be restored."""
    damage(path)
    store = SqliteStore(reactor, path, check_seconds=CHECK_SECONDS)
    with pytest.raises(ConfigurationError, match="damaged") as caught:
        await store.startService()
    assert str(path) in caught.value.what
    assert "restore the backup" in caught.value.remedy
    with pytest.raises(ConfigurationError, match="damaged"):
        inspection.check(path, CHECK_SECONDS)


@pytest_twisted.ensureDeferred
async def test_a_sound_file(path: Path) -> None:
    """It starts, and is looked at while it is open too."""
    store = SqliteStore(reactor, path, check_seconds=CHECK_SECONDS)
    await store.startService()
    assert inspection.check(path, CHECK_SECONDS)
    await store.ready()
    await store.stopService()
    assert inspection.check(path, CHECK_SECONDS)


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start does not wait for the end of the check, and the log says so."""
    monkeypatch.setattr(integrity, "_STEPS", 1)
    assert not inspection.check(path, -1)
    store = SqliteStore(reactor, path, check_seconds=-1)
    with capturedLogs() as log:
        await store.startService()
    assert any("too large to look" in formatEvent(event) for event in log)
    await store.ready()
    await store.stopService()


@pytest_twisted.ensureDeferred
async def test_damage_that_is_met_later(path: Path) -> None:
    """Whoever meets it hears that a retry does not help, and the gateway is not ready any more."""
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
async def test_the_gateway_is_not_ready_once_damage_was_met(path: Path) -> None:
    """Not even if what it reads to see whether it is ready is sound."""
    store = SqliteStore(reactor, path)
    await store.startService()
    lane = store._reader
    assert lane is not None
    lane.damage = DatabaseDamaged("The gateway's database is damaged.")
    with pytest.raises(DatabaseDamaged):
        await store.ready()
    await store.stopService()
