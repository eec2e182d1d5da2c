"""`login --from-docker`: store the logins that Docker or podman keeps, as `login` stores them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from shiftergw.cli.credentials import seal
from shiftergw.cli.docker_logins import (
    DockerConfig,
    DockerLogin,
    login_files,
    login_in,
    registry_host,
)
from shiftergw.cli.exits import DONE, REFUSAL, Misuse, RequestRefused
from shiftergw.cli.logins import LoginFile, check_key, home, login_text, replace_credential
from shiftergw.cli.requests import answer_of
from shiftergw.cli.settings import Settings
from shiftergw.errors import printable
from shiftergw.model.requests import IDENTITY_TOKEN_USER

_ANY_REGISTRY = "*"
"""The location of a gateway that gets images from any registry."""


@dataclass(frozen=True, slots=True)
class _LocatedLogin:
    """A login, and the location of the gateway that it is stored for."""

    location: str
    login: DockerLogin
    text: bytes


def keep_docker_logins(settings: Settings, location: str | None) -> int:
    """Store the logins for the gateway's registries, or for `location` alone; return the exit code.

    A login counts for a location if it is for the host of the location's URL, so no login reaches
    another host than before. A user who names the location decides that.
    """
    system = settings.single_system()
    if location is not None:
        check_key(system, location)
    file = LoginFile(home())
    configs = list(_configs())
    if location is None:
        hosts = _hosts_of_gateway(settings, configs)
    else:
        hosts = {location: registry_host(location)}
    logins: list[_LocatedLogin] = []
    is_complete = True
    for name, host in hosts.items():
        login, problems = login_in(configs, host)
        if login is not None:
            try:
                logins.append(_LocatedLogin(name, login, login_text(login.user, login.password)))
            except Misuse as error:
                problems = [error.message]
        for problem in problems:
            click.echo(f"The login for {printable(name)} is left out: {problem}", err=True)
            is_complete = False
    if logins:
        _store(settings, file, logins)
    elif is_complete:
        raise _no_login(configs, location, system)
    return DONE if is_complete else REFUSAL


def _configs() -> Iterator[DockerConfig]:
    """Yield the files of this user that exist; print warnings about them."""
    directory = os.environ.get("HOME")
    for path in login_files(os.environ, Path(directory) if directory else home()):
        config = DockerConfig.read(path)
        if config is None:
            continue
        if config.warning:
            click.echo(f"Warning: {config.warning}", err=True)
        yield config


def _hosts_of_gateway(settings: Settings, configs: Sequence[DockerConfig]) -> dict[str, str]:
    """Return the host of each location of the gateway that takes logins, by location."""
    registries = answer_of(settings, lambda remote: remote.registries())
    hosts = {
        registry["location"]: registry_host(registry["host"])
        for registry in registries
        if registry["location"] != _ANY_REGISTRY
    }
    if len(hosts) < len(registries):
        for host in (host for config in configs for host in config.hosts()):
            if host not in hosts.values():
                hosts[host] = host
    return hosts


def _store(settings: Settings, file: LoginFile, logins: Iterable[_LocatedLogin]) -> None:
    """Add logins to the file by one rename, and print where each comes from."""
    system = settings.single_system()
    socket = settings.munge_socket_of(system)
    changes: list[Callable[[bytes], bytes]] = []
    for stored_login in logins:
        check_key(system, stored_login.location)
        changes.append(
            partial(
                replace_credential,
                system=system,
                location=stored_login.location,
                credential=seal(stored_login.text, socket),
            )
        )

    def change(content: bytes) -> bytes:
        for replace in changes:
            content = replace(content)
        return content

    file.change(change)
    for stored_login in logins:
        user = printable(stored_login.login.user.decode("utf-8", "replace"), 60)
        if user == IDENTITY_TOKEN_USER:
            user = "an identity token"
        click.echo(
            f"The login for {stored_login.location} on {system} is kept in {file.path}: {user},"
            f" from {stored_login.login.origin}.",
            err=True,
        )


def _no_login(configs: Sequence[DockerConfig], location: str | None, system: str) -> RequestRefused:
    if not configs:
        return RequestRefused(
            "There is no file with logins of Docker or podman here: ~/.docker/config.json, or"
            " containers/auth.json in $XDG_RUNTIME_DIR. Log in by `shiftergw login`."
        )
    files = printable(", ".join(str(config.path) for config in configs), 500)
    target = (
        f"a registry of the gateway of {system}" if location is None else printable(location, 200)
    )
    return RequestRefused(f"There is no login for {target} in {files}.")
