"""Try a login at the root of a registry's API, without any repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shiftergw.errors import PullError, RegistryDenied, RegistryUnavailable
from shiftergw.sources.registry.refusals import RefusalError
from shiftergw.sources.registry.repository import Repository

if TYPE_CHECKING:
    from shiftergw.model.requests import RegistryLogin
    from shiftergw.sources.registry.admission import Admission
    from shiftergw.sources.registry.quotas import Quotas
    from shiftergw.sources.registry.tokens import Tokens
    from shiftergw.sources.registry.transport import Transport


class RegistryRoot(Repository):
    """The root of a registry's API (`/v2/`), which clients ask whether a login is good.

    Docker does the same (moby, `registry.loginV2`): the registry challenges an anonymous request,
    the login is sent as the challenge says, and then the root has to answer with status 200.
    """

    def __init__(
        self,
        transport: Transport,
        tokens: Tokens,
        base: str,
        login: RegistryLogin,
        admission: Admission,
        quotas: Quotas,
    ) -> None:
        """`tokens` must be new: a token from the cache would prove an old password."""
        super().__init__(transport, tokens, base, "", login, admission, quotas, private=True)
        self._url = self._root_url

    async def check_login(self) -> bool:
        """Return whether the registry has asked for the login, and taken it.

        Raises `RegistryDenied`, or another `PullError` if the registry cannot be asked now.
        """
        try:
            response = await self._ask_as(self._login, "GET", "", {"Accept": "*/*"})
        except RefusalError as error:
            raise self._denial(error) from error
        await self._expect(response, "GET", frozenset())
        await self._transport.explanation(response)
        return bool(self._challenges)

    def _denial(self, refusal: RefusalError) -> PullError:
        words = f" ({refusal.text})" if refusal.text else ""
        if refusal.failure is not None:
            return refusal.failure
        if not refusal.login_sent:
            return RegistryUnavailable(
                f"{self._transport.subject} answered with status {refusal.status}{words}, and does"
                " not say how to log in."
            )
        return RegistryDenied(
            f"{self._transport.subject} refused the login{words}.",
            remedy="Check user and password. Many registries take an access token in place of the"
            " password, and only that where accounts have a second factor.",
        )
