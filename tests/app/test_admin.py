"""The admin listener listens where the configuration says, with a group or with TLS and a token."""

from __future__ import annotations

import grp
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from shiftergw.app.admin import AdminListener, group_id, read_token
from shiftergw.config import Config
from shiftergw.errors import ConfigurationError
from shiftergw.plumbing.services import run_services
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.tls_context import blocking_context
from shiftergw.plumbing.unix_listening import has_listener
from shiftergw.service.gateway import Gateway
from shiftergw.web.admin import AdminApplication, health_pages
from tests.app.checkup.findings import document, findings
from tests.certificates import Authority
from tests.installed_reactor import reactor
from tests.parts import free_port
from tests.web.fakes import FakeGateway

TOKEN = "0123456789abcdefghij"


@asynccontextmanager
async def running(root: Path, changes: Mapping[str, Any]) -> AsyncIterator[Config]:
    """Run an admin listener; yield its configuration."""
    text = {**document(root, 1, 1), **changes}
    config = Config.from_document(text, base=root, environ={}).config
    application = AdminApplication(health_pages(cast("Gateway", FakeGateway())), reactor)
    threads = Threads(reactor, 1, "test")
    async with run_services([threads, AdminListener(config, application, threads, reactor)]):
        yield config


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Return the lines that are logged during the test."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


async def check(root: Path, changes: Mapping[str, Any]) -> tuple[str, str]:
    """Return the level and the text of the finding of `shiftergw check`."""
    text = {**document(root, 1, free_port()), "Mksquashfs": "true", **changes}
    finding = (await findings(root, text))["AdminListen"]
    assert finding.level == "ok" or finding.remedy
    return finding.level, finding.text


@pytest_twisted.ensureDeferred
async def test_a_socket(tmp_path: Path) -> None:
    """A path is a socket for the gateway's user and the group, and the check sees that it lives."""
    group = grp.getgrgid(os.getegid()).gr_name
    changes = {"AdminListen": "./admin.sock", "AdminGroup": group}
    path = tmp_path / "admin.sock"
    assert await check(tmp_path, changes) == ("ok", str(path))
    async with running(tmp_path, changes):
        assert has_listener(path)
        assert path.stat().st_gid == os.getegid()
        assert await check(tmp_path, changes) == ("ok", f"{path}: a gateway answers there")
    assert not path.exists()
    assert await check(tmp_path, {"AdminListen": "none"}) == ("ok", "none")


@pytest_twisted.ensureDeferred
async def test_the_default_refuses_no_start(tmp_path: Path, log: list[str]) -> None:
    """If a socket that nobody has asked for is impossible, the log has a warning."""
    (tmp_path / "state").mkdir()
    async with running(tmp_path, {}):
        async with running(tmp_path, {}):  # a second gateway with this StateDirectory
            assert has_listener(tmp_path / "state" / "admin.sock")
        assert has_listener(tmp_path / "state" / "admin.sock")
    async with running(tmp_path, {"StateDirectory": "x" * 100}):
        pass
    async with running(tmp_path, {"StateDirectory": "nosuch"}):
        pass
    warnings = [line for line in log if "works without its admin listener" in line]
    for warning, words in zip(
        warnings, ("another process", "at most 107 bytes", "No such file"), strict=True
    ):
        assert words in warning
    with pytest.raises(ConfigurationError, match="another process"):
        async with running(tmp_path, {}), running(tmp_path, {"AdminListen": "state/admin.sock"}):
            pass


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"AdminListen": "./file"}, "failure", "file is not a socket"),
        ({"AdminListen": "./nosuch/socket"}, "failure", "no such directory"),
        ({"AdminListen": "/proc/socket"}, "failure", "you may not write to it"),
        ({"AdminListen": "/" + "x" * 107}, "failure", "at most 107 bytes"),
        ({"StateDirectory": "x" * 100}, "warning", "at most 107 bytes"),
        ({"AdminGroup": "no such group"}, "warning", "no group no such group"),
        ({"AdminGroup": str(os.getegid())}, "warning", "AdminGroup has no effect"),
        ({"AdminGroup": "54321"}, "warning", "AdminGroup: you are not in the group 54321"),
        ({}, "ok", "state/admin.sock"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_check_of_a_socket(
    tmp_path: Path,
    changes: dict[str, Any],
    level: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each obstacle is found before the start; the default has none."""
    (tmp_path / "file").write_text("")
    if changes.get("AdminGroup") == "54321":
        monkeypatch.setattr(os, "geteuid", lambda: 1)
    if changes.get("AdminListen") == "/proc/socket":
        monkeypatch.setattr(os, "access", lambda path, _: str(path) != "/proc")
    result = await check(tmp_path, changes)
    assert result[0] == level
    assert words in result[1]


def talk(port: int, authority: Path, header: str) -> str:
    """Return the status line of an answer over TLS."""
    context = blocking_context(authority)
    with (
        socket.create_connection(("127.0.0.1", port), 30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(f"GET /livez HTTP/1.1\r\nHost: h\r\n{header}\r\n\r\n".encode())
        return connection.recv(65536).decode().splitlines()[0]


@pytest_twisted.ensureDeferred
async def test_a_port(tmp_path: Path) -> None:
    """A port speaks TLS alone, and answers those who have the token."""
    authority = Authority(tmp_path)
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    port = free_port()
    changes = {
        "AdminListen": f"127.0.0.1:{port}",
        "AdminTokenFile": "token",
        "AdminCertificate": str(authority.file("127.0.0.1")),
    }
    assert await check(tmp_path, changes) == ("ok", f"127.0.0.1:{port} is free")
    async with running(tmp_path, changes):
        for header, status in ((f"Authorization: Bearer {TOKEN}", "200 OK"), ("X: y", "401 Un")):
            line = await deferToThread(talk, port, authority.pem, header)
            assert line.startswith(f"HTTP/1.1 {status}")
        level, text = await check(tmp_path, changes)
        assert level == "warning"
        assert "Address already in use" in text
        with pytest.raises(ConfigurationError, match=r"AdminListen: .*in use") as caught:
            async with running(tmp_path, changes):
                pass
        assert "change AdminListen" in str(caught.value)
    (tmp_path / "token").chmod(0o640)
    assert await check(tmp_path, changes) == (
        "failure",
        f"AdminTokenFile: {tmp_path}/token can be read by others.",
    )
    (tmp_path / "token").chmod(0o600)
    level, text = await check(tmp_path, {**changes, "AdminKey": "nosuch.key"})
    assert level == "failure"
    assert "nosuch.key: No such file" in text


@pytest.mark.parametrize("content", ["", "short", TOKEN[:19], "a token with many blanks", "ü" * 30])
def test_tokens_that_could_be_guessed(tmp_path: Path, content: str) -> None:
    """A short token, or characters that a header cannot have, are refused."""
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="at least 20 printable characters") as caught:
        read_token(path)
    assert "openssl rand" in str(caught.value)
    assert not content or content not in str(caught.value)


def test_a_token_that_is_absent(tmp_path: Path) -> None:
    """The error says how to make the file."""
    with pytest.raises(ConfigurationError, match="No such file or directory") as caught:
        read_token(tmp_path / "token")
    assert "openssl rand" in str(caught.value)


def test_groups() -> None:
    """A group has a name or a number."""
    assert group_id("54321") == 54321
    assert group_id("root") == 0
    with pytest.raises(ConfigurationError, match="this machine has no group"):
        group_id("no such group")
