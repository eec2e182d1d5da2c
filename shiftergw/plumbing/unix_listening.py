"""Listen at a UNIX socket that belongs to this process alone, and replace that of a dead process.

Twisted's own lock of such a socket has the id of a process, which another process may have after a
restart of the machine. Here the kernel releases the lock when the process ends.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from shiftergw.errors import ConfigurationError
from shiftergw.plumbing.locks import try_lock, unlock
from shiftergw.plumbing.reactor import with_unix_sockets

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads

LONGEST_PATH = 107
"""Bytes of the path of a UNIX socket on Linux (unix(7))."""

MODE = 0o660

BACKLOG = 50


class UnixListener(Service):
    """Listens at a UNIX socket from its start to its stop; owner and group may connect."""

    def __init__(
        self,
        key: str,
        path: Path,
        group: int | None,
        factory: Factory[Any],
        threads: Threads,
        reactor: Reactor,
    ) -> None:
        """Listen at `path`, which the configuration has under `key`.

        `group` is the id of the group that may connect, or None for that of the process. Files are
        changed in `threads`.
        """
        self._key = key
        self._path = path
        self._lock_path = path.with_name(f"{path.name}.lock")
        self._group = group
        self._factory = factory
        self._threads = threads
        self._reactor = reactor
        self._lock: int | None = None
        self._port: Any = None

    def startService(self) -> Deferred[None]:
        """Start to listen; the result fails with `ConfigurationError` if that is impossible."""
        super().startService()
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        try:
            self._lock = await self._threads.run(self._take)
            self._listen()
            await self._threads.run(self._open_to_group)
        except (OSError, CannotListenError) as error:
            await self._close()
            cause = error.socketError if isinstance(error, CannotListenError) else error
            raise ConfigurationError(
                f"{self._key}: {self._path} cannot be used: {cause.strerror}.",
                remedy="The gateway's user must be able to make the socket, and a file beside it.",
            ) from error

    def stopService(self) -> Deferred[None]:
        """Stop listening, and remove the socket; the result fires when that is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        port, self._port = self._port, None
        lock, self._lock = self._lock, None
        try:
            if port is not None:
                # Twisted removes the socket's file, and never ends if the file is gone already.
                await self._threads.run(self._path.touch, MODE)
                await maybeDeferred(port.stopListening)
        finally:
            await self._threads.run(unlock, self._lock_path, lock)

    def _take(self) -> int:
        """Lock the socket's path, remove what a dead process left there, and return the lock."""
        check_path(self._key, self._path)
        lock = try_lock(self._lock_path)
        if lock is None:
            raise self._conflict_error()
        try:
            self._remove_old_socket()
        except BaseException:
            unlock(self._lock_path, lock)
            raise
        return lock

    def _remove_old_socket(self) -> None:
        """Remove the socket of a dead process; raise `ConfigurationError` for anything else."""
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ConfigurationError(
                f"{self._key}: {self._path} is not a socket.",
                remedy="Remove it, or name another path.",
            )
        if has_listener(self._path):
            raise self._conflict_error()
        self._path.unlink()

    def _listen(self) -> None:
        # Nobody can connect before Twisted has set this mode.
        self._port = with_unix_sockets(self._reactor).listenUNIX(
            str(self._path), self._factory, BACKLOG, mode=0o600, wantPID=False
        )

    def _open_to_group(self) -> None:
        if self._group is not None:
            os.chown(self._path, -1, self._group)
        self._path.chmod(MODE)

    def _conflict_error(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self._key}: another process listens at {self._path}.",
            remedy=f"End it, or change {self._key}.",
        )


def check_path(key: str, path: Path) -> None:
    """Raise `ConfigurationError` if the path of a socket, under `key`, is too long."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ConfigurationError(
            f"{key}: the path of a socket has at most {LONGEST_PATH} bytes: {path}.",
            remedy=f'Set {key} to a shorter path, such as /run/shiftergw/admin.sock, or to "none".',
        )


def has_listener(path: Path) -> bool:
    """Return whether a process listens at a UNIX socket; without waiting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except BlockingIOError:
            return True  # its backlog is full
        except OSError:
            return False
    return True
