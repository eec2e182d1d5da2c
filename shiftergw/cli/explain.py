"""explain: say what a pull of an image would do, and why it would fail."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from shiftergw.cli.answers import InvalidAnswer
from shiftergw.cli.convert import system_of
from shiftergw.cli.decoding import decode
from shiftergw.cli.exits import DONE, FAILURE, LINE_LIMIT, Misuse, NoGateway, Stop, text_of
from shiftergw.cli.images import image_of
from shiftergw.cli.login import ask_login, login_from_input
from shiftergw.cli.options import config_option, single_system_option
from shiftergw.cli.reactor import run
from shiftergw.cli.settings import Settings
from shiftergw.cli.upload_source import check_registry_image
from shiftergw.config import Config, file_of_environment
from shiftergw.errors import GatewayError, amount, printable
from shiftergw.model import ImageReference, RegistryLogin
from shiftergw.model.explanations import (
    DeliveredImage,
    ExplainRequest,
    Explanation,
    ImagePlace,
    Obstacle,
)

if TYPE_CHECKING:
    from shiftergw.cli.remote import Remote
    from shiftergw.plumbing.reactor import Reactor

INTERVAL = 0.5
"""Seconds between two polls."""

_WIDTH = 11
"""Characters of the first column."""

_ACTIONS = {
    "reuse": "does nothing: the image is delivered.",
    "prove": (
        "downloads nothing: the image is delivered, and a user who is not among its readers has to"
        " prove at the registry that they may read it."
    ),
    "wait": "waits in the queue.",
    "fail": "fails.",
}


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the explanation as JSON.")
@click.option(
    "-u", "--username", metavar="NAME", help="A login, with --config; its password is asked for."
)
@click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input, for scripts."
)
@single_system_option
@click.argument("image")
@click.pass_obj
def explain(
    settings: Settings,
    config_file: Path | None,
    as_json: bool,
    username: str | None,
    password_stdin: bool,
    image: str,
) -> None:
    """Say what a pull of IMAGE would do now, and why it would fail. No layer is downloaded.

    The gateway looks it up for you, with your logins for registries.

    With --config (or $GWCONFIG, and no --gateway) the command looks it up itself, on a machine with
    workers and as the gateway's user, whether the gateway runs or not: location, mirrors and proxy,
    the database, the cache, the system's policy and its image directory.

    Exits with 1 if a pull would wait or fail.
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
        return show(await explain_image(reactor, config, request, _notify), as_json)

    run(command)


def _ask_gateway(settings: Settings, image: str, as_json: bool) -> NoReturn:
    """Have the gateway explain a pull, print the explanation, and exit."""

    async def command(reactor: Reactor) -> int:
        # Not needed for `--help`.
        from shiftergw.cli.exchange_twisted import TwistedExchange  # noqa: PLC0415
        from shiftergw.cli.remote import Remote  # noqa: PLC0415

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


async def last_state(remote: Remote, clock: Any, image: str) -> dict[str, Any]:
    """Return the state of an explanation at its end."""
    from twisted.internet.task import deferLater  # noqa: PLC0415 - as above

    state = await remote.explain("docker", image)
    is_waiting = False
    while state["status"] in {"WAITING", "RUNNING"}:
        if state["status"] == "WAITING" and not is_waiting:
            is_waiting = True
            _notify("Waiting for the explanations of other users")
        await deferLater(clock, INTERVAL, int)
        state = await remote.explanation(state["id"])
    return state


def _notify(line: str) -> None:
    click.echo(printable(line), err=True)


def show(explanation: Explanation, as_json: bool) -> int:
    """Print an explanation; return the exit code."""
    if as_json:
        click.echo(json.dumps(explanation.to_document()))
    else:
        for line in lines_of(explanation):
            click.echo(printable(line, LINE_LIMIT))
    return FAILURE if explanation.action in {"wait", "fail"} else DONE


def _login(username: str, password_stdin: bool, image: str) -> RegistryLogin:
    content = login_from_input(username) if password_stdin else ask_login(image, username)
    try:
        return RegistryLogin.parse(content.decode())
    except UnicodeDecodeError:
        raise Misuse("User and password must be UTF-8.") from None


def lines_of(explanation: Explanation) -> Iterator[str]:
    """Yield the lines of an explanation for people."""
    user = f", login {explanation.user}" if explanation.user else ", without a login"
    yield _line("image", explanation.image)
    yield _line("system", f"{explanation.system}, {explanation.architecture}{user}")
    for place in explanation.places:
        yield _line(place.kind, _place(place))
        if place.failure:
            yield _line("", f"passed over: {place.failure}")
        for limit in place.limits:
            account = f"of {printable(limit.user)}" if limit.user else "without a login"
            yield _line("", f"{limit.text}, {account}")
    if explanation.digest:
        yield from _image_lines(explanation)
    yield from _system_lines(explanation)
    yield _line("a pull", _action(explanation))
    for obstacle in explanation.obstacles:
        yield from _obstacle_lines(obstacle)


def _system_lines(explanation: Explanation) -> Iterator[str]:
    """Yield what the system has of the image, and what its policy says."""
    policy = explanation.policy
    if policy is not None:
        verdict = "accepted" if policy.is_accepted else "refused"
        yield _line("policy", f"{verdict} by {policy.requirement}: {policy.reason}")
    if explanation.delivered_image is not None:
        yield from _delivered_lines("delivered", explanation.delivered_image)
    elif explanation.digest:
        yield _line("delivered", "no")
    if explanation.previous_image is not None:
        yield from _delivered_lines("tag now", explanation.previous_image)
    if explanation.work:
        yield _line("under way", explanation.work)


def _line(label: str, text: str) -> str:
    return f"{label:{_WIDTH}}{text}".rstrip()


def _place(place: ImagePlace) -> str:
    texts = [
        place.name,
        *([place.url] if place.url else []),
        f"repository {place.repository}",
        *([f"proxy {place.proxy}"] if place.proxy else []),
        *([f"login {printable(place.user)}"] if place.user else []),
        *(["standalone"] if place.standalone else []),
    ]
    return ", ".join(texts)


def _image_lines(explanation: Explanation) -> Iterator[str]:
    by = f", from {explanation.source}"
    if explanation.private:
        by += ", private: the registry asked for the login"
    yield _line("digest", f"{explanation.digest}{by}")
    if explanation.source_digest != explanation.digest:
        yield _line("", f"{explanation.source_digest} is what the name means: an index")
    count, size = explanation.layer_count or 0, explanation.size or 0
    rest = ""
    if explanation.missing_size is not None:
        rest = f", {amount(explanation.missing_size)} of them not in the cache"
    yield _line("layers", f"{count}, {amount(size)}{rest}")
    for layer in explanation.layers:
        presence = "in the cache" if layer.cached_size == layer.size else "to be downloaded"
        if 0 < layer.cached_size < layer.size:
            presence = f"{amount(layer.cached_size)} in the cache"
        yield _line("", f"{layer.digest} {amount(layer.size):>9} {presence}")
    if count > len(explanation.layers):
        yield _line("", f"and {count - len(explanation.layers)} more")


def _delivered_lines(label: str, image: DeliveredImage) -> Iterator[str]:
    texts = [
        image.id,
        *([] if image.size is None else [amount(image.size)]),
        *(["private"] if image.private else []),
        *([] if image.last_pull is None else [f"last pulled {_time(image.last_pull)}"]),
    ]
    yield _line(label, ", ".join(texts))
    if image.seconds:
        stages = ", ".join(f"{stage} {seconds:g} s" for stage, seconds in image.seconds.items())
        yield _line("", f"that took {sum(image.seconds.values()):.1f} s ({stages})")


def _action(explanation: Explanation) -> str:
    if explanation.action != "build":
        return _ACTIONS[explanation.action]
    download = f"downloads {amount(explanation.missing_size or 0)}"
    convert = "" if explanation.is_converted else " converts the image,"
    return f"{download},{convert} and delivers it to {explanation.directory}."


def _obstacle_lines(obstacle: Obstacle) -> Iterator[str]:
    until = ""
    if obstacle.retry_at is not None:
        until = f"Until {_time(obstacle.retry_at)}, for {obstacle.reason}: "
    yield _line("because", f"{until}{obstacle.what}")
    if obstacle.detail:
        yield _line("", obstacle.detail)
    if obstacle.remedy:
        yield _line("", f"→ {obstacle.remedy}")


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
