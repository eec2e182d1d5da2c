"""Tests of the checks of files that hold secrets, and of the user that runs the check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from shiftergw.app.checkup.finding import Finding
from shiftergw.app.checkup.secrets import passwords_in, secrets
from shiftergw.config import Config
from tests.configurations import SMALLEST, load_config
from tests.parts import need_root

MONGO = {"MongoDBURI": "mongodb://shifter:secret@db.example.com/", "MongoDB": "Shifter"}
NOBODY_UID = 65534


def findings(root: Path, **changes: Any) -> dict[str, Finding]:
    """Return the findings about a configuration in `root`, by name."""
    file = root / "imagemanager.json"
    file.write_text(json.dumps(SMALLEST | {"StateDirectory": str(root / "state")} | changes))
    return {finding.name: finding for finding in secrets(Config.load(file, {}))}


def test_a_password_that_every_user_can_read(tmp_path: Path) -> None:
    """A configuration with a password that every user can read is a warning."""
    with TemporaryDirectory(dir="/tmp") as name:  # pytest's own directories are closed
        root = Path(name)
        root.chmod(0o755)
        findings(root, **MONGO)
        file = root / "imagemanager.json"
        file.chmod(0o644)
        results = findings(root, **MONGO)["configuration file"]
        assert (results.level, "password in MongoDBURI" in results.text) == ("warning", True)
        assert f"chmod 640 {file}" in results.remedy
        assert "secret" not in results.text + results.remedy
        assert "configuration file" not in findings(root)
        file.chmod(0o640)
        assert "configuration file" not in findings(root, **MONGO)
        file.chmod(0o644)
        root.chmod(0o750)
        assert "configuration file" not in findings(root, **MONGO), "its directory is closed"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("mongodb://db/", []),
        ("db", []),
        ("mongodb://user@db/", []),
        ("mongodb://user:p%40ss@db/", ["MongoDBURI"]),
        ("user:pass@db", ["MongoDBURI"]),
    ],
)
def test_passwords_in_urls(uri: str, expected: list[str]) -> None:
    """A password is found wherever a URL may contain one."""
    assert passwords_in(load_config({"MongoDBURI": uri, "MongoDB": "m"}).config) == expected


def test_a_secret_key_that_cannot_be_created(tmp_path: Path) -> None:
    """The check fails where the start would, and says how to create the key."""
    assert findings(tmp_path)["SecretKeyFile"].level == "ok"
    closed = findings(tmp_path, SecretKeyFile=str(tmp_path / "etc" / "secret.key"))["SecretKeyFile"]
    assert (closed.level, "cannot be made" in closed.text) == ("failure", True)
    assert f"install -m 0600 -o USER /dev/stdin {tmp_path}/etc/secret.key" in closed.remedy
    (tmp_path / "open.key").write_text("")
    (tmp_path / "open.key").chmod(0o644)
    read = findings(tmp_path, SecretKeyFile=str(tmp_path / "open.key"))["SecretKeyFile"]
    assert (read.level, "can be read by others" in read.text) == ("failure", True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imagemanager.json", "open.key"]


def test_root_checks_for_another_user(tmp_path: Path) -> None:
    """A finding tells root that the result is not that of the service's user."""
    need_root()
    assert "sudo -H -u USER shiftergw check" in findings(tmp_path)["user"].remedy
    (tmp_path / "state").mkdir()
    assert "user" not in findings(tmp_path)
    os.chown(tmp_path / "state", NOBODY_UID, -1)
    results = findings(tmp_path)["user"]
    assert (results.level, "StateDirectory belongs to nobody" in results.text) == ("warning", True)
    assert results.remedy.endswith(
        f"sudo -H -u nobody shiftergw check --config {tmp_path}/imagemanager.json"
    )
    os.chown(tmp_path / "state", 4_000_000_000, -1)
    assert "#4000000000" in findings(tmp_path)["user"].remedy


_AS_NOBODY = """
import os, sys
from pathlib import Path
from shiftergw.app.checkup.secrets import secrets
from shiftergw.config import Config
loaded_config = Config.load(Path(sys.argv[1]), {})
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for finding in secrets(loaded_config):
    print(finding.level, finding.name, finding.text)
"""


def test_the_gateways_user_creates_nothing_beside_its_configuration() -> None:
    """As the gateway's user, the check fails for a key in a directory of root."""
    need_root()
    with TemporaryDirectory(dir="/tmp") as name:
        root = Path(name)
        root.chmod(0o755)
        file = root / "imagemanager.json"
        file.write_text(json.dumps(SMALLEST | {"SecretKeyFile": f"{root}/secret.key"}))
        argv = [sys.executable, "-c", _AS_NOBODY, str(file)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"failure SecretKeyFile The secret key {root}/secret.key is absent")
    assert line.endswith("Permission denied.")
