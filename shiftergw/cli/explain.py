"""explain: say what a pull of an image would do, and why it would fail."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from shiftergw.cli.answers import InvalidAnswer
from shiftergw.cli.decoding import decode
from shiftergw.cli.exits import (
    DONE,
    FAILURE,
    LINE_LIMIT,
    Misuse,
    NoGateway,
    RequestRefused,
    Stop,
    text_of,
)
from shiftergw.cli.explanation_text import lines_of
from shiftergw.cli.image_names import image_of
from shiftergw.cli.login import ask_login, login_from_input
from shiftergw.cli.options import complete_images, config_option, single_system_option
from shiftergw.cli.settings import Settings
from shiftergw.cli.upload_source import check_registry_image
from shiftergw.errors import GatewayError, duration, printable
from shiftergw.model.explanations import (
    EXPLANATION_SECONDS,
    MOST_EXPLANATIONS,
    ExplainRequest,
    Explanation,
)
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin

if TYPE_CHECKING:
    from shiftergw.cli.remote import Remote
    from shiftergw.plumbing.reactor import Reactor

SPARE_SECONDS = 60.0
"""Seconds in which a gateway answers beside those of its explanations."""


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the explanation as JSON.")
@click.option(
    "-u",
    "--username",
    metavar="NAME",
    help="The user's login at the registry, with --config; asks for the password.",
)
@click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input, for scripts."
)
@single_system_option
@click.argument("image", shell_complete=complete_images)
@click.pass_obj
def explain(
    settings: Settings,
    config_file: Path | None,
    as_json: bool,
    username: str | None,
    password_stdin: bool,
    image: str,
) -> None:
    """Say what a pull of IMAGE would do now, and why it would wait or fail. No layer is downloaded.

    The gateway looks it up for you: where the image is looked for, with your login there if you
    have one (`shiftergw login`), its layers, the policy of the system, and what is delivered.

    Operators: with --config (or $GWCONFIG, and no --gateway) the command looks it up without the
    gateway, which need not run. Run it on a machine with workers, as the gateway's user. It shows
    what users do not see: proxies, addresses of mirrors, paths, and details of errors.

    Exits with 0 if the pull would succeed, with 1 if it would wait or fail, or if that cannot be
    said because something did not answer.
    """
    check_registry_image(image)
    itype, name = image_of(image, settings.default_type())
    if itype != "docker":
        raise Misuse(f"Images of the type {itype} come from no registry: there is nothing to ask.")
    if password_stdin and username is None:
        raise Misuse("--password-stdin needs --username NAME.")
    is_local = "GWCONFIG" in os.environ or "CONFIG_PATH" in os.environ
    if config_file is None and (settings.gateways or not is_local):
        if username is not None:
            raise Misuse(
                "The gateway uses the logins of `shiftergw login`: --username is for --config."
            )
        _ask_gateway(settings, name, as_json)
    # Not needed for `--help`, nor by a shell that completes the name of an image.
    from shiftergw.cli.convert import system_of  # noqa: PLC0415
    from shiftergw.cli.reactor import run  # noqa: PLC0415
    from shiftergw.config import Config, file_of_environment  # noqa: PLC0415

    try:
        loaded_config = Config.load(config_file or file_of_environment(os.environ), os.environ)
        reference = ImageReference.parse(name)
    except GatewayError as error:
        raise Misuse(text_of(error)) from error
    config = loaded_config.config
    system = system_of(config, settings.single_system() if settings.systems else None)
    login = None if username is None else _login(username, password_stdin, name)

    async def command(reactor: Reactor) -> int:
        # Not needed for `--help`.
        from shiftergw.app.explain import explain_image  # noqa: PLC0415

        request = ExplainRequest(reference, system, login)
        return show(await explain_image(reactor, config, request, _Notices().show), as_json)

    run(command)


def _ask_gateway(settings: Settings, image: str, as_json: bool) -> NoReturn:
    """Have the gateway explain a pull, print the explanation, and exit."""
    # Not needed for `--help`.
    from shiftergw.cli.exchange_twisted import TwistedExchange  # noqa: PLC0415
    from shiftergw.cli.reactor import run  # noqa: PLC0415
    from shiftergw.cli.remote import Remote  # noqa: PLC0415

    async def command(reactor: Reactor) -> int:
        state = await last_state(Remote(TwistedExchange(reactor), settings), reactor, image)
        return show(explanation_of(state), as_json)

    run(command)


class ExplanationFailed(Stop):
    """The gateway could not explain a pull."""

    exit_code = FAILURE


def explanation_of(state: Mapping[str, Any]) -> Explanation:
    """Return the explanation in a gateway's last answer; raise `Stop` if there is none."""
    if state["status"] == "FAILURE":
        texts = (state.get("cause") or "The gateway did not explain it.", state.get("remedy"))
        lines = [printable(str(text), LINE_LIMIT) for text in texts if text]
        raise ExplanationFailed("\n".join(lines))
    try:
        return decode(Explanation, state.get("explanation"))
    except InvalidAnswer:
        raise NoGateway("The gateway sent an explanation that is not understood.") from None


class _Notices:
    """Prints lines on standard error, and the same line only once in a row."""

    def __init__(self) -> None:
        self._last_line = ""

    def show(self, line: str) -> None:
        if line != self._last_line:
            self._last_line = line
            click.echo(printable(line, LINE_LIMIT), err=True)


async def last_state(remote: Remote, clock: Any, image: str) -> dict[str, Any]:
    """Return the state of an explanation at its end.

    A gateway that is silent or restarts has forgotten its explanations, so the request is sent once
    more, to any gateway, if polls fail. Raises `Stop` if they fail again, or if the gateway takes
    longer than it needs for as many explanations as it accepts.
    """
    # Not needed for `--help`.
    from shiftergw.cli import polling  # noqa: PLC0415

    limit = MOST_EXPLANATIONS * EXPLANATION_SECONDS + SPARE_SECONDS
    deadline = clock.seconds() + limit
    notices = _Notices()
    state = await remote.explain("docker", image)
    is_second_request = False
    while state["status"] in {"WAITING", "RUNNING"}:
        if clock.seconds() >= deadline:
            raise NoGateway(
                f"The gateway has not explained the pull within {duration(limit)}."
                " Tell the site's support: its explanations hang."
            )
        if state["status"] == "WAITING":
            notices.show("Waiting for the explanations of other users.")
        await polling.pause(clock)
        poll = partial(remote.explanation, state["id"])
        try:
            state = await polling.retry_while_silent(poll, clock, notices.show)
        except (NoGateway, RequestRefused):
            if is_second_request:
                raise
            is_second_request = True
            state = await remote.explain("docker", image)
    return state


def show(explanation: Explanation, as_json: bool) -> int:
    """Print an explanation; return the exit code: 0 if a pull would succeed."""
    if as_json:
        click.echo(json.dumps(explanation.to_document()))
    else:
        for line in lines_of(explanation):
            click.echo(printable(line, LINE_LIMIT))
    return FAILURE if explanation.action in {"wait", "fail", "unknown"} else DONE


def _login(username: str, password_stdin: bool, image: str) -> RegistryLogin:
    content = login_from_input(username) if password_stdin else ask_login(image, username)
    try:
        return RegistryLogin.parse(content.decode())
    except UnicodeDecodeError:
        raise Misuse("User and password must be UTF-8.") from None
