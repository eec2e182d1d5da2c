"""The admin listener: where it listens by the configuration, and what it needs for that."""

from __future__ import annotations

import grp
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from shiftergw.config import Config
from shiftergw.errors import ConfigurationError, printable
from shiftergw.plumbing.files import read_whole
from shiftergw.plumbing.listening import Listener, remedy
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.unix_listening import UnixListener
from shiftergw.web.admin import AdminApplication, make_admin_site

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

KEY = "AdminListen"

_log = Logger()

LEAST_TOKEN = 20
"""Characters of the shortest token; 20 random letters and digits cannot be guessed."""

_MOST_TOKEN = 4096


class AdminListener(Service):
    """Listens for admins where `AdminListen` says, from its start to its stop."""

    def __init__(
        self, config: Config, application: AdminApplication, threads: Threads, reactor: Reactor
    ) -> None:
        """Answer by `application`; read files, and the database of groups, in `threads`."""
        self._config = config
        self._application = application
        self._threads = threads
        self._reactor = reactor
        self._listener: Service | None = None

    def startService(self) -> Deferred[None]:
        """Start to listen; the result fails with `ConfigurationError`.

        A socket that the configuration does not name may be impossible: the log has a warning.
        """
        super().startService()
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        config, address = self._config, self._config.admin_listen
        site = make_admin_site(self._application, self._reactor)
        if address.path is not None:
            group = None
            if config.admin_group is not None:
                group = await self._threads.run(group_id, config.admin_group)
            socket = UnixListener(KEY, address.path, group, site, self._threads, self._reactor)
            try:
                await socket.startService()
            except ConfigurationError as error:
                if not address.is_default:
                    raise
                _log.warn("the gateway works without its admin listener: {error}", error=error)
            else:
                self._listener = socket
            return
        assert config.admin_token_file is not None  # a port without it does not load
        self._application.token = await self._threads.run(read_token, config.admin_token_file)
        # The text of the endpoint is parsed in a thread because that reads the certificate.
        listener = await self._threads.run(Listener, tls_endpoint(config), site, self._reactor, KEY)
        try:
            await listener.startService()
        except CannotListenError as error:
            cause = f"{KEY}: {printable(str(error).rstrip('.'))}."
            raise ConfigurationError(cause, remedy=remedy(error, KEY)) from error
        self._listener = listener

    def stopService(self) -> Deferred[None]:
        """Stop listening; the result fires when that is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            await maybeDeferred(listener.stopService)


def tls_endpoint(config: Config) -> str:
    """Return the text of Twisted's endpoint for a `HOST:PORT` in `AdminListen`."""
    address, certificate = config.admin_listen, config.admin_certificate
    assert certificate is not None  # a port without it does not load
    interface, certificate_file, key_file = (
        quoteStringArgument(text)
        for text in (
            address.host.strip("[]"),
            str(certificate),
            str(config.admin_key or certificate),
        )
    )
    return (
        f"ssl:{address.port}:interface={interface}:certKey={certificate_file}:privateKey={key_file}"
    )


def group_id(name: str) -> int:
    """Return the id of a group of this machine, by its name or number. Blocks.

    Raises `ConfigurationError` if the machine does not know the group.
    """
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigurationError(
            f"AdminGroup: this machine has no group {printable(name, 60)}.",
            remedy="Make the group, or name another one.",
        ) from None


def read_token(path: Path) -> bytes:
    """Return the token that requests at the admin listener must have. Blocks.

    Raises `ConfigurationError` for a file that other users can read, or a token that is too short.
    """
    try:
        content, state = read_whole(path, _MOST_TOKEN)
    except OSError as error:
        raise ConfigurationError(
            f"AdminTokenFile: {path} cannot be read: {error.strerror}.",
            remedy=f"Make it for the gateway's user alone: {_recipe(path)}",
        ) from error
    if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(
            f"AdminTokenFile: {path} can be read by others.", remedy=f"chmod 600 {path}"
        )
    token = content.strip()
    if len(token) < LEAST_TOKEN or not all(0x21 <= byte <= 0x7E for byte in token):  # noqa: PLR2004 - printable ASCII
        raise ConfigurationError(
            f"AdminTokenFile: {path} must have at least {LEAST_TOKEN} printable characters of"
            " ASCII, without blanks.",
            remedy=_recipe(path),
        )
    return token


def _recipe(path: Path) -> str:
    return f"(umask 077; openssl rand -hex 32 > {path})"
