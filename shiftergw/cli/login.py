"""login and logout: what a user lets the gateway log in to registries with."""

from __future__ import annotations

import sys
from functools import partial

import click

from shiftergw.cli.credentials import sealed
from shiftergw.cli.exits import INTERRUPTED, Misused, Refused
from shiftergw.cli.logins import DEFAULT, LoginFile, check_key, home, kept, replaced
from shiftergw.cli.options import of_one_system
from shiftergw.cli.prompts import prompts
from shiftergw.cli.settings import Settings


@click.command()
@click.argument("location", default=DEFAULT)
@of_one_system
@click.pass_obj
def login(settings: Settings, location: str) -> None:
    """Keep your login for a registry, for this client and for `shifterimg`.

    LOCATION is the registry as the gateway names it, such as `ghcr.io`; without it the login is
    for the gateway's default registry. User and password are asked for on the terminal, or where
    there is none read from standard input, a line each.
    """
    system = settings.found_system()
    check_key(system, location)
    file = LoginFile(home())
    _read(file)  # what is wrong with it shall be told before anybody types a password
    try:
        content = _ask(location)
    except KeyboardInterrupt:
        click.echo("\nInterrupted: nothing is kept.", err=True)
        sys.exit(INTERRUPTED)
    credential = sealed(content, settings.munge_socket_of(system))
    file.change(partial(replaced, system=system, location=location, credential=credential))
    click.echo(f"The login for {location} on {system} is kept in {file.path}.", err=True)


def _read(file: LoginFile) -> bytes:
    content = file.read()
    if file.warning:
        click.echo(f"Warning: {file.warning}", err=True)
    return content


def _ask(location: str) -> bytes:
    """Return `user:password`; raise `Misused` for what cannot be one."""
    with prompts() as ask:
        user = ask.line(f"{location} user: ").strip()
        if not user or b":" in user or b"\0" in user:
            raise Misused("A user has a name, without ':'. Nothing is kept.")
        password = ask.secret(f"{location} password: ")
    if not password or b"\0" in password:
        raise Misused("There is no password. Nothing is kept.")
    return user + b":" + password


@click.command()
@click.argument("location", default=DEFAULT)
@of_one_system
@click.pass_obj
def logout(settings: Settings, location: str) -> None:
    """Forget your login for LOCATION (without it, for the gateway's default registry)."""
    system = settings.found_system()
    check_key(system, location)
    file = LoginFile(home())
    if location not in kept(_read(file), system):
        raise Refused(f"There is no login for {location} on {system} in {file.path}.")
    file.change(partial(replaced, system=system, location=location, credential=None))
    click.echo(f"The login for {location} on {system} is forgotten.", err=True)
