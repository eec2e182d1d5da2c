"""A fresh munge credential for each request, with the user's logins at registries in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from shiftergw.auth.munge_client import decode_own, encode
from shiftergw.cli.exchange import Exchange
from shiftergw.cli.exits import Misuse, NoGateway, RequestRefused, text_of
from shiftergw.cli.logins import LoginFile, credentials_of, home
from shiftergw.cli.settings import Settings
from shiftergw.errors import NotAuthenticated, Unavailable, printable


def warn_user(text: str) -> None:
    """Print a warning on standard error."""
    click.echo(text, err=True)


class Credentials:
    """Makes the credentials of one run of a command, for one system.

    The stored logins are read once. Each request needs a new credential, since a gateway accepts
    each only once.
    """

    def __init__(self, exchange: Exchange, settings: Settings, warn: Callable[[str], None]) -> None:
        """Talk to munge in threads of `exchange`; `warn` of logins that are left out."""
        self._exchange = exchange
        self._mock_credential = settings.credential
        self._system = settings.single_system()
        self._socket = settings.munge_socket_of(self._system)
        self._warn = warn
        self._payload: bytes | None = None

    def carry(self, logins: Mapping[str, str]) -> None:
        """Have the credentials carry these logins, by location, in place of the stored ones.

        Raises `Misuse` with mock authentication, whose credential is always the same.
        """
        if self._mock_credential and logins:
            raise Misuse("A credential of mock authentication carries no login.")
        self._payload = payload_of(logins)

    async def fresh(self) -> str:
        """Return a new credential; raise `NoGateway` while munge is away.

        The configured credential of mock authentication is always the same.
        """
        if self._mock_credential:
            return self._mock_credential
        # Munge's library gives up by itself after some seconds.
        if self._payload is None:
            payload, warnings = await self._exchange.in_thread(
                stored_payload, self._system, self._socket
            )
            for warning in warnings:
                self._warn(f"Warning: {warning}")
            self._payload = payload
        else:
            payload = self._payload
        return await self._exchange.in_thread(seal, payload, self._socket)


def seal(payload: bytes, socket: Path | None) -> str:
    """Return a credential of the calling user; blocking.

    Raises `NoGateway` while munge is away, and `RequestRefused` if munge rejects the payload.
    """
    try:
        return encode(payload, socket)
    except Unavailable as error:
        raise NoGateway(text_of(error)) from error
    except NotAuthenticated as error:
        raise RequestRefused(text_of(error)) from error


def stored_payload(system: str, socket: Path | None) -> tuple[bytes, Sequence[str]]:
    """Return the payload with all logins of a system, and a warning for each that is left out.

    A login that cannot be opened is left out, since most requests need none. Blocking. Raises
    `NoGateway` while munge is away.
    """
    try:
        file = LoginFile(home())
        content = file.read()
    except Misuse as error:
        return b"", [f"{error.message} Your logins are left out."]
    logins, warnings = {}, [file.warning] if file.warning else []
    for location, credential in credentials_of(content, system).items():
        try:
            login = decode_own(credential, socket)
        except Unavailable as error:
            raise NoGateway(text_of(error)) from error
        except NotAuthenticated as error:
            warnings.append(f"the login for {printable(location)} is left out: {error}")
        else:
            logins[location] = text_of_login(login)
    return payload_of(logins), warnings


def payload_of(logins: Mapping[str, str]) -> bytes:
    """Return the payload of a credential for logins (`user:password`) by location."""
    if not logins:
        return b""
    return json.dumps({"authorized_locations": dict(logins)}, separators=(",", ":")).encode("ascii")


def text_of_login(login: bytes) -> str:
    """Decode a login as the user typed it: UTF-8, or else an encoding of one byte per character."""
    try:
        return login.decode("utf-8")
    except UnicodeDecodeError:
        return login.decode("latin-1")
