"""login and logout: store and remove the user's logins at registries."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import click

from shiftergw.cli.credentials import seal, text_of_login
from shiftergw.cli.exits import Misuse, RequestRefused, Stop, report_interruption
from shiftergw.cli.logins import (
    DEFAULT,
    PASSWORD_LIMIT,
    LoginFile,
    check_key,
    check_user,
    credentials_of,
    home,
    login_text,
    replace_credential,
)
from shiftergw.cli.options import single_system_option
from shiftergw.cli.prompts import terminal
from shiftergw.cli.remote import Remote
from shiftergw.cli.requests import answer_of
from shiftergw.cli.settings import Settings
from shiftergw.errors import printable
from shiftergw.model.names import registry_name
from shiftergw.plumbing.signals import InterruptedBySignal

TEXT_LIMIT = 1000
"""Characters of what a registry says of a login."""


@click.command()
@click.argument("location", default=DEFAULT)
@click.option("-u", "--username", metavar="NAME", help="Your name there; asked for without it.")
@click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input, for scripts."
)
@click.option("--no-check", is_flag=True, help="Keep the login without trying it.")
@click.option(
    "--from-docker", is_flag=True, help="Take the logins that Docker or podman keeps for you."
)
@single_system_option
@click.pass_obj
def login(
    settings: Settings,
    location: str,
    username: str | None,
    password_stdin: bool,
    no_check: bool,
    from_docker: bool,
) -> None:
    """Keep your login for a registry, for this client and for `shifterimg`.

    LOCATION is the registry as the gateway names it, such as `ghcr.io`; without it the login is
    for the gateway's default registry. User and password are asked for on the terminal. Scripts
    give `--username NAME --password-stdin`. The gateway tries the login at the registry first: a
    login that the registry refuses is not kept.

    With `--from-docker` the logins come from the files of Docker and podman, and from their
    credential helpers: all those for registries of the gateway, or the one for LOCATION.
    """
    system = settings.single_system()
    location = location_of(location)
    if from_docker:
        if username is not None or password_stdin:
            raise Misuse("--from-docker takes user and password from Docker: give no others.")
        from shiftergw.cli.from_docker import keep_docker_logins  # noqa: PLC0415 - seldom

        sys.exit(keep_docker_logins(settings, None if location == DEFAULT else location))
    check_key(system, location)
    file = LoginFile(home())
    _read(file)  # to report what is wrong with it before the user types a password
    try:
        content = login_from_input(username) if password_stdin else ask_login(location, username)
    except InterruptedBySignal:
        report_interruption("\nInterrupted: nothing is kept.")
        raise
    notice = "" if no_check else check_login(settings, location, content)
    credential = seal(content, settings.munge_socket_of(system))
    file.change(
        partial(replace_credential, system=system, location=location, credential=credential)
    )
    click.echo(f"The login for {location} on {system} is kept in {file.path}.", err=True)
    if notice:
        click.echo(notice, err=True)


def check_login(settings: Settings, location: str, content: bytes) -> str:
    """Have the gateway try a login; return what to tell the user.

    Raises `RequestRefused` if the registry refuses the login. Where it cannot be tried, the text
    says so.
    """

    async def ask(remote: Remote) -> dict[str, Any]:
        return await remote.check_login(location, text_of_login(content))

    try:
        verdict = answer_of(settings, ask)
    except Stop as error:
        return f"It was not tried: {error.message}"
    result = verdict.get("result")
    texts = [printable(str(verdict.get(name) or ""), TEXT_LIMIT) for name in ("cause", "remedy")]
    text = " ".join(filter(None, texts))
    if result == "refused":
        raise RequestRefused(f"{text} Nothing is kept; --no-check keeps the login all the same.")
    if result == "accepted":
        return "The registry has accepted it."
    if result == "not-asked":
        return "It was not tried: the registry asks for a login only where an image needs one."
    return f"It was not tried: {text or 'the gateway does not say why.'}"


def location_of(text: str) -> str:
    """Return a registry's name as it is in image names: without `https://` and final slash."""
    return registry_name(text).rstrip("/")


def _read(file: LoginFile) -> bytes:
    content = file.read()
    if file.warning:
        click.echo(f"Warning: {file.warning}", err=True)
    return content


def login_from_input(username: str | None) -> bytes:
    """Return `user:password` with the password from standard input."""
    if username is None:
        raise _no_terminal()
    if sys.stdin.isatty():
        raise Misuse("Standard input is a terminal: leave --password-stdin out to be asked.")
    password = sys.stdin.buffer.read(PASSWORD_LIMIT + 1)
    return login_text(os.fsencode(username), password.removesuffix(b"\n").removesuffix(b"\r"))


def ask_login(location: str, username: str | None) -> bytes:
    """Ask for user and password on the terminal; return `user:password`."""
    with terminal() as ask:
        if ask is None:
            raise _no_terminal()
        user = ask.line(f"{location} user: ") if username is None else os.fsencode(username)
        check_user(user.strip())
        return login_text(user, ask.secret(f"{location} password: "))


def _no_terminal() -> Misuse:
    return Misuse(
        "There is no terminal to ask on: give --username NAME --password-stdin, and the password"
        " on standard input. Nothing is kept."
    )


@click.command()
@click.argument("location", default=DEFAULT)
@single_system_option
@click.pass_obj
def logout(settings: Settings, location: str) -> None:
    """Forget your login for LOCATION (without it, for the gateway's default registry)."""
    system = settings.single_system()
    check_key(system, location)
    file = LoginFile(home())
    logins = credentials_of(_read(file), system)
    if location not in logins:  # `shifterimg` may have stored a name with a prefix
        location = location_of(location)
    if location not in logins:
        raise RequestRefused(f"There is no login for {location} on {system} in {file.path}.")
    file.change(partial(replace_credential, system=system, location=location, credential=None))
    click.echo(f"The login for {location} on {system} is forgotten.", err=True)
