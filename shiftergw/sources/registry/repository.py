"""Send requests for one repository: anonymously first, then with the login of a user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from shiftergw.errors import (
    ImageNotFound,
    PullError,
    RegistryDenied,
    RegistryUnavailable,
    RetryLater,
)
from shiftergw.model import RegistryLogin
from shiftergw.oci.challenge import Challenge, parse_challenges
from shiftergw.sources.registry.admission import Admission, RateLimited
from shiftergw.sources.registry.retry import Interruption
from shiftergw.sources.registry.tokens import (
    RepositoryAccess,
    TokenDenialError,
    Tokens,
    conceal,
)
from shiftergw.sources.registry.transport import Transport

if TYPE_CHECKING:
    from twisted.web.iweb import IResponse

_REFUSALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})


class HeadNotAnswered(RegistryUnavailable):
    """The registry failed to answer a HEAD request. It may still answer GET.

    Some servers drop the connection, or send an error that makes no sense (moby#41687,
    containerd#6684).
    """


class _RefusalError(Exception):
    """The registry, or its token service, refused a request; `text` has its words.

    `login_sent` tells whether the login was shown to either of them. `failure` is the error that
    the user gets instead of a refusal, if any.
    """

    def __init__(
        self, status: int, text: str, *, login_sent: bool, failure: PullError | None = None
    ) -> None:
        super().__init__(status)
        self.status = status
        self.text = text
        self.login_sent = login_sent
        self.failure = failure


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
        *,
        private: bool = False,
    ) -> None:
        """`base` is the registry's URL; with `private` the login is used from the start."""
        self.name = name
        self._admission = admission
        self.private = private
        self._transport = transport
        self._tokens = tokens
        self._root_url = urljoin(base, "/v2/")
        self._url = f"{base}/v2/{name}/"
        self._login = login
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
        reason: _RefusalError | RetryLater | None = None
        if not self.private or self._login is None:
            try:
                response = await self._ask_as(None, method, path, headers)
                return await self._expect(response, method, statuses)
            except (_RefusalError, RateLimited, Interruption) as error:
                reason = await self._reason_for_login(error, path)
        try:
            response = await self._ask_as(self._login, method, path, headers)
        except RateLimited as error:
            if isinstance(reason, RetryLater) and reason.at < error.at:
                raise reason from error
            raise
        except _RefusalError as error:
            if isinstance(reason, RetryLater):
                raise reason from error
            raise self._failure(error, path, reason) from error
        self.private = True
        return await self._expect(response, method, statuses)

    async def _reason_for_login(
        self, error: _RefusalError | RateLimited | Interruption, path: str
    ) -> _RefusalError | RetryLater:
        """Return why an anonymous request is to be repeated with the login: a refusal or a limit.

        Raises the error of the request if the user has no login, or the login would not help: the
        registry may limit requests before it challenges, and nothing is sent to one that does not.
        """
        if isinstance(error, _RefusalError):
            if self._login is None:
                raise self._failure(error, path) from error
            return error
        if self._login is None or (isinstance(error, Interruption) and not error.is_rate_limit):
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
        text = await self._explanation(response)
        words = f": {text}" if text else "."
        kind = HeadNotAnswered if method == "HEAD" else RegistryUnavailable
        raise kind(f"{self._transport.subject} answered with status {response.code}{words}")

    async def _ask_as(
        self, login: RegistryLogin | None, method: str, path: str, headers: Mapping[str, str]
    ) -> IResponse:
        async with self._admission.request(login):
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
        A login is never sent without a challenge.
        """
        access = RepositoryAccess(self.name, login)
        authorization = self._tokens.authorization_for(access)
        known_challenges: Sequence[Challenge] = ()
        if authorization is None and login is not None:
            known_challenges = self._challenges
            authorization = await self._authorize(known_challenges, access)
        response = await self._transport.request(method, self._url + path, headers, authorization)
        if response.code not in _REFUSALS:
            return response
        refusal = await self._refusal(response, login_sent=bool(login and authorization))
        challenges: Sequence[Challenge] = ()
        if response.code == HTTPStatus.UNAUTHORIZED:
            challenges = self._challenges = _challenges(response)
            if authorization is not None and challenges == known_challenges:
                raise refusal
        elif login is not None and authorization is None:
            challenges = await self._root_challenges()
        authorization = await self._authorize(challenges, access, authorization)
        if authorization is None:
            raise refusal
        response = await self._transport.request(method, self._url + path, headers, authorization)
        if response.code in _REFUSALS:
            raise await self._refusal(response, login_sent=login is not None)
        return response

    async def _authorize(
        self, challenges: Sequence[Challenge], access: RepositoryAccess, bad: str | None = None
    ) -> str | None:
        """Return the `Authorization` that answers challenges; None if none of them can be."""
        if not challenges:
            return None
        try:
            return await self._tokens.obtain(challenges, access, bad)
        except TokenDenialError as error:
            raise _RefusalError(
                HTTPStatus.UNAUTHORIZED,
                error.text,
                login_sent=access.login is not None,
                failure=error.failure,
            ) from error

    async def _root_challenges(self) -> Sequence[Challenge]:
        """Return the challenges of the registry's root, whatever its status is.

        Their scopes are those of other repositories, and are left out.
        """
        response = await self._transport.request("GET", self._root_url, {"Accept": "*/*"})
        await self._transport.explanation(response)
        return tuple(
            replace(
                challenge,
                parameters={k: v for k, v in challenge.parameters.items() if k != "scope"},
            )
            for challenge in _challenges(response)
        )

    async def _refusal(self, response: IResponse, *, login_sent: bool) -> _RefusalError:
        text = await self._explanation(response)
        return _RefusalError(response.code, text, login_sent=login_sent)

    async def _explanation(self, response: IResponse) -> str:
        return conceal(await self._transport.explanation(response), self._login)

    def _failure(
        self, refusal: _RefusalError, path: str, anonymous: _RefusalError | None = None
    ) -> PullError:
        """Return the error of the user for a refusal, and for that of an anonymous request before.

        Registries may answer 404 to users who may not see a private repository. If both are 404,
        or the anonymous one is, the image does not exist as far as anybody knows.
        """
        if refusal.failure is not None:
            return refusal.failure
        registry = self._transport.subject
        is_hidden = anonymous is not None and anonymous.status == HTTPStatus.NOT_FOUND
        words = f" ({refusal.text})" if refusal.text else ""
        if is_hidden or refusal.status == HTTPStatus.NOT_FOUND:
            return self._not_found(refusal, path, anonymous if is_hidden else None)
        if self._login is None:
            return RegistryDenied(
                f"{registry} refused {self.name} to a user without a login{words}.",
                remedy=self._unknown_host()
                or f"Log in to it {self._how_to_log_in()}, or check that you may read the image.",
            )
        if not refusal.login_sent:
            return RegistryDenied(
                f"{registry} refused {self.name}, and does not ask for your login{words}.",
                remedy=self._unknown_host()
                or "Check the name of the image, or ask its owner for permission.",
            )
        return RegistryDenied(
            f"{registry} refused {self.name} to your login{words}.",
            remedy=self._unknown_host()
            or f"Check the name of the image; log in anew {self._how_to_log_in()} if your password"
            " has changed; or ask the image's owner for permission.",
        )

    def _not_found(
        self, refusal: _RefusalError, path: str, anonymous: _RefusalError | None
    ) -> ImageNotFound:
        registry = self._transport.subject
        text = (anonymous or refusal).text
        words = f" ({text})" if text else ""
        if anonymous and refusal.login_sent and refusal.status == HTTPStatus.UNAUTHORIZED:
            words += ", and refused your login" + (f" ({refusal.text})" if refusal.text else "")
        kind, _, reference = path.partition("/")
        if kind == "blobs":
            return ImageNotFound(
                f"{registry} lacks a part of {self.name}, {reference}{words}.",
                remedy="Push the image once more, all its layers with it.",
            )
        mark = "@" if ":" in reference else ":"
        return ImageNotFound(
            f"{registry} has no image {self.name}{mark}{reference}{words}.",
            remedy=self._unknown_host(),
        )

    def _how_to_log_in(self) -> str:
        location = self._transport.location
        return f"(`shiftergw login {location}`, or `shifterimg login {location}`)"

    def _unknown_host(self) -> str | None:
        """Return the remedy if the name begins with a host that is not a location."""
        first, slash, _ = self.name.partition("/")
        if not (slash and "." in first):
            return None
        return (
            f"If {first} is meant to be a registry: this gateway has it not, so ask its admins"
            " for it. Else check the name and the tag of the image."
        )


def _may_answer_get(error: RegistryUnavailable) -> bool:
    """Return whether a GET may succeed after this error of a HEAD request.

    It does not where the registry is unreachable, does not speak TLS, or limits requests.
    """
    if not isinstance(error, Interruption):
        return True
    is_reached = not error.unreachable or error.why == "no answer"
    return is_reached and not error.lasting and not error.is_rate_limit


def _challenges(response: IResponse) -> tuple[Challenge, ...]:
    fields = response.headers.getRawHeaders(b"WWW-Authenticate", [])
    return parse_challenges(value.decode("utf-8", "replace") for value in fields)
