"""The checks behind `shiftergw check`."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pymongo
import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread
from twisted.web.server import Site

from shiftergw.app.checkup import Finding, Level
from tests.app.checkup.findings import Registry, document, findings
from tests.certificates import Authority
from tests.cli.command import shiftergw
from tests.impostors import listening as tls_listening
from tests.mongod import Mongod
from tests.munged import MungeDaemon, clock_off_by
from tests.parts import free_port, need, small_disk
from tests.web.fakes import listening


@pytest_twisted.ensureDeferred
async def test_a_machine_without_problems(tmp_path: Path) -> None:
    """All findings are ok, and nothing is created."""
    need("mksquashfs")
    async with listening(Site(Registry(401))) as registry:  # type: ignore[arg-type]  # any site
        results = await findings(tmp_path, document(tmp_path, registry, free_port()))
    # The finding "user" tells root, the user in a container, that the result is true for root.
    machine_findings = [f for f in results.values() if f.name != "user" and "free" not in f.text]
    grave = [f for f in machine_findings if f.level != "ok"]
    assert grave == []
    assert {"configuration", "mksquashfs", "unsquashfs", "registry reg", "imageDir of s"} < set(
        results
    )
    assert "will be made" in results["StateDirectory"].text
    assert results["scheduled expiry"].text.startswith("on, but without ImageExpirationTimeout")
    assert set(os.listdir(tmp_path)) == {"images"}  # noqa: PTH208


@pytest_twisted.ensureDeferred
async def test_problems_of_a_machine(tmp_path: Path) -> None:
    """Each problem is a failure that says what to do."""
    (tmp_path / "file").write_text("")
    configuration = document(tmp_path, free_port(), free_port()) | {
        "examiner": "/usr/bin/examiner",
        "CacheDirectory": "file",
        "ExpandDirectory": "file/expand",
        "SecretKeyFile": "file/key",
        "StateDirectory": "x" * 300,  # stat fails too, as behind a closed directory
        "Mksquashfs": str(tmp_path / "file"),
        "ImportUsers": "all",
        "ImportCommand": ["/no/such/sudo", "-u", "{user}", "cat", "{path}"],
        "Listen": "tcp:no-number:interface=127.0.0.1",
    }
    configuration["Platforms"]["s"]["local"]["imageDir"] = "y" * 300
    results = await findings(tmp_path, configuration)
    for name in (
        "CacheDirectory",
        "ExpandDirectory",
        "SecretKeyFile",
        "mksquashfs",
        "ImportCommand",
        "imageDir of s",
        "registry reg",
    ):
        assert results[name].level == "failure", results[name]
        assert results[name].remedy
    assert "examiner" in results["configuration"].text
    assert "cannot be made" in results["ExpandDirectory"].text
    assert str(tmp_path / "file") in results["ExpandDirectory"].text
    assert results["Listen tcp:no-number:interface=127.0.0.1"].level == "failure"


def test_a_password_that_every_user_can_read() -> None:
    """The command warns, although all else may be fine."""
    with TemporaryDirectory(dir="/tmp") as name:  # pytest's own directories are closed
        root = Path(name)
        root.chmod(0o755)
        uri = f"mongodb://shifter:secret@127.0.0.1:{free_port()}/?serverSelectionTimeoutMS=10"
        configuration = document(root, free_port(), free_port())
        file = root / "imagemanager.json"
        file.write_text(json.dumps(configuration | {"MongoDBURI": uri, "MongoDB": "Shifter"}))
        file.chmod(0o644)
        result = shiftergw("check", "--config", str(file))
    assert "the password in MongoDBURI" in result.stdout
    assert "secret@" not in result.stdout + result.stderr


@pytest_twisted.ensureDeferred
async def test_a_registry_with_a_wrong_certificate(tmp_path: Path) -> None:
    """The finding names the fault of the certificate, and the remedy."""
    authority = Authority(tmp_path)
    async with tls_listening(authority.server_file(common_name="localhost")) as server:
        configuration = document(tmp_path, server.port, free_port())
        configuration["Locations"]["reg"] |= {
            "url": f"https://localhost:{server.port}",
            "sslcacert": str(authority.pem),
        }
        finding = (await findings(tmp_path, configuration))["registry reg"]
    assert finding.level == "failure"
    assert "names no host" in finding.text
    assert "subjectAltName" in finding.remedy
    assert server.plaintext == b""


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_no_registry(tmp_path: Path) -> None:
    """A registry answers 200 or 401."""
    async with listening(Site(Registry(404))) as port:  # type: ignore[arg-type]  # any site
        results = await findings(tmp_path, document(tmp_path, port, free_port()))
    assert results["registry reg"].level == "failure"
    assert "404" in results["registry reg"].text


@pytest_twisted.ensureDeferred
async def test_two_names_of_one_image_directory(tmp_path: Path) -> None:
    """The start refuses systems that share a directory, so the check reports them."""
    configuration = document(tmp_path, free_port(), free_port())
    (tmp_path / "link").symlink_to("images")
    configuration["Platforms"]["t"] = {"accesstype": "local", "local": {"imageDir": "link"}}
    results = (await findings(tmp_path, configuration))["image directories"]
    assert results.level == "failure"
    assert "the same directory" in results.text


@pytest_twisted.ensureDeferred
async def test_directories_that_cannot_be_created(tmp_path: Path) -> None:
    """A dangling link, a read-only file system, and a full one are named."""
    configuration = document(tmp_path, free_port(), free_port())
    (tmp_path / "cache").symlink_to("gone")
    with (
        small_disk(tmp_path / "state", "size=64k"),
        small_disk(tmp_path / "expand", "size=1m,ro"),
        small_disk(tmp_path / "images", "size=1m,ro"),
    ):
        results = await findings(tmp_path, configuration)
    for name, words in (
        ("CacheDirectory", "cache is a symbolic link that leads nowhere"),
        ("ExpandDirectory", "mounted read-only"),
        ("imageDir of s", "mounted read-only"),
        ("StateDirectory", "free"),
    ):
        assert results[name].level == "failure", results[name]
        assert words in results[name].text
    assert "make room" in results["StateDirectory"].remedy


@pytest_twisted.ensureDeferred
async def test_a_world_writable_image_directory(tmp_path: Path) -> None:
    """A world-writable directory is a warning: other users could put images there."""
    configuration = document(tmp_path, free_port(), free_port())
    (tmp_path / "images").chmod(0o777)
    assert (await findings(tmp_path, configuration))["imageDir of s"].level == "warning"


@pytest_twisted.ensureDeferred
async def test_users(tmp_path: Path) -> None:
    """The check tries each system's munged, lists its users, and looks its admins up."""
    listing = [sys.executable, "-c", "print('alice:x:2001:2100:::\\nusers:x:2100:')"]
    with MungeDaemon() as munged:
        configuration = document(tmp_path, free_port(), free_port()) | {"Authentication": "munge"}
        system = configuration["Platforms"]["s"] | {"mungeSocketPath": str(munged.socket)}
        configuration["Platforms"] = {
            "s": system | {"admins": ["root", 7]},
            "unlisted": system | {"admins": ["no-such-user", "root"]},
            "listed": system | {"groupsCommand": listing, "admins": ["alice", "root"]},
            "away": system | {"mungeSocketPath": "nowhere"},
            "broken": system | {"groupsCommand": ["false"], "admins": ["root"]},
        }
        with MungeDaemon(env=clock_off_by("-1h")) as slow, MungeDaemon() as dead_munged:
            dead_munged.stop(signal.SIGKILL)
            slow_socket, dead_socket = (
                {"mungeSocketPath": str(slow.socket)},
                {"mungeSocketPath": str(dead_munged.socket)},
            )
            configuration["Platforms"] |= {
                "late": system | slow_socket,
                "gone": system | dead_socket,
            }
            results = await findings(tmp_path, configuration)
    assert results["munge of late"].level == "failure"
    assert re.search(
        r"its clock is 3,[56]\d\d s behind this machine's", results["munge of late"].text
    )
    assert "NTP" in results["munge of late"].remedy
    assert "no munged listens at this socket any more" in results["munge of gone"].text
    assert "there is no such socket" in results["munge of away"].text
    assert results["munge of s"] == Finding("munge of s", Level.OK, f"{munged.socket} answers")
    assert results["munge of away"].level == "failure"
    assert "mungeSocketPath" in results["munge of away"].remedy
    assert results["users of listed"].text == "1 users, 1 groups"
    assert results["users of broken"].level == "failure"
    assert "groupsCommand" in results["users of broken"].remedy
    assert results["admins of s"].text == "root, 7"
    assert "no-such-user: no such user" in results["admins of unlisted"].text
    assert "root: no such user" in results["admins of listed"].text
    assert "admins of broken" not in results
    assert {results[f"admins of {name}"].level for name in ("listed", "unlisted")} == {"warning"}


@pytest_twisted.ensureDeferred
async def test_a_mongodb_server(tmp_path: Path) -> None:
    """The check logs in and creates nothing; findings contain no password."""
    configuration = document(tmp_path, free_port(), free_port()) | {"MongoDB": "images"}
    with Mongod(tmp_path / "mongod", "--standalone") as server:
        results = (await findings(tmp_path, configuration | {"MongoDBURI": server.uri}))["MongoDB"]
        assert (results.level, results.remedy) == ("ok", "")
        assert results.text == "database images: 0 records, 21 indexes to be made"
        free = (await findings(tmp_path, configuration | {"MongoDBURI": server.uri}))[
            "rights in MongoDB"
        ]
        assert (free.level, "no login is required" in free.text) == ("ok", True)
        with pymongo.MongoClient[dict[str, Any]](server.uri) as client:
            assert "images" not in client.list_database_names()
            client["images"]["images"].insert_one({"system": "s", "status": "READY"})
            await _check_expiry_finding(configuration | {"MongoDBURI": server.uri}, tmp_path)
            assert "shiftergw.state" not in client["images"].list_collection_names()
        stranger = server.uri.replace("127.", "stranger:p%40ss@127.")
        refusal = (await findings(tmp_path, configuration | {"MongoDBURI": stranger}))["MongoDB"]
    unreachable = (await findings(tmp_path, configuration | {"MongoDBURI": server.uri}))["MongoDB"]
    uri_without_ca = "mongodb://me:p%40ss@localhost/?tls=true&tlsCAFile=/nowhere/ca.pem"
    wrong = (await findings(tmp_path, configuration | {"MongoDBURI": uri_without_ca}))["MongoDB"]
    assert "let the gateway do" in refusal.text
    assert "does not answer" not in refusal.text
    assert refusal.remedy.startswith("Correct user, password and authSource in MongoDBURI")
    for results, words in (
        (refusal, "login is refused"),
        (unreachable, "efused"),
        (wrong, "No such file"),
    ):
        assert results.level == "failure"
        assert words in results.text
        assert "MongoDBURI" in results.remedy
        assert "p%40ss" not in results.text
        assert "p@ss" not in results.text


async def _check_expiry_finding(configuration: dict[str, Any], root: Path) -> None:
    """Check the finding about expiry in a database that another program has filled."""
    for expected, level, words in (
        (None, "warning", "off: another program has filled the database"),
        (True, "ok", "count from the gateway's start"),
        (False, "ok", "off: ScheduledExpiry is false"),
    ):
        results = (await findings(root, configuration | {"ScheduledExpiry": expected}))[
            "scheduled expiry"
        ]
        assert (results.level, words in results.text) == (level, True)
        assert ("ScheduledExpiry" in results.remedy) is (expected is None)


@pytest.mark.parametrize("fit", [True, False])
@pytest_twisted.ensureDeferred
async def test_the_command(tmp_path: Path, fit: bool) -> None:
    """The command prints findings and remedies; exit code 0, or 1 with a failure.

    `--json` prints the same.
    """
    need("mksquashfs")
    async with listening(Site(Registry())) as registry:  # type: ignore[arg-type]  # any site
        configuration = document(tmp_path, registry, free_port()) | {"Listn": "x"}
        if not fit:
            (tmp_path / "images").rmdir()
        config = tmp_path / "imagemanager.json"
        config.write_text(json.dumps(configuration))
        result = await deferToThread(shiftergw, "check", "--config", str(config))
        of_json = await deferToThread(shiftergw, "check", "--json", "--config", str(config))
    assert (result.returncode, of_json.returncode) == ((0, 0) if fit else (1, 1)), result.stdout
    rows = {row["subject"]: row for row in json.loads(of_json.stdout)}
    assert all(list(row) == ["level", "subject", "what", "remedy"] for row in rows.values())
    directory = rows["imageDir of s"]
    assert (directory["level"] == "failure", "Make it" in directory["remedy"]) == (not fit, not fit)
    lines = result.stdout.splitlines()
    assert any(line.startswith("warning") and "Listn" in line for line in lines)
    assert any("→ Make it" in line for line in lines) is not fit


@pytest.mark.parametrize("command", ["check", "migrate"])
def test_the_configuration_of_the_environment(command: str) -> None:
    """Without `--config` the command checks the gateway's own configuration."""
    env = {"PATH": os.environ["PATH"], "GWCONFIG": "/nonexistent.json"}
    result = shiftergw(command, env=env)
    assert (result.returncode, "/nonexistent.json" in result.stderr) == (2, True)
    result = shiftergw(command, env={"PATH": os.environ["PATH"]})
    assert (result.returncode, "GWCONFIG" in result.stderr) == (2, True)


def test_a_configuration_that_cannot_be_read() -> None:
    """Without a configuration there is nothing to check: exit code 2."""
    result = shiftergw("check", "--config", "/nonexistent.json")
    assert (result.returncode, result.stdout) == (2, "")
    assert "cannot be read" in result.stderr
    result = shiftergw("check", "--json", "--config", "/nonexistent.json")
    (row,) = json.loads(result.stdout)
    assert (result.returncode, row["level"], row["subject"]) == (2, "failure", "configuration")
    assert "/nonexistent.json" in row["what"]
