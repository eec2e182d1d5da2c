"""Answer the challenges of a registry: with a login (Basic) or a token (Bearer).

The registry names the token service. It is asked by GET or, if it does not know that, by the POST
of OAuth2 (token specifications of the distribution project). An identity token is sent by POST
alone, to the token service alone: it is no password. Secrets are in this cache and in the
requests that carry them, and are never shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from twisted.internet.defer import DeferredLock

from shiftergw.errors import PullError, RegistryUnavailable, RegistryUntrusted
from shiftergw.model.requests import RegistryLogin
from shiftergw.oci.challenge import Challenge
from shiftergw.sources.registry.admission import RateLimited
from shiftergw.sources.registry.content import read_document
from shiftergw.sources.registry.location import WebOrigin
from shiftergw.sources.registry.logins import basic
from shiftergw.sources.registry.retry import Interruption, InterruptionKind
from shiftergw.sources.registry.transport import Transport

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.web.iweb import IResponse

TOKEN_LIFE = 60.0
"""Lifetime of a token in seconds if its service does not name one."""

LONGEST_LIFE = 3600.0
"""Seconds after which a grant is renewed, whatever its service says."""

MARGIN = 10.0
"""Seconds before its end from which a token is no longer used; at most half of its lifetime."""

TOKEN_LIMIT = 256 << 10
"""Most bytes of the answer of a token service."""

_NO_GET = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})
_CLIENT_ID = "shiftergw"
_ONLY_PASSWORDS = "it takes a user and a password, and no identity token"
_TOKEN = re.compile(r"[!-~]{1,65536}")


@dataclass(frozen=True, slots=True)
class _Grant:
    """The value of an `Authorization` field, and the time until which it may be used."""

    authorization: str = field(repr=False)
    until: float


@dataclass(frozen=True, slots=True)
class RepositoryAccess:
    """The purpose of a grant: reading one repository, anonymously or with a login."""

    repository: str
    login: RegistryLogin | None = None


class TokenDenialError(Exception):
    """The token service grants nothing; `text` has its words.

    `failure` is set if it cannot grant anything at the moment. Only a user without a login needs to
    know, because the registry takes a login by Basic, too.
    """

    def __init__(self, text: str, failure: PullError | None = None) -> None:
        """Keep the words, which are printable."""
        super().__init__(text)
        self.text = text
        self.failure = failure


class Tokens:
    """The grants of one registry."""

    def __init__(self, transport: Transport, clock: IReactorTime) -> None:
        """Start without grants."""
        self._registry = transport.subject
        self._service = f"The token service of the registry {transport.location!r}"
        self._transport = transport.with_subject(self._service)
        self._clock = clock
        self._grants: dict[RepositoryAccess, _Grant] = {}
        self._lock = DeferredLock()

    def authorization_for(self, access: RepositoryAccess) -> str | None:
        """Return an `Authorization` from the cache that is still good, if there is one."""
        grant = self._grants.get(access)
        return (
            None if grant is None or grant.until <= self._clock.seconds() else grant.authorization
        )

    async def obtain(
        self, challenges: Sequence[Challenge], access: RepositoryAccess, bad: str | None
    ) -> str | None:
        """Return an `Authorization` that answers the challenges; None if none of them can be.

        `bad` is the value that the registry has just refused. A different one, which a parallel
        request has obtained meanwhile, is used. Raises `TokenDenialError`, `Interruption`,
        `RegistryUnavailable`, `RegistryUntrusted`.
        """
        async with self._lock:
            authorization = self.authorization_for(access)
            if authorization is not None and authorization != bad:
                return authorization
            self._grants.pop(access, None)
            grant = await self._grant(challenges, access)
            now = self._clock.seconds()
            self._grants = {a: g for a, g in self._grants.items() if g.until > now}
            if grant is None or grant.authorization == bad:
                return None
            self._grants[access] = grant
            return grant.authorization

    async def _grant(
        self, challenges: Sequence[Challenge], access: RepositoryAccess
    ) -> _Grant | None:
        offers = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if "bearer" in offers:
            try:
                return await self._bearer(offers["bearer"], access)
            except PullError as error:
                is_token = access.login is not None and access.login.is_identity_token
                if "basic" not in offers or is_token or _is_limit(error):
                    raise
                if access.login is None:
                    raise TokenDenialError(error.what, error) from error
        if "basic" in offers and access.login is not None:
            if access.login.is_identity_token:
                raise TokenDenialError(_ONLY_PASSWORDS)
            return _Grant(basic(access.login), self._clock.seconds() + LONGEST_LIFE)
        return None

    async def _bearer(self, challenge: Challenge, access: RepositoryAccess) -> _Grant:
        realm = challenge.parameters.get("realm", "")
        try:
            WebOrigin.of(realm)
        except ValueError as error:
            raise RegistryUntrusted(
                f"{self._registry} names a token service that is not a URL."
            ) from error
        parameters = {"client_id": _CLIENT_ID}
        if scope := challenge.parameters.get("scope"):
            parameters["scope"] = scope
        elif access.repository:  # none for the root of the registry
            parameters["scope"] = f"repository:{access.repository}:pull"
        if service := challenge.parameters.get("service"):
            parameters["service"] = service
        is_token = access.login is not None and access.login.is_identity_token
        response = await self._request_token(realm, parameters, access.login)
        if response.code == HTTPStatus.OK:
            return self._read(
                await read_document(self._transport, response, TOKEN_LIMIT, self._service, "token")
            )
        text = await self._transport.explanation(response, access.login)
        is_refusal = 400 <= response.code < 500  # noqa: PLR2004 - the class of client errors
        if is_refusal and (access.login is None or is_token or response.code not in _NO_GET):
            raise TokenDenialError(text or (_ONLY_PASSWORDS if is_token else ""))
        words = f": {text}" if text else "."
        raise RegistryUnavailable(f"{self._service} answered with status {response.code}{words}")

    async def _request_token(
        self, realm: str, parameters: Mapping[str, str], login: RegistryLogin | None
    ) -> IResponse:
        """Return the response of the token service: to GET, or to POST where that is needed."""
        if login is None or not login.is_identity_token:
            response = await self._get(realm, parameters, login)
            if login is None or response.code not in _NO_GET:
                return response
            await self._transport.explanation(response)
        return await self._post(realm, parameters, login)

    async def _get(
        self, realm: str, parameters: Mapping[str, str], login: RegistryLogin | None
    ) -> IResponse:
        """Send the request that the distribution project specifies ("Token Authentication")."""
        account = {} if login is None else {"account": login.user}
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode({**parameters, **account})}"
        authorization = None if login is None else basic(login)
        return await self._transport.request(
            "GET", url, {"Accept": "application/json"}, authorization, login=login
        )

    async def _post(
        self, realm: str, parameters: Mapping[str, str], login: RegistryLogin
    ) -> IResponse:
        """Send the request that OAuth2 specifies (RFC 6749, sections 4.3 and 6)."""
        if login.is_identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": login.password}
        else:
            form = {
                "grant_type": "password",
                "username": login.user,
                "password": login.password,
            }
        return await self._transport.request(
            "POST",
            realm,
            {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"},
            content=urlencode({**parameters, **form}).encode("ascii"),
            login=login,
        )

    def _read(self, body: bytes) -> _Grant:
        """Read the answer of a token service: `token` or `access_token`, and its lifetime."""
        try:
            answer: Any = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._invalid_answer("something that is not a JSON object")
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
            raise self._invalid_answer("no token")
        life = answer.get("expires_in")
        if isinstance(life, bool) or not isinstance(life, (int, float)) or not life > 0:
            life = TOKEN_LIFE
        life = min(life, LONGEST_LIFE)
        return _Grant(f"Bearer {token}", self._clock.seconds() + life - min(MARGIN, life / 2))

    def _invalid_answer(self, what: str) -> RegistryUnavailable:
        return RegistryUnavailable(f"{self._service} answered with {what}.")


def _is_limit(error: PullError) -> bool:
    """Return whether an error is a limit on requests: another way would exceed it as well."""
    return isinstance(error, RateLimited) or (
        isinstance(error, Interruption) and error.kind is InterruptionKind.RATE_LIMIT
    )
