"""Send requests for one repository: anonymously first, then with the login of a user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from shiftergw.errors import RegistryUnavailable, RetryLater
from shiftergw.model.requests import RegistryLogin
from shiftergw.oci.challenge import Challenge, parse_challenges
from shiftergw.oci.rate_limits import parse_rate_limit
from shiftergw.sources.registry.admission import Admission, RateLimited
from shiftergw.sources.registry.failures import redirect_refusal
from shiftergw.sources.registry.location import WebOrigin
from shiftergw.sources.registry.quotas import Quotas
from shiftergw.sources.registry.refusals import RefusalError, RefusalWords
from shiftergw.sources.registry.retry import Interruption, InterruptionKind
from shiftergw.sources.registry.tokens import RepositoryAccess, TokenDenialError, Tokens
from shiftergw.sources.registry.transport import Transport, field, place_of

if TYPE_CHECKING:
    from twisted.web.iweb import IResponse

_DENIALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_REFUSALS = _DENIALS | {HTTPStatus.NOT_FOUND}


class HeadNotAnswered(RegistryUnavailable):
    """The registry failed to answer a HEAD request. It may still answer GET.

    Some servers drop the connection, or send an error that makes no sense (moby#41687,
    containerd#6684).
    """


class Repository:
    """A repository as one user sees it; `private` once the login was needed."""

    def __init__(
        self,
        transport: Transport,
        tokens: Tokens,
        base: str,
        name: str,
        login: RegistryLogin | None,
        admission: Admission,
        quotas: Quotas,
        *,
        private: bool = False,
    ) -> None:
        """`base` is the registry's URL; with `private` the login is used from the start."""
        self.name = name
        self.quotas = quotas
        self._admission = admission
        self.private = private
        self._transport = transport
        self._tokens = tokens
        self._root_url = urljoin(base, "/v2/")
        self._url = f"{base}/v2/{name}/"
        self._origin = WebOrigin.of(base)
        self._login = login
        self._refusals = RefusalWords(
            transport.subject, transport.location, name, has_login=login is not None
        )
        self._challenges: Sequence[Challenge] = ()
        """The challenges of the last response with status 401."""

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        statuses: frozenset[HTTPStatus] = frozenset(),
    ) -> IResponse:
        """Return the response with status 200, or one of `statuses`; its body is still unread.

        If the registry refuses or limits anonymous requests, the request is repeated with the
        user's login. The image counts as private then, since an anonymous user has not seen it. If
        both are limited, the limit that ends first counts.

        Raises `ImageNotFound`, `RegistryDenied`, `RegistryUnavailable`, `RegistryUntrusted`;
        `HeadNotAnswered`, `Interruption` if another try may succeed, and `RetryLater`.
        """
        reason: RefusalError | RetryLater | None = None
        if not self.private or self._login is None:
            try:
                response = await self._ask_as(None, method, path, headers)
                return await self._expect(response, method, statuses)
            except (RefusalError, RateLimited, Interruption) as error:
                reason = await self._reason_for_login(error, path)
        try:
            response = await self._ask_as(self._login, method, path, headers)
        except RateLimited as error:
            if isinstance(reason, RetryLater) and reason.at < error.at:
                raise reason from error
            raise
        except RefusalError as error:
            if isinstance(reason, RetryLater):
                raise reason from error
            raise self._refusals.failure(error, path, reason) from error
        self.private = True
        return await self._expect(response, method, statuses)

    async def _reason_for_login(
        self, error: RefusalError | RateLimited | Interruption, path: str
    ) -> RefusalError | RetryLater:
        """Return why an anonymous request is to be repeated with the login: a refusal or a limit.

        Raises the error of the request if the user has no login, or the login would not help: the
        registry may limit requests before it challenges, and nothing is sent to one that does not.
        """
        if isinstance(error, RefusalError):
            if self._login is None:
                raise self._refusals.failure(error, path) from error
            return error
        if self._login is None:
            raise error
        if isinstance(error, Interruption) and error.kind is not InterruptionKind.RATE_LIMIT:
            raise error
        limit = (
            await self._admission.postpone(error, 0) if isinstance(error, Interruption) else error
        )
        if not self._challenges:
            try:
                self._challenges = await self._root_challenges()
            except Interruption as failure:
                raise limit from failure
        if not self._challenges:
            raise limit
        return limit

    async def _expect(
        self, response: IResponse, method: str, statuses: frozenset[HTTPStatus]
    ) -> IResponse:
        if response.code == HTTPStatus.OK or response.code in statuses:
            return response
        text = await self._transport.explanation(response, self._login)
        words = f": {text}" if text else "."
        kind = HeadNotAnswered if method == "HEAD" else RegistryUnavailable
        raise kind(f"{self._transport.subject} answered with status {response.code}{words}")

    async def _ask_as(
        self, login: RegistryLogin | None, method: str, path: str, headers: Mapping[str, str]
    ) -> IResponse:
        reads_manifest = method == "GET" and path.startswith("manifests/")
        async with self._admission.request(login, reads_manifest=reads_manifest):
            try:
                return await self._answer(login, method, path, headers)
            except RegistryUnavailable as error:
                # This is no failure of the probe of a breaker either.
                if method == "HEAD" and _may_answer_get(error):
                    raise HeadNotAnswered(error.what, detail=error.detail) from error
                raise

    async def _answer(
        self, login: RegistryLogin | None, method: str, path: str, headers: Mapping[str, str]
    ) -> IResponse:
        """Return the response to a request with this login; answer one challenge.

        A registry that refuses what it has just granted would do so for ever. Registries that hide
        private repositories send 403 or 404 without a challenge: then that of their root counts.
        A login is never sent without a challenge of the registry itself: another host behind a
        redirect would name a token service of its own, which would get the login.
        """
        access = RepositoryAccess(self.name, login)
        url = self._url + path
        authorization = self._tokens.authorization_for(access)
        known_challenges: Sequence[Challenge] = ()
        if authorization is None and login is not None:
            known_challenges = self._challenges
            authorization = await self._authorize(known_challenges, access)
        response = await self._request(login, method, url, headers, authorization)
        if response.code not in _REFUSALS:
            return response
        refusal = await self._refusal(response, login_sent=bool(login and authorization))
        challenges: Sequence[Challenge] = ()
        if response.code == HTTPStatus.UNAUTHORIZED and self._is_own(response):
            challenges = self._challenges = self._challenges_of(response)
            if authorization is not None and challenges == known_challenges:
                raise refusal
        elif login is not None and authorization is None:
            challenges = await self._root_challenges()
        authorization = await self._authorize(challenges, access, authorization)
        if authorization is None:
            raise refusal
        response = await self._request(login, method, url, headers, authorization)
        if response.code in _REFUSALS:
            raise await self._refusal(response, login_sent=login is not None)
        return response

    async def _request(
        self,
        login: RegistryLogin | None,
        method: str,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None,
    ) -> IResponse:
        """Return the response, and note the limit that it tells."""
        response = await self._transport.request(
            method, url, headers, authorization, login=self._login
        )
        if self._is_own(response) and (login is None or authorization is not None):
            self.quotas.note(login, parse_rate_limit(partial(field, response)))
        return response

    def _is_own(self, response: IResponse) -> bool:
        """Return whether the registry itself sent a response, and no host behind a redirect."""
        return place_of(response) == self._origin

    def _challenges_of(self, response: IResponse) -> tuple[Challenge, ...]:
        """Return the challenges of the registry itself in a response."""
        if not self._is_own(response):
            return ()
        fields = response.headers.getRawHeaders(b"WWW-Authenticate", [])
        return parse_challenges(value.decode("utf-8", "replace") for value in fields)

    async def _authorize(
        self, challenges: Sequence[Challenge], access: RepositoryAccess, bad: str | None = None
    ) -> str | None:
        """Return the `Authorization` that answers challenges; None if none of them can be."""
        if not challenges:
            return None
        try:
            return await self._tokens.obtain(challenges, access, bad)
        except TokenDenialError as error:
            raise RefusalError(
                HTTPStatus.UNAUTHORIZED,
                error.text,
                login_sent=access.login is not None,
                failure=error.failure,
            ) from error

    async def _root_challenges(self) -> Sequence[Challenge]:
        """Return the challenges of the registry's root, whatever its status is.

        Their scopes are those of other repositories, and are left out. The request has no login, so
        its limit is not the login's.
        """
        async with self._admission.challenge_request():
            response = await self._transport.request("GET", self._root_url, {"Accept": "*/*"})
        await self._transport.explanation(response)
        return tuple(
            replace(
                challenge,
                parameters={k: v for k, v in challenge.parameters.items() if k != "scope"},
            )
            for challenge in self._challenges_of(response)
        )

    async def _refusal(self, response: IResponse, *, login_sent: bool) -> RefusalError:
        text = await self._transport.explanation(response, self._login)
        failure = None
        if response.code in _DENIALS and not self._is_own(response):
            place = place_of(response)
            failure = redirect_refusal(
                self._transport.subject, self._origin, place, response.code, text
            )
        return RefusalError(response.code, text, login_sent=login_sent, failure=failure)


def _may_answer_get(error: RegistryUnavailable) -> bool:
    """Return whether a GET may succeed after this error of a HEAD request.

    It does not where the registry is unreachable, does not speak TLS, or limits requests.
    """
    if not isinstance(error, Interruption):
        return True
    if error.kind is InterruptionKind.UNREACHABLE:
        return error.why == "no answer"
    return error.kind not in {InterruptionKind.LASTING, InterruptionKind.RATE_LIMIT}
