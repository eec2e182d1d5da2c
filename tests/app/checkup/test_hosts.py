"""The findings of `shiftergw check` about the verification of deliveries to remote systems."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.app.checkup.finding import Finding, Level
from shiftergw.app.checkup.hosts import remote_directory
from shiftergw.config import Config
from shiftergw.delivery.remote import RemoteDirectory
from tests.delivery.far import sftp_server
from tests.delivery.login_shells import server_with_shell
from tests.installed_reactor import reactor
from tests.sshd import Sshd


async def findings(sshd: Sshd, root: Path, **options: Any) -> dict[str, Finding]:
    """Return the findings about a system that is this server, by name."""
    images = root / "images"
    images.mkdir(exist_ok=True)
    ssh = {
        "username": sshd.user,
        "imageDir": str(images),
        "key": str(sshd.key),
        "port": sshd.port,
        "knownHosts": str(sshd.known_hosts),
        **options,
    }
    document = {
        "Locations": {"reg": {"remotetype": "dockerv2", "url": "http://127.0.0.1:1"}},
        "DefaultImageLocation": "reg",
        "Authentication": "mock",
        "Platforms": {"s": {"accesstype": "remote", "host": ["127.0.0.1"], "ssh": ssh}},
        "CacheDirectory": "cache",
        "ExpandDirectory": "expand",
    }
    config = Config.from_document(document, base=root, environ={}).config
    system = config.systems["s"]
    assert system.ssh_delivery is not None
    results = await remote_directory(system, system.ssh_delivery, reactor)
    assert list(images.iterdir()) == []
    return {finding.name: finding for finding in results}


@pytest.mark.parametrize("transport", ["conch", "openssh"])
@pytest_twisted.ensureDeferred
async def test_account_without_commands(tmp_path: Path, transport: str) -> None:
    """Deliveries that are verified by samples only are a warning, with the reason."""
    with Sshd("ForceCommand internal-sftp") as sshd:
        results = await findings(sshd, tmp_path, transport=transport)
    assert results["imageDir of s"].level != Level.FAILURE
    weaker = results["deliveries to s"]
    assert weaker.level == Level.WARNING
    assert "samples only: the account runs no commands" in weaker.text
    assert "sha256sum" in weaker.remedy


@pytest.mark.parametrize("transfer", ["sftp", "scp"])
@pytest_twisted.ensureDeferred
async def test_account_that_greets(tmp_path: Path, transfer: str) -> None:
    """A greeting causes no warning; samples that the configuration asks for are reported."""
    with server_with_shell(tmp_path / "home", "bash", ".bashrc", "echo Welcome") as sshd:
        results = await findings(sshd, tmp_path, transfer=transfer)
        assert list(results) == ["imageDir of s"]
        sample_results = await findings(sshd, tmp_path, transfer=transfer, verify="sample")
    assert '"verify" is "sample"' in sample_results["deliveries to s"].text
    assert sample_results["deliveries to s"].level == Level.OK


@pytest_twisted.ensureDeferred
async def test_an_old_server(tmp_path: Path) -> None:
    """Missing features of the SFTP server that make deliveries less safe are a warning."""
    server = f"Subsystem sftp {sftp_server()} -P fsync"
    with Sshd(server) as sshd:
        results = await findings(sshd, tmp_path)
    assert results["deliveries to s"].level == Level.WARNING
    assert "no fsync" in results["deliveries to s"].text


@pytest_twisted.ensureDeferred
async def test_connections_that_do_not_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The findings are reported, and no thread is left, if a connection cannot be closed."""
    close = RemoteDirectory.close

    async def close_badly(directory: RemoteDirectory) -> None:
        await close(directory)
        raise OSError("no")

    monkeypatch.setattr(RemoteDirectory, "close", close_badly)
    with Sshd() as sshd:
        results = await findings(sshd, tmp_path)
    assert list(results) == ["imageDir of s"]
    assert [thread for thread in threading.enumerate() if "-check-" in thread.name] == []
