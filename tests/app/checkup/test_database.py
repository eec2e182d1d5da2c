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


async def rights_finding(uri: str) -> Finding:
    """Return the finding about the rights of a URI's user in the database `images`."""
    config = load_config({"MongoDBURI": uri, "MongoDB": "images"}).config
    (results,) = [
        finding for finding in await state(config, reactor) if finding.name == "rights in MongoDB"
    ]
    return results


def privilege(actions: list[str], db: str = "images", collection: str = "") -> dict[str, Any]:
    """Return a privilege in the form of a server's reply."""
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
        (
            [privilege([action for action in WRITES if action != "createIndex"])],
            "failure",
            "createIndex in",
        ),
        ([{"resource": {"cluster": True}, "actions": WRITES}], "failure", "and 54 more"),
        ([], "warning", "whether me@admin may write is not proven"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_privileges(privileges: list[Any], level: str, text: str) -> None:
    """The privileges that the server reports decide, for each collection and kind of write."""
    commands: set[str] = set()

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        commands.add(next(iter(command)))
        users = [{"user": "me", "db": "admin"}]
        info = {"authenticatedUsers": users, "authenticatedUserPrivileges": privileges}
        results = {"cursor": {"id": 0, "firstBatch": []}, "n": 0, "authInfo": info}
        return {"ismaster": True, **results}

    with serving(answering(answer)) as host:
        results = await rights_finding(f"mongodb://{host}/")
    assert results.level == level
    assert text in results.text
    assert ("readWrite on images" in results.remedy) is (level != "ok")
    assert commands == {"isMaster", "count", "listIndexes", "find", "connectionStatus"}


@pytest_twisted.ensureDeferred
async def test_a_server_without_the_command() -> None:
    """The finding says that the rights are not proven; all other findings are reported."""

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        if "connectionStatus" in command:
            return {"ok": 0, "code": 59, "errmsg": "no such command"}
        return {"ismaster": True, "cursor": {"id": 0, "firstBatch": []}, "n": 0}

    with serving(answering(answer)) as host:
        results = await rights_finding(f"mongodb://{host}/")
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
        assert (await rights_finding(server.uri)).level == level
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("skew", "level"), [(0, None), (-3, None), (30, "warning"), (-30, "warning")]
)
@pytest_twisted.ensureDeferred
async def test_clocks(skew: float, level: str | None) -> None:
    """Gateways whose clocks differ requeue each other's work; the server's clock shows it."""

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        server_time = datetime.now(UTC) + timedelta(seconds=skew)
        return {
            "ismaster": True,
            "cursor": {"id": 0, "firstBatch": []},
            "n": 0,
            "localTime": server_time,
        }

    with serving(answering(answer)) as host, capturedLogs() as log:
        config = load_config({"MongoDBURI": f"mongodb://{host}/", "MongoDB": "images"}).config
        results = {finding.name: finding for finding in await state(config, reactor)}
    clock_lines = [text for event in log if "clock" in (text := formatEvent(event))]
    assert (results["clock"].level if "clock" in results else None) == level
    assert len(clock_lines) == (level is not None)
    if level is not None:
        word = "behind" if skew > 0 else "ahead of"
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
        return next(result for result in findings if result.name == "integrity of the state")

    assert (await finding()).level == "ok"
    path.write_bytes(path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096))
    damage = await finding()
    assert damage.level == "failure"
    assert "is damaged" in damage.text
    assert "restore the backup" in damage.remedy
    assert {file.name for file in path.parent.iterdir()} == {path.name}
