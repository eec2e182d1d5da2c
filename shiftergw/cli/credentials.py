"""Who asks: a fresh munge credential for each request, with the user's logins in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from twisted.internet.threads import deferToThreadPool

from shiftergw.auth.munge import decode_own, encode
from shiftergw.cli.exits import Misused, NoGateway, Refused, text_of
from shiftergw.cli.logins import LoginFile, home, kept
from shiftergw.cli.settings import Settings
from shiftergw.errors import NotAuthenticated, Unavailable, printable


def warned(text: str) -> None:
    """Tell the user something that he may want to change."""
    click.echo(text, err=True)


class Credentials:
    """Makes the credentials of one run for one system.

    The stored logins are read once; each credential is a new one, since each counts once.
    """

    def __init__(self, reactor: Any, settings: Settings, warn: Callable[[str], None]) -> None:
        """Make none yet; `warn` of logins that are left out."""
        self._reactor = reactor
        self._fixed = settings.credential
        self._system = settings.found_system()
        self._socket = settings.munge_socket_of(self._system)
        self._warn = warn
        self._payload: bytes | None = None

    async def fresh(self) -> str:
        """Return a credential; raise `NoGateway` while munge is away."""
        if self._fixed:
            return self._fixed
        if self._payload is None:
            self._payload, warnings = await self._in_thread(
                stored_payload, self._system, self._socket
            )
            for warning in warnings:
                self._warn(f"Warning: {warning}")
        made: str = await self._in_thread(sealed, self._payload, self._socket)
        return made

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        """Call what talks to munge, which gives up by itself after some seconds."""
        pool = self._reactor.getThreadPool()
        return await deferToThreadPool(self._reactor, pool, function, *arguments)


def sealed(payload: bytes, socket: Path | None) -> str:
    """Return a credential of the calling user; raise `NoGateway` or `Refused`; blocking."""
    try:
        return encode(payload, socket)
    except Unavailable as error:
        raise NoGateway(text_of(error)) from error
    except NotAuthenticated as error:
        raise Refused(text_of(error)) from error


def stored_payload(system: str, socket: Path | None) -> tuple[bytes, Sequence[str]]:
    """Return the payload with all logins of a system, and what to say of those left out; blocking.

    A login that cannot be opened costs nothing but itself: most requests need none.
    Raises `NoGateway` while munge is away.
    """
    try:
        file = LoginFile(home())
        content = file.read()
    except Misused as error:
        return b"", [f"{error.message} Your logins are left out."]
    logins, warnings = {}, [file.warning] if file.warning else []
    for location, credential in kept(content, system).items():
        try:
            login = decode_own(credential, socket)
        except Unavailable as error:
            raise NoGateway(text_of(error)) from error
        except NotAuthenticated as error:
            warnings.append(f"the login for {printable(location)} is left out: {error}")
        else:
            logins[location] = _text(login)
    return payload(logins), warnings


def payload(logins: dict[str, str]) -> bytes:
    """Return what a credential carries for these logins (`user:password` by location)."""
    if not logins:
        return b""
    return json.dumps({"authorized_locations": logins}, separators=(",", ":")).encode("ascii")


def _text(login: bytes) -> str:
    """Return a login as the terminal meant it; an encoding of old has a character per byte."""
    try:
        return login.decode("utf-8")
    except UnicodeDecodeError:
        return login.decode("latin-1")
