"""`shiftergw check --database` explains a database before the gateway writes to it."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.app.checkup import Finding, contents
from shiftergw.app.checkup.contents import FRESH_SECONDS
from shiftergw.config import Config
from shiftergw.mongo import database as mongo_database
from shiftergw.store.survey import Category
from tests import mongod
from tests.cli.command import shiftergw
from tests.configurations import SMALLEST
from tests.parts import free_port
from tests.sshd import Sshd
from tests.store.original import ROUND, SYSTEMS, image_id, records, rows
from tests.store.places import running
from tests.store.pulls import OTHER_ID, begin_pull, complete_pull, request


@pytest.fixture(scope="module")
def mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URI of a server."""
    with mongod.any_server(tmp_path_factory.mktemp("mongod")) as uri:
        yield uri


@pytest.fixture
def original_database(mongodb: str) -> Iterator[tuple[str, Any]]:
    """Return a database of the original: its name, and pymongo's view of it."""
    with mongod.database(mongodb) as (name, db):
        db["images"].insert_many([record for _, record in records(3 * len(ROUND))])
        db["metrics"].insert_many(rows(7))
        yield name, db


def document(root: Path, **changes: Any) -> dict[str, Any]:
    """Return a configuration of the original's two systems, with image directories below `root`."""
    for system in SYSTEMS:
        (root / system).mkdir(exist_ok=True)
    platforms = {
        system: {"accesstype": "local", "local": {"imageDir": str(root / system)}}
        for system in SYSTEMS
    }
    directories = {"StateDirectory": str(root / "state"), "ImageExpirationTimeout": "90:00:00:00"}
    return {**SMALLEST, **directories, "Platforms": platforms, **changes}


async def database_findings(root: Path, **changes: Any) -> list[Finding]:
    """Return all findings about a configuration's database."""
    loaded_config = Config.from_document(document(root, **changes), base=root, environ={})
    return await contents(reactor, loaded_config.config)


def by_name(findings: list[Finding], name: str) -> Finding:
    """Return the only finding of a name."""
    (match,) = [finding for finding in findings if finding.name == name]
    return match


@pytest_twisted.ensureDeferred
async def test_a_database_of_the_original(
    mongodb: str, original_database: tuple[str, Any], tmp_path: Path
) -> None:
    """Every record is in a category; odd records are listed; nothing is written."""
    name, db = original_database
    before = str(mongod.all_documents(db))
    findings = await database_findings(tmp_path, MongoDBURI=mongodb, MongoDB=name)
    assert str(mongod.all_documents(db)) == before
    assert [*db["images"].index_information()] == ["_id_"]
    assert by_name(findings, "database").text == (
        f"MongoDB, database {name}: 300 records, 300 of them by another program; 7 rows of look-ups"
    )
    assert by_name(findings, "indexes").text.startswith(
        "21 to be made at the start: shiftergw_claim"
    )
    assert by_name(findings, "scheduled expiry").level == "warning"
    expected = Counter(kind.category for kind, _ in records(300))
    categories = [finding.text for finding in findings if finding.name == "records"]
    assert sum(int(text.split()[0]) for text in categories) == 300
    for category, count in expected.items():
        assert any(text.startswith(f"{count} {category}") for text in categories), category
    assert {finding.level for finding in findings if Category.LISTED in finding.text} == {"ok"}
    assert {finding.level for finding in findings if Category.ABANDONED in finding.text} == {
        "warning"
    }
    odd = {
        finding.text.partition(": ")[2]: finding for finding in findings if finding.name == "odd"
    }
    open_to_all = next(
        finding for text, finding in odd.items() if text.startswith("private without")
    )
    assert open_to_all.text.startswith("9: ")
    assert re.search(r"\(alpha/docker:lib/app:\d+ \([0-9a-f]{24}\), .*…\)$", open_to_all.text)
    assert "--user" in open_to_all.remedy
    assert by_name(findings, "unknown members").text == "kept: blob 3, site_note 3"
    for system in SYSTEMS:
        own = [record for _, record in records(300) if record.get("system") == system]
        states = Counter(str(record.get("status", "none")) for record in own)
        numbers = by_name(findings, f"records of {system}").text.split(", ")
        assert sorted(numbers) == sorted(f"{word} {count}" for word, count in states.items())
    assert by_name(findings, "records of others").text == "none 9, gone 3"
    assert len(findings) < 50
    assert max(len(finding.text) for finding in findings) < 1000
    assert all(finding.text.isprintable() for finding in findings)


@pytest_twisted.ensureDeferred
async def test_many_records(
    mongodb: str,
    original_database: tuple[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Records that arrive in several batches are all counted."""
    monkeypatch.setattr(mongo_database, "BATCH", 7)
    findings = await database_findings(tmp_path, MongoDBURI=mongodb, MongoDB=original_database[0])
    assert "300 records" in by_name(findings, "database").text


@pytest_twisted.ensureDeferred
async def test_a_user_who_may_only_read(tmp_path: Path) -> None:
    """The check needs no right to write in the database."""
    root = tmp_path / "mongod"
    login = "looker:p%40ss@"
    server = mongod.Mongod(root, "--standalone", "--sync-on-commit", login=login)
    with server, pymongo.MongoClient[dict[str, Any]]("127.0.0.1", server.port) as client:
        client["images"]["images"].insert_many([record for _, record in records(100)])
        roles = [{"role": "read", "db": "images"}]
        client.admin.command("createUser", "looker", pwd="p@ss", roles=roles)
    try:
        server.start("--auth")
        findings = await database_findings(tmp_path, MongoDBURI=server.uri, MongoDB="images")
    finally:
        server.kill()
    assert "100 records" in by_name(findings, "database").text
    assert "p@ss" not in str(findings)
    assert "p%40ss" not in str(findings)


@pytest_twisted.ensureDeferred
async def test_an_unreachable_server(tmp_path: Path) -> None:
    """An unreachable server is the only finding, with a remedy."""
    uri = f"mongodb://me:p%40ss@127.0.0.1:{free_port()}/"
    (finding,) = await database_findings(tmp_path, MongoDBURI=uri, MongoDB="images")
    assert (finding.name, finding.level) == ("database", "failure")
    assert "MongoDBURI" in finding.remedy
    assert "p%40ss" not in finding.text


def deliver(directory: Path, n: int, size: int | None = 5) -> None:
    """Put the files of a record's image into an image directory; without a size no image."""
    (directory / f"{image_id(n)}.meta").write_text("FORMAT: squashfs\n")
    if size is not None:
        (directory / f"{image_id(n)}.squashfs").write_bytes(b"x" * size)


@pytest_twisted.ensureDeferred
async def test_files(mongodb: str, tmp_path: Path) -> None:
    """The files in the image directories are compared with the records."""
    with mongod.database(mongodb) as (name, db):
        two = {"system": "alpha", "status": "READY", "tag": ["x:1"]}
        sizes = {1: None, 2: 5, 3: 7, 4: 5, 5: None, 6: None}
        db["images"].insert_many(
            [{**two, "id": image_id(n), "size": size} for n, size in sizes.items()]
        )
        changes = {"MongoDBURI": mongodb, "MongoDB": name}
        where = f"files in {tmp_path / 'alpha'}"
        empty = by_name(await database_findings(tmp_path, **changes), where)
        assert empty.text.startswith("of 6 images, 6 have no file (")
        assert "mounted" in empty.remedy
        for n, size in {1: 9, 2: 5, 3: 5, 4: None, 6: 0}.items():
            deliver(tmp_path / "alpha", n, size)
        deliver(tmp_path / "alpha", 5)
        (tmp_path / "alpha" / f"{image_id(5)}.meta").unlink()
        findings = await database_findings(tmp_path, **changes)
        assert by_name(findings, where).text == (
            f"of 6 images, 1 have no file ({image_id(4)}),"
            f" 1 have an empty file ({image_id(6)}),"
            f" 1 have a file of another size than recorded ({image_id(3)}),"
            f" 1 have no metadata ({image_id(5)})"
        )
        assert by_name(findings, where).level == "warning"
        assert f"files in {tmp_path / 'beta'}" not in {finding.name for finding in findings}
        db["images"].delete_many({"id": {"$in": [image_id(n) for n in (3, 4, 5, 6)]}})
        assert (
            by_name(await database_findings(tmp_path, **changes), where).text
            == "all 2 images are there"
        )


@pytest_twisted.ensureDeferred
async def test_files_that_no_record_names(mongodb: str, tmp_path: Path) -> None:
    """Images that no user could look up are counted, unless their delivery may be under way."""
    with mongod.database(mongodb) as (name, db):
        db["images"].insert_many(
            {"system": "alpha", "status": status, "tag": ["x:1"], "id": image_id(n)}
            for n, status in ((1, "READY"), (2, "EXPIRING"), (3, "EXPIRED"))
        )
        db["images"].insert_one({"system": "beta", "status": "READY", "id": image_id(5)})
        (tmp_path / "alpha").mkdir(exist_ok=True)
        for n in range(1, 7):
            deliver(tmp_path / "alpha", n)
        delivery_time = time.time() - 2 * FRESH_SECONDS
        for n in range(1, 6):
            os.utime(tmp_path / "alpha" / f"{image_id(n)}.squashfs", (delivery_time, delivery_time))
        findings = await database_findings(tmp_path, MongoDBURI=mongodb, MongoDB=name)
        surplus = by_name(findings, f"more files in {tmp_path / 'alpha'}")
        assert surplus.text == (
            f"2 images that no record names, 10 bytes ({image_id(4)}, {image_id(5)})"
        )
        assert surplus.level == "warning"
        db["images"].delete_many({"system": "alpha"})
        findings = await database_findings(tmp_path, MongoDBURI=mongodb, MongoDB=name)
        assert by_name(findings, f"more files in {tmp_path / 'alpha'}").text.startswith("5 images")


@pytest_twisted.ensureDeferred
async def test_files_of_remote_systems(mongodb: str, tmp_path: Path) -> None:
    """A remote directory is listed once for all its systems; an unreachable one is a warning."""
    (tmp_path / "images").mkdir()
    deliver(tmp_path / "images", 1)
    with Sshd() as sshd, mongod.database(mongodb) as (name, db):
        db["images"].insert_many(
            {"system": system, "status": "READY", "tag": ["x:1"], "id": image_id(n)}
            for system, n in (("alpha", 1), ("beta", 2))
        )
        ssh = {
            "username": sshd.user, "imageDir": str(tmp_path / "images"), "key": str(sshd.key),
            "port": sshd.port, "knownHosts": str(sshd.known_hosts),
        }  # fmt: skip
        system = {"accesstype": "remote", "host": ["127.0.0.1"], "ssh": ssh}
        changes = {
            "MongoDBURI": mongodb,
            "MongoDB": name,
            "Platforms": dict.fromkeys(SYSTEMS, system),
        }
        where = f"files in 127.0.0.1:{tmp_path / 'images'}"
        finding = by_name(await database_findings(tmp_path, **changes), where)
        assert finding.text == f"of 2 images, 1 have no file ({image_id(2)})"
        sshd.stop()
        unreachable = by_name(await database_findings(tmp_path, **changes), where)
    assert unreachable.level == "warning"
    assert "cannot be reached" in unreachable.text
    assert "not looked at" in unreachable.remedy


@pytest_twisted.ensureDeferred
async def test_duplicate_claims(mongodb: str, tmp_path: Path) -> None:
    """Duplicate claims are a failure, because the gateway could not accept pulls."""
    with mongod.database(mongodb) as (name, db):
        db["images"].insert_many(
            {"system": "alpha", "status": word, "claim": None} for word in ("READY", "FAILURE")
        )
        findings = await database_findings(tmp_path, MongoDBURI=mongodb, MongoDB=name)
    assert [
        finding.level for finding in findings if "claim" in finding.text and finding.name == "odd"
    ] == ["failure"]


@pytest_twisted.ensureDeferred
async def test_sqlite(tmp_path: Path) -> None:
    """A SQLite file is checked in the same way, also while its gateway runs; none is created."""
    findings = await database_findings(tmp_path)
    assert by_name(findings, "database").text.endswith("shiftergw.sqlite will be made")
    assert not (tmp_path / "state").exists()
    (tmp_path / "state").mkdir()
    async with running(tmp_path / "state" / "shiftergw.sqlite") as store:
        await complete_pull(store, request("x:1"))
        await begin_pull(store, request("y:1"))
        await complete_pull(store, request("z:1", system="gone"), OTHER_ID)
        await store.record_lookup({"system": "alpha", "time": 5.0})
        await store.lookups("alpha", 1)
        findings = await database_findings(tmp_path)
    assert by_name(findings, "database").text.endswith("3 records; 1 rows of look-ups")
    assert {finding.text for finding in findings if finding.name == "records"} == {
        f"1 {Category.LISTED}",
        *(
            finding.text
            for finding in findings
            if Category.IN_FLIGHT in finding.text or Category.FOREIGN_SYSTEM in finding.text
        ),
    }
    assert by_name(findings, "records of others").text == "gone 1"
    assert await database_findings(tmp_path) == findings
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["shiftergw.sqlite"]
    (tmp_path / "state" / "shiftergw.sqlite").write_text("no database at all")
    (damage,) = await database_findings(tmp_path)
    assert (damage.name, damage.level) == ("database", "failure")


def test_the_command(mongodb: str, original_database: tuple[str, Any], tmp_path: Path) -> None:
    """The command prints a table; exit code 0, or 1 if the gateway would not work."""
    name, _ = original_database
    config = tmp_path / "imagemanager.json"
    config.write_text(json.dumps(document(tmp_path, MongoDBURI=mongodb, MongoDB=name)))
    result = shiftergw("check", "--database", "--config", str(config))
    assert result.returncode == 0, result.stderr
    assert "300 records" in result.stdout
    assert "→ Set ScheduledExpiry to true" in result.stdout
    assert len(result.stdout.splitlines()) < 70
    unreachable = f"mongodb://127.0.0.1:{free_port()}/"
    config.write_text(json.dumps(document(tmp_path, MongoDBURI=unreachable, MongoDB=name)))
    result = shiftergw("check", "--database", "--config", str(config))
    assert result.returncode == 1
    assert "failure  database" in result.stdout
