"""Port to what tries a user's login at a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shiftergw.model.requests import RegistryLogin


class LoginChecker(Protocol):
    """Tries logins at registries."""

    async def check_login(self, location: str, login: RegistryLogin) -> bool:
        """Return whether a registry has asked for the login, and taken it.

        False means that it asks for none at its root, so nothing is known. Raises `RegistryDenied`
        if it refuses the login, and another `PullError` if it cannot be asked now.
        """
        ...
