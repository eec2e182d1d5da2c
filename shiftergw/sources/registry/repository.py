"""One repository of a registry, visited by one user: as nobody first, then with the login."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from shiftergw.errors import (
    ImageNotFound,
    PullError,
    RegistryDenied,
    RegistryUnavailable,
)
from shiftergw.model import RegistryLogin
from shiftergw.oci.challenge import parse_challenges
from shiftergw.sources.registry.admission import Admission, RateLimited
from shiftergw.sources.registry.tokens import Access, Tokens
from shiftergw.sources.registry.transport import Transport

if TYPE_CHECKING:
    from twisted.web.iweb import IResponse

_REFUSALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})


class _RefusedError(Exception):
    """The registry answered 401, 403 or 404, and said `text`."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status)
        self.status = status
        self.text = text


class Repository:
    """Where requests for one image go; `private` once the login was needed."""

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
        self._url = f"{base}/v2/{name}/"
        self._login = login

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        also: frozenset[HTTPStatus] = frozenset(),
    ) -> IResponse:
        """Return the answer with status 200, or one of `also`; its body is still to be read.

        Where anonymous requests are limited for longer, those of a user with a login use it; the
        image counts as private then, since nobody has seen that it is public. Where both are
        limited, the limit that ends first counts.

        Raises `ImageNotFound`, `RegistryDenied`, `RegistryUnavailable`, `RegistryUntrusted`;
        `Interrupted` for what may go better the next time, and `RetryLater`.
        """
        login = self._login
        first: _RefusedError | None = None
        limited: RateLimited | None = None
        if not self.private or login is None:
            try:
                return await self._expected(await self._ask_as(None, method, path, headers), also)
            except _RefusedError as error:
                first = error
                if login is None:
                    raise self._failure(error, path, None) from error
            except RateLimited as error:
                if login is None:
                    raise
                limited = error
        try:
            response = await self._ask_as(login, method, path, headers)
        except RateLimited as error:
            if limited is not None and limited.at < error.at:
                raise limited from error
            raise
        except _RefusedError as error:
            if limited is not None:
                raise limited from error
            # To those who may not see it a registry may say that a private repository is not there;
            # where nobody sees it, with and without a login, that is what holds.
            hidden = first is not None and first.status == HTTPStatus.NOT_FOUND
            raise self._failure(first if first and hidden else error, path, login) from error
        self.private = True
        return await self._expected(response, also)

    async def _expected(self, response: IResponse, also: frozenset[HTTPStatus]) -> IResponse:
        if response.code == HTTPStatus.OK or response.code in also:
            return response
        said = await self._transport.explanation(response)
        said = f": {said}" if said else "."
        raise RegistryUnavailable(
            f"{self._transport.who} answered with status {response.code}{said}"
        )

    async def _ask_as(
        self, login: RegistryLogin | None, method: str, path: str, headers: Mapping[str, str]
    ) -> IResponse:
        async with self._admission.request(login):
            return await self._answer(login, method, path, headers)

    async def _answer(
        self, login: RegistryLogin | None, method: str, path: str, headers: Mapping[str, str]
    ) -> IResponse:
        access = Access(self.name, login)
        authorization = self._tokens.held(access)
        response = await self._transport.request(method, self._url + path, headers, authorization)
        if response.code == HTTPStatus.UNAUTHORIZED:
            # Once only: a registry that refuses what it has just granted would do so for ever.
            refused = await self._refusal(response)
            fields = response.headers.getRawHeaders(b"WWW-Authenticate", [])
            challenges = parse_challenges(f.decode("utf-8", "replace") for f in fields)
            granted = await self._tokens.obtain(challenges, access, authorization)
            if granted is None:
                raise refused
            response = await self._transport.request(method, self._url + path, headers, granted)
        if response.code in _REFUSALS:
            raise await self._refusal(response)
        return response

    async def _refusal(self, response: IResponse) -> _RefusedError:
        said = await self._transport.explanation(response)
        return _RefusedError(response.code, said)

    def _failure(self, refused: _RefusedError, path: str, login: RegistryLogin | None) -> PullError:
        who = self._transport.who
        said = f" ({refused.text})" if refused.text else ""
        if refused.status == HTTPStatus.NOT_FOUND:
            kind, _, wanted = path.partition("/")
            if kind == "blobs":
                return ImageNotFound(
                    f"{who} lacks a part of {self.name}, {wanted}{said}.",
                    remedy="Push the image once more, all its layers with it.",
                )
            mark = "@" if ":" in wanted else ":"
            return ImageNotFound(
                f"{who} has no image {self.name}{mark}{wanted}{said}.", remedy=self._elsewhere()
            )
        location = self._transport.location
        log_in = f"(`shiftergw login {location}`, or `shifterimg login {location}`)"
        if login is None:
            return RegistryDenied(
                f"{who} refused {self.name} to a user without a login{said}.",
                remedy=self._elsewhere()
                or f"Log in to it {log_in}, or check that you may read the image.",
            )
        return RegistryDenied(
            f"{who} refused {self.name} to your login{said}.",
            remedy=self._elsewhere()
            or f"Check the name of the image; log in anew {log_in} if your password has changed; or"
            " ask the image's owner for permission.",
        )

    def _elsewhere(self) -> str | None:
        """Return what to do where the name begins with a host that is none of the locations."""
        first, slash, _ = self.name.partition("/")
        if not (slash and "." in first):
            return None
        return (
            f"If {first} is meant to be a registry: this gateway has it not, so ask its admins"
            " for it. Else check the name and the tag of the image."
        )
