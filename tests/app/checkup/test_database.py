"""`shiftergw check` says whether the gateway may write in its database, and tries nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pymongo
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.logger import capturedLogs, formatEvent

from shiftergw.app.checkup.database import state
from shiftergw.app.checkup.finding import Finding
from shiftergw.app.compose import state_file
from tests import mongod
from tests.configurations import load_config
from tests.mongo.puppets import answering, serving
from tests.store.places import running
from tests.store.pulls import complete_pull, request

WRITES = ["find", "insert", "update", "remove", "listIndexes", "createIndex", "dropIndex"]


async def told(uri: str) -> Finding:
    """Return what is told of the rights of a URI's user in the database `images`."""
    config = load_config({"MongoDBURI": uri, "MongoDB": "images"}).config
    (results,) = [one for one in await state(config, reactor) if one.name == "rights in MongoDB"]
    return results


def privilege(actions: list[str], db: str = "images", collection: str = "") -> dict[str, Any]:
    """Return a privilege as a server tells it."""
    return {"resource": {"db": db, "collection": collection}, "actions": actions}


@pytest.mark.parametrize(
    ("privileges", "level", "text"),
    [
        ([privilege(WRITES)], "ok", "me@admin may write, and make indexes"),
        ([privilege(WRITES[:3]), privilege(WRITES[3:], db="")], "ok", "may write"),
        ([{"resource": {"anyResource": True}, "actions": WRITES}], "ok", "may write"),
        ([privilege(["find", "listIndexes"])], "failure", "insert in images, update in images"),
        ([privilege(WRITES, db="other"), privilege(["find"])], "failure", "insert in images"),
        ([privilege(WRITES, collection="images")], "failure", "may not: find in metrics"),
        ([privilege([one for one in WRITES if one != "createIndex"])], "failure", "createIndex in"),
        ([{"resource": {"cluster": True}, "actions": WRITES}], "failure", "and 42 more"),
        ([], "warning", "whether me@admin may write is not proven"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_privileges(privileges: list[Any], level: str, text: str) -> None:
    """The privileges that the server reports decide, for each collection and kind of write."""
    asked: set[str] = set()

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        asked.add(next(iter(command)))
        users = [{"user": "me", "db": "admin"}]
        info = {"authenticatedUsers": users, "authenticatedUserPrivileges": privileges}
        results = {"cursor": {"id": 0, "firstBatch": []}, "n": 0, "authInfo": info}
        return {"ismaster": True, **results}

    with serving(answering(answer)) as host:
        results = await told(f"mongodb://{host}/")
    assert results.level == level
    assert text in results.text
    assert ("readWrite on images" in results.remedy) is (level != "ok")
    assert asked == {"isMaster", "count", "listIndexes", "find", "connectionStatus"}


@pytest_twisted.ensureDeferred
async def test_a_server_without_the_command() -> None:
    """Nothing is proven then, which the finding says; all other findings are reported."""

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        if "connectionStatus" in command:
            return {"ok": 0, "code": 59, "errmsg": "no such command"}
        return {"ismaster": True, "cursor": {"id": 0, "firstBatch": []}, "n": 0}

    with serving(answering(answer)) as host:
        results = await told(f"mongodb://{host}/")
    assert (results.level, "is not proven" in results.text) == ("warning", True)


@pytest.mark.parametrize(
    ("role", "level"), [("readWrite", "ok"), ("dbOwner", "ok"), ("read", "warning")]
)
@pytest_twisted.ensureDeferred
async def test_roles(tmp_path: Path, role: str, level: str) -> None:
    """If the server reports no privileges, its built-in roles are enough."""
    options = ("--standalone", "--sync-on-commit")
    server = mongod.Mongod(tmp_path / "mongod", *options, login="me:p%40ss@")
    with server, pymongo.MongoClient[dict[str, Any]]("127.0.0.1", server.port) as client:
        client.admin.command("createUser", "me", pwd="p@ss", roles=[{"role": role, "db": "images"}])
    try:
        server.start("--auth")
        assert (await told(server.uri)).level == level
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("ahead", "level"), [(0, None), (-3, None), (30, "warning"), (-30, "warning")]
)
@pytest_twisted.ensureDeferred
async def test_clocks(ahead: float, level: str | None) -> None:
    """Gateways whose clocks differ requeue each other's work; the server's clock shows it."""

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        server_time = datetime.now(UTC) + timedelta(seconds=ahead)
        return {
            "ismaster": True,
            "cursor": {"id": 0, "firstBatch": []},
            "n": 0,
            "localTime": server_time,
        }

    with serving(answering(answer)) as host, capturedLogs() as log:
        config = load_config({"MongoDBURI": f"mongodb://{host}/", "MongoDB": "images"}).config
        results = {one.name: one for one in await state(config, reactor)}
    told = [text for event in log if "clock" in (text := formatEvent(event))]
    assert (results["clock"].level if "clock" in results else None) == level
    assert len(told) == (level is not None)
    if level is not None:
        word = "behind" if ahead > 0 else "ahead of"
        assert re.search(rf"is (29|30|31) s {word} that of the database", results["clock"].text)
        assert "NTP" in results["clock"].remedy


@pytest_twisted.ensureDeferred
async def test_a_damaged_file(tmp_path: Path) -> None:
    """A file whose pages are zeros is a failure, with its backup as remedy; a sound one is ok."""
    config = load_config({"StateDirectory": str(tmp_path)}).config
    path = state_file(config)
    async with running(path) as store:
        await complete_pull(store, request("x:1"))

    async def finding() -> Finding:
        findings = await state(config, reactor)
        return next(one for one in findings if one.name == "integrity of the state")

    assert (await finding()).level == "ok"
    path.write_bytes(path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096))
    damaged = await finding()
    assert damaged.level == "failure"
    assert "is damaged" in damaged.text
    assert "restore the backup" in damaged.remedy
    assert {file.name for file in path.parent.iterdir()} == {path.name}
