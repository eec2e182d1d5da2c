"""A UNIX socket belongs to the living process that listens at it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.protocol import Factory, Protocol

from shiftergw.errors import ConfigurationError
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.unix_listening import UnixListener, has_listener
from tests.installed_reactor import reactor


def listener_at(threads: Threads, path: Path, group: int | None = None) -> UnixListener:
    """Return a listener that has not started."""
    return UnixListener("AdminListen", path, group, Factory.forProtocol(Protocol), threads, reactor)


def names_in(directory: Path) -> list[str]:
    """Return the names of the files in a directory."""
    return [path.name for path in directory.iterdir()]


@pytest_twisted.ensureDeferred
async def test_owner_and_group_may_connect(tmp_path: Path, threads: Threads) -> None:
    """The socket has mode 0660 and the group; it is removed at the stop, and so is its lock."""
    path = tmp_path / "admin.sock"
    old_umask = os.umask(0)
    try:
        listener = listener_at(threads, path, os.getegid())
        await listener.startService()
        assert (path.stat().st_mode & 0o777, path.stat().st_gid) == (0o660, os.getegid())
        assert has_listener(path)
        await listener.stopService()
        assert names_in(tmp_path) == []
        assert not has_listener(path)
    finally:
        os.umask(old_umask)


@pytest_twisted.ensureDeferred
async def test_the_socket_of_a_dead_process_is_replaced(tmp_path: Path, threads: Threads) -> None:
    """A socket at which nobody listens any more does not prevent a start."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = listener_at(threads, path)
    await listener.startService()
    assert has_listener(path)
    path.unlink()  # by somebody who cleans up: the stop does not mind
    await listener.stopService()


@pytest_twisted.ensureDeferred
async def test_the_socket_of_a_living_process_stays(tmp_path: Path, threads: Threads) -> None:
    """A start beside a living gateway is refused, and takes nothing from it."""
    path = tmp_path / "admin.sock"
    listener = listener_at(threads, path)
    await listener.startService()
    try:
        with pytest.raises(ConfigurationError, match="another process listens at"):
            await listener_at(threads, path).startService()
        assert has_listener(path)
    finally:
        await listener.stopService()


@pytest_twisted.ensureDeferred
async def test_the_socket_of_another_program_stays(tmp_path: Path, threads: Threads) -> None:
    """A program that listens without our lock keeps its socket, even if its backlog is full."""
    path = tmp_path / "munge.socket"
    with socket.socket(socket.AF_UNIX) as program:
        program.bind(str(path))
        program.listen(0)
        for _ in range(2):  # the first one fills the backlog
            with pytest.raises(ConfigurationError, match="another process listens at"):
                await listener_at(threads, path).startService()
        assert names_in(tmp_path) == ["munge.socket"]


@pytest_twisted.ensureDeferred
async def test_other_files_stay(tmp_path: Path, threads: Threads) -> None:
    """A path that is a file, lies nowhere, or is too long is refused; files are not changed."""
    path = tmp_path / "notes"
    path.write_text("important")
    with pytest.raises(ConfigurationError, match="is not a socket"):
        await listener_at(threads, path).startService()
    assert path.read_text() == "important"
    with pytest.raises(ConfigurationError, match="No such file or directory"):
        await listener_at(threads, tmp_path / "absent" / "admin.sock").startService()
    with pytest.raises(ConfigurationError, match="at most 107 bytes"):
        await listener_at(threads, tmp_path / ("x" * 108)).startService()


@pytest_twisted.ensureDeferred
async def test_a_socket_that_cannot_be_opened_to_its_group(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the group cannot be set, there is no socket, and the next start is not impeded."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "chown", refuse)
        with pytest.raises(ConfigurationError, match="Operation not permitted"):
            await listener_at(threads, tmp_path / "admin.sock", 1).startService()
    assert names_in(tmp_path) == []
    listener = listener_at(threads, tmp_path / "admin.sock")
    await listener.startService()
    await listener.stopService()
