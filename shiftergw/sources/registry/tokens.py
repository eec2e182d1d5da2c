"""What a registry wants to see of us: nothing, a login (Basic), or a token (Bearer).

Tokens come from a token service that the registry names, by GET or, where that is not there, by
OAuth2's POST (the token specifications of the distribution project). Nothing here is ever shown:
a header's value lives in this cache and in the request that carries it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from twisted.internet.defer import DeferredLock

from shiftergw.errors import RegistryUnavailable, RegistryUntrusted
from shiftergw.model import RegistryLogin
from shiftergw.oci.challenge import Challenge
from shiftergw.sources.registry.location import WebOrigin
from shiftergw.sources.registry.transport import Transport

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

TOKEN_LIFE = 60.0
"""Seconds that a token lives if its service does not say."""

LONGEST_LIFE = 3600.0
"""Seconds after which we ask anew, whatever the service says."""

MARGIN = 10.0
"""Seconds before its end from which a token is not used any more; at most half of its life."""

TOKEN_LIMIT = 256 << 10
"""Bytes of a token service's answer."""

_Answer = tuple[int, bytes]
_NO_GET = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})
_CLIENT_ID = "shiftergw"
_TOKEN = re.compile(r"[!-~]{1,65536}")


@dataclass(frozen=True, slots=True)
class _Grant:
    """The value of an `Authorization` field, and until when it may be used."""

    authorization: str = field(repr=False)
    until: float


@dataclass(frozen=True, slots=True)
class Access:
    """What a grant is for: reading one repository, as nobody or with a login."""

    repository: str
    login: RegistryLogin | None = None


class Tokens:
    """The grants of one registry."""

    def __init__(self, transport: Transport, clock: IReactorTime) -> None:
        """Start with none."""
        self._transport = transport
        self._clock = clock
        self._grants: dict[Access, _Grant] = {}
        self._lock = DeferredLock()

    def held(self, access: Access) -> str | None:
        """Return the `Authorization` that is known to be wanted and still good, if any."""
        grant = self._grants.get(access)
        return (
            None if grant is None or grant.until <= self._clock.seconds() else grant.authorization
        )

    async def obtain(
        self, challenges: Sequence[Challenge], access: Access, refused: str | None
    ) -> str | None:
        """Return an `Authorization` that answers the challenges, None if we have no answer.

        `refused` is the one that has just been refused; another, got meanwhile by somebody else,
        is used. Raises `Interrupted`, `RegistryUnavailable`, `RegistryUntrusted`.
        """
        async with self._lock:
            held = self.held(access)
            if held is not None and held != refused:
                return held
            self._grants.pop(access, None)
            grant = await self._grant(challenges, access)
            now = self._clock.seconds()
            self._grants = {a: g for a, g in self._grants.items() if g.until > now}
            if grant is None or grant.authorization == refused:
                return None
            self._grants[access] = grant
            return grant.authorization

    async def _grant(self, challenges: Sequence[Challenge], access: Access) -> _Grant | None:
        offered = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if "bearer" in offered:
            return await self._bearer(offered["bearer"], access)
        if "basic" in offered and access.login is not None:
            return _Grant(basic(access.login), self._clock.seconds() + LONGEST_LIFE)
        return None

    async def _bearer(self, challenge: Challenge, access: Access) -> _Grant | None:
        realm = challenge.parameters.get("realm", "")
        try:
            WebOrigin.of(realm)
        except ValueError as error:
            raise RegistryUntrusted(
                f"{self._transport.who} names a token service that is no URL."
            ) from error
        scope = challenge.parameters.get("scope") or f"repository:{access.repository}:pull"
        asked = {"client_id": _CLIENT_ID, "scope": scope}
        if service := challenge.parameters.get("service"):
            asked["service"] = service
        status, body = await self._get(realm, asked, access.login)
        if status in _NO_GET and access.login is not None:
            status, body = await self._post(realm, asked, access.login)
        if status == HTTPStatus.OK:
            return self._read(body)
        if 400 <= status < 500:  # noqa: PLR2004 - a refusal
            return None
        raise self._not_understood(f"answered with status {status}")

    async def _get(
        self, realm: str, asked: Mapping[str, str], login: RegistryLogin | None
    ) -> _Answer:
        """Ask as the distribution project specifies ("Token Authentication")."""
        account = {} if login is None else {"account": login.user}
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode({**asked, **account})}"
        response = await self._transport.request(
            "GET", url, {"Accept": "application/json"}, None if login is None else basic(login)
        )
        return response.code, await self._transport.read(response, TOKEN_LIMIT)

    async def _post(self, realm: str, asked: Mapping[str, str], login: RegistryLogin) -> _Answer:
        """Ask as OAuth2 specifies (RFC 6749, section 4.3)."""
        form = {
            **asked,
            "grant_type": "password",
            "username": login.user,
            "password": login.password,
        }
        response = await self._transport.request(
            "POST",
            realm,
            {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"},
            content=urlencode(form).encode("ascii"),
        )
        return response.code, await self._transport.read(response, TOKEN_LIMIT)

    def _read(self, body: bytes) -> _Grant:
        """Read a token service's answer: `token` or `access_token`, and how long it lives."""
        try:
            answer: Any = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._not_understood("answered with something that is no JSON object")
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
            raise self._not_understood("gave no token")
        life = answer.get("expires_in")
        if isinstance(life, bool) or not isinstance(life, (int, float)) or not life > 0:
            life = TOKEN_LIFE
        life = min(life, LONGEST_LIFE)
        return _Grant(f"Bearer {token}", self._clock.seconds() + life - min(MARGIN, life / 2))

    def _not_understood(self, what: str) -> RegistryUnavailable:
        return RegistryUnavailable(f"{self._transport.who} has a token service that {what}.")


def basic(login: RegistryLogin) -> str:
    """Return a login as an `Authorization` field (RFC 7617, UTF-8)."""
    pair = f"{login.user}:{login.password}".encode()
    return f"Basic {base64.b64encode(pair).decode('ascii')}"
