"""Read the logins that Docker, podman, skopeo and buildah keep for a user.

Their files have one form (docker-login(1), containers-auth.json(5)): `auths` has logins by
server, `credHelpers` names a credential helper for a server, and `credsStore` one for all others.
Everything here blocks.
"""

from __future__ import annotations

import json
import os
import re
import stat
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shiftergw.cli.credential_helpers import HelperFailed, ask_helper
from shiftergw.cli.exits import Misuse
from shiftergw.errors import printable
from shiftergw.model.names import DOCKER_HUB_HOSTS, DOCKER_IO
from shiftergw.model.requests import IDENTITY_TOKEN_USER
from shiftergw.plumbing.files import read_whole

FILE_LIMIT = 1 << 20
"""Bytes of the longest file."""

HUB_SERVER = "https://index.docker.io/v1/"
"""What Docker calls Docker Hub in its file, and what it asks credential helpers for."""

_SCHEME = re.compile("(https?)://", re.IGNORECASE)
_API = frozenset({"", "v1", "v2"})
"""Paths that old versions of Docker append to the host; others are namespaces (podman)."""

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_READABLE = stat.S_IRWXG | stat.S_IRWXO


class UnusableLogin(Exception):
    """There is a login for a registry, but the gateway cannot use it; the text says why."""


@dataclass(frozen=True, slots=True)
class DockerLogin:
    """A login for a registry, and the file or helper that it comes from.

    The user of an identity token is `IDENTITY_TOKEN_USER`, as helpers write it.
    """

    user: bytes
    password: bytes = field(repr=False)
    origin: str


def registry_host(text: str) -> str:
    """Return the registry of a server's name, in the one form in which names are compared.

    Removes scheme, path, and the default port; every name of Docker Hub becomes `docker.io`.
    """
    return _split(text)[0]


def _split(text: str) -> tuple[str, str]:
    """Return the registry of a server's name, and the path behind it."""
    match = _SCHEME.match(text)
    rest = text[match.end() :] if match else text
    host, _, path = rest.partition("/")
    host = host.lower()
    is_plain = match is not None and match[1].lower() == "http"
    host = host.removesuffix(":80" if is_plain else ":443")
    if host in DOCKER_HUB_HOSTS:
        host = DOCKER_IO
    return host, path.strip("/")


def login_files(environ: Mapping[str, str], home: Path) -> list[Path]:
    """Return the files that may hold logins, the one that counts most first.

    Raises `Misuse` if `REGISTRY_AUTH_FILE` names a file that does not exist.
    """
    files = []
    if environ.get("REGISTRY_AUTH_FILE"):
        file = Path(environ["REGISTRY_AUTH_FILE"])
        if not file.exists():
            raise Misuse(
                f"REGISTRY_AUTH_FILE names {printable(str(file), 200)}, which does not exist."
            )
        files.append(file)
    files.append(Path(environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json")
    if environ.get("XDG_RUNTIME_DIR"):
        files.append(Path(environ["XDG_RUNTIME_DIR"], "containers", "auth.json"))
    directory = environ.get("XDG_CONFIG_HOME") or home / ".config"
    files.append(Path(directory, "containers", "auth.json"))
    return list(dict.fromkeys(files))


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """The content of one file; `warning` is about its permissions, or ""."""

    path: Path
    entries: Mapping[str, Mapping[str, Any]]
    helpers: Mapping[str, str]
    store: str
    warning: str = ""

    @classmethod
    def read(cls, path: Path) -> DockerConfig | None:
        """Read a file; return None if there is none.

        Raises `Misuse` for a file that belongs to somebody else, that others can write, or that
        does not have the right form. No message contains anything of the file.
        """
        name = printable(str(path), 200)
        try:
            content, state = read_whole(path, FILE_LIMIT)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Misuse(f"{name} cannot be read: {error.strerror}.") from error
        if state.st_uid != os.getuid():
            raise Misuse(f"{name} belongs to somebody else: its logins are not used.")
        if state.st_mode & _WRITABLE:
            raise Misuse(
                f"{name} can be written by others, who may have changed its logins. Look at it,"
                f" then run: chmod 600 {name}"
            )
        document = _document(content)
        if document is None:
            raise Misuse(f"{name} is not a JSON file as Docker or podman writes it.")
        warning = ""
        if state.st_mode & _READABLE:
            mode = stat.S_IMODE(state.st_mode)
            warning = (
                f"the permissions 0{mode:o} of {name} are too open: others may know your logins."
                f" Run: chmod 600 {name}"
            )
        return cls(path, *document, warning)

    def hosts(self) -> Iterator[str]:
        """Yield the registries for which the file may lead to a login."""
        yield from map(registry_host, (*self.entries, *self.helpers))

    def login_for(self, host: str) -> DockerLogin | None:
        """Return the login for a registry, a result of `registry_host`; None if there is none.

        A credential helper counts more than the file itself, as for Docker. Raises `UnusableLogin`.
        """
        helper = next(
            (name for key, name in self.helpers.items() if registry_host(key) == host), self.store
        )
        if helper:
            login = self._ask(helper, host)
            if login is not None:
                return login
        return self._stored_login(host)

    def _ask(self, helper: str, host: str) -> DockerLogin | None:
        servers = [key for key in (*self.entries, *self.helpers) if registry_host(key) == host]
        for server in dict.fromkeys([*servers, HUB_SERVER if host == DOCKER_IO else host]):
            try:
                login = ask_helper(helper, server)
            except HelperFailed as error:
                raise UnusableLogin(f"{error}.") from error
            if login is not None:
                return DockerLogin(login.user, login.secret, f"docker-credential-{helper}")
        return None

    def _stored_login(self, host: str) -> DockerLogin | None:
        parts: dict[str, DockerLogin] = {}
        for key, entry in self.entries.items():
            registry, path = _split(key)
            login = self._login_of(key, entry) if registry == host else None
            if login is None:
                continue
            if path in _API:
                return login
            parts[key] = login
        if len({(login.user, login.password) for login in parts.values()}) > 1:
            names = printable(", ".join(parts), 200)
            raise UnusableLogin(
                f"There are logins for parts of it ({names}), and the gateway takes one login for a"
                " registry."
            )
        return next(iter(parts.values()), None)

    def _login_of(self, key: str, entry: Mapping[str, Any]) -> DockerLogin | None:
        """Return the login in an entry; None if the entry only says that a helper has one."""
        origin = printable(str(self.path), 200)
        user, password = entry.get("username"), entry.get("password")
        token = entry.get("identitytoken")
        text = entry.get("auth")
        try:
            if token:
                # Docker writes `auth`, too, with a user but without a password.
                if isinstance(token, str):
                    return DockerLogin(IDENTITY_TOKEN_USER.encode(), token.encode(), origin)
            elif isinstance(text, str) and text:
                login = b64decode(text, validate=True)
                user_bytes, colon, password_bytes = login.partition(b":")
                if colon:
                    return DockerLogin(user_bytes, password_bytes.rstrip(b"\0"), origin)
            elif isinstance(user, str) and isinstance(password, str) and user:
                return DockerLogin(user.encode(), password.encode(), origin)
            elif not text and not user:
                return None
        except ValueError:
            pass
        raise UnusableLogin(
            f"The entry {printable(key, 100)!r} in {origin} is not a login as Docker writes it."
        )


def _document(
    content: bytes,
) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[str, str], str] | None:
    """Return `auths`, `credHelpers` and `credsStore` of a file; None if it has another form."""
    try:
        document = json.loads(content) if content.strip() else {}
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    entries = document.get("auths") or {}
    helpers = document.get("credHelpers") or {}
    store = document.get("credsStore") or ""
    if not (isinstance(entries, dict) and isinstance(helpers, dict) and isinstance(store, str)):
        return None
    if not all(isinstance(name, str) for name in helpers.values()):
        return None
    return (
        {key: entry for key, entry in entries.items() if isinstance(entry, dict)},
        helpers,
        store,
    )


def login_in(
    configs: Sequence[DockerConfig], host: str
) -> tuple[DockerLogin | None, Sequence[str]]:
    """Return the login for a registry in the first file that has a usable one.

    Without one, the second value says why each login that exists is unusable.
    """
    problems = []
    for config in configs:
        try:
            login = config.login_for(host)
        except UnusableLogin as error:
            problems.append(str(error))
            continue
        if login is not None:
            return login, ()
    return None, list(dict.fromkeys(problems))
