"""Check files that contain secrets, and for which user the result of the check is valid."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from shiftergw.app.checkup.finding import Finding, Level, failure
from shiftergw.config import Config, LoadedConfig
from shiftergw.errors import ConfigurationError
from shiftergw.plumbing.seal import Seal


def secrets(loaded_config: LoadedConfig) -> Iterator[Finding]:
    """Yield the findings about the caller, the configuration file and the secret key."""
    yield from _caller(loaded_config)
    yield from _configuration_file(loaded_config)
    yield _secret_key(loaded_config.config)


def _caller(loaded_config: LoadedConfig) -> Iterator[Finding]:
    """Warn if root runs the check for a service that runs as another user.

    Root may read and write everywhere, so for root every directory passes. The owner of
    StateDirectory is the service's user: the gateway takes no other.
    """
    if os.geteuid() != 0:
        return
    command = "shiftergw check" + (f" --config {loaded_config.file}" if loaded_config.file else "")
    try:
        owner = loaded_config.config.state_directory.stat().st_uid
    except OSError:
        yield Finding(
            "user",
            Level.WARNING,
            "root runs this check. Files and directories were tried as root, not as the"
            " gateway's user",
            f"If the gateway runs as another user: sudo -H -u USER {command}",
        )
        return
    if owner == 0:
        return
    name = _user_name(owner)
    yield Finding(
        "user",
        Level.WARNING,
        f"root runs this check, but StateDirectory belongs to {name}. Files and directories were"
        f" tried as root, not as {name}",
        f"Run it as the gateway's user: sudo -H -u {name} {command}",
    )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"'#{uid}'"


def _configuration_file(loaded_config: LoadedConfig) -> Iterator[Finding]:
    """Warn if every user of this machine can read the passwords of the configuration."""
    keys = passwords_in(loaded_config.config)
    if loaded_config.file is not None and keys and readable_by_all(loaded_config.file):
        yield Finding(
            "configuration file",
            Level.WARNING,
            f"every user of this machine can read {loaded_config.file} and so the password in"
            f" {' and '.join(keys)}",
            "Leave it to root and to the group of the gateway's user:"
            f" chgrp GROUP {loaded_config.file}; chmod 640 {loaded_config.file}. Then change the"
            " password.",
        )


def passwords_in(config: Config) -> list[str]:
    """Return the keys of the configuration whose URLs contain a password."""
    urls = {"MongoDBURI": config.mongodb_uri, "BrokerURL": config.broker_url}
    return [key for key, url in urls.items() if url is not None and _has_password(url)]


def _has_password(url: str) -> bool:
    authority = url.partition("://")[2] or url
    user, at, _ = authority.partition("@")
    return bool(at) and bool(user.partition(":")[2])


def readable_by_all(path: Path) -> bool:
    """Return whether users without any rights of their own can read a file."""
    try:
        path = path.resolve(strict=True)
        return bool(path.stat().st_mode & stat.S_IROTH) and all(
            directory.stat().st_mode & stat.S_IXOTH for directory in path.parents
        )
    except OSError:
        return False


def _secret_key(config: Config) -> Finding:
    """Check that the gateway can read its secret key, or create it."""
    path = config.secret_key_file
    try:
        Seal.check_file(path, {config.state_directory})
    except ConfigurationError as error:
        return failure("SecretKeyFile", error)
    if not os.path.lexists(path):
        return Finding("SecretKeyFile", Level.OK, f"{path} will be made")
    return Finding("SecretKeyFile", Level.OK, str(path))
