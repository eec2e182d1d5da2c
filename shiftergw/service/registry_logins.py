"""Choose the login of a session for a registry."""

from __future__ import annotations

from shiftergw.config import Config
from shiftergw.model.requests import RegistryLogin, Session


def login_for(config: Config, session: Session, location: str) -> RegistryLogin | None:
    """Return the login for a location, if any; `default` is that for the default location.

    Users may have stored it under another spelling of the location's name.
    """
    login = session.logins.get(location) or next(
        (
            login
            for name, login in session.logins.items()
            if name != "default" and config.location_named(name) == location
        ),
        None,
    )
    if login is None and location == config.default_image_location:
        login = session.logins.get("default")
    return login
