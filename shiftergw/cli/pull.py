"""pull: request an image for one system, or for several at once, and wait for it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from twisted.internet.defer import Deferred

from shiftergw.cli import polling
from shiftergw.cli.exchange_twisted import TwistedExchange
from shiftergw.cli.exits import (
    BEST_TO_WORST,
    DONE,
    FAILURE,
    Stop,
    code_of,
    text_of,
)
from shiftergw.cli.gateways import shuffle
from shiftergw.cli.progress import Display, Line, Lines
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from shiftergw.errors import GatewayError, printable
from shiftergw.model.names import MISSING, is_image_id
from shiftergw.plumbing.gather import cancel_all
from shiftergw.states import POLLING_STATES, State

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

_WAITING = {*(state.value for state in POLLING_STATES), MISSING}


@dataclass(frozen=True, slots=True)
class PullEnd:
    """How a pull has ended for one system: exit code, a word for the display, lines to print."""

    code: int
    word: str
    image_id: str = ""
    messages: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class PullOptions:
    """What is requested for each system: an image as type and name, and whether to wait for it.

    `members` are those of the request, such as readers. `upload` sends an image of the user's own
    to the gateway first, and returns the id of the upload, or the record of the READY image if
    there is nothing to send.
    """

    image: tuple[str, str]
    members: Mapping[str, Any]
    wait: bool
    upload: (
        Callable[[Remote, Display | Line], Coroutine[Any, Any, str | Mapping[str, Any]]] | None
    ) = None


async def pull_for_all(
    reactor: Reactor, remotes: Mapping[str, Remote], options: PullOptions
) -> int:
    """Pull an image for the system or the systems of the command line; return the exit code."""
    if len(remotes) > 1:
        return await pull_for_each(remotes, reactor, options)
    (remote,) = remotes.values()
    return await pull_image(remote, reactor, options)


def remotes(exchange: TwistedExchange, settings: Settings) -> dict[str, Remote]:
    """Return the gateways by system, all in the same order: one gateway can share work."""
    systems = settings.system_names()
    if len(systems) == 1:
        return {systems[0]: Remote(exchange, settings)}
    urls = shuffle(settings.gateway_urls())
    return {
        system: Remote(
            exchange, replace(settings, systems=[system]), partial(_warn_about, system), urls
        )
        for system in systems
    }


def _warn_about(system: str, text: str) -> None:
    click.echo(f"{system}: {text}", err=True)


async def pull_image(remote: Remote, clock: Any, options: PullOptions) -> int:
    """Pull an image and wait for the end; print its id and return the exit code."""
    with Display() as display:
        record = await _last_answer(remote, clock, options, display)
    end = end_of(record)
    if end.image_id:
        click.echo(end.image_id)
    if end.messages:
        click.echo("\n".join(end.messages), err=True)
    return end.code


async def pull_for_each(remotes: Mapping[str, Remote], clock: Any, options: PullOptions) -> int:
    """Pull an image for each system and wait for all ends; print ids and errors by system.

    No system waits for another. Returns the exit code of the worst end, by `BEST_TO_WORST`.
    """
    with Lines(remotes) as lines:
        pulls = [
            Deferred.fromCoroutine(_pull_for(remote, clock, options, lines.line(system)))
            for system, remote in remotes.items()
        ]
        try:
            ends = dict(zip(remotes, [await pull for pull in pulls], strict=True))
        finally:
            cancel_all(pulls)
    for system, end in ends.items():
        if end.image_id:
            click.echo(f"{system}: {end.image_id}")
        for text in end.messages:
            click.echo(f"{system}: {text}", err=True)
    return max((end.code for end in ends.values()), key=BEST_TO_WORST.index)


async def _pull_for(remote: Remote, clock: Any, options: PullOptions, line: Line) -> PullEnd:
    try:
        record = await _last_answer(remote, clock, options, line)
    except Stop as stop:
        end = PullEnd(stop.exit_code, "NOT DONE", messages=stop.message.splitlines())
    except GatewayError as error:
        end = PullEnd(code_of(error), "NOT DONE", messages=text_of(error).splitlines())
    else:
        end = end_of(record)
        if record.get("status") in _WAITING:
            return end
    line.end(end.word, good=end.code == DONE)
    return end


async def _last_answer(
    remote: Remote, clock: Any, options: PullOptions, display: Display | Line
) -> Mapping[str, Any]:
    """Poll until the pull has ended, or ask once; show the progress, return the last answer."""
    if options.upload is None:
        record = await remote.pull(*options.image, options.members)
    else:
        upload = await options.upload(remote, display)
        if not isinstance(upload, str):
            return upload
        members = {**options.members, "upload": upload}
        options = replace(options, members=members)
        # The gateway that has the upload may be restarting.
        call = partial(remote.pull, *options.image, members, to_last=True)
        record = await polling.retry_while_silent(call, clock, display.notify)
    while options.wait and record.get("status") in _WAITING:
        _show(display, record)
        await polling.pause(clock)
        call = partial(remote.poll, *options.image, options.members, display.notify)
        record = await polling.retry_while_silent(call, clock, display.notify)
    if record.get("status") in _WAITING:
        _show(display, record)
    return record


def _show(display: Display | Line, record: Mapping[str, Any]) -> None:
    # With numbers the message changes at each poll, and the display has the numbers already.
    message = record.get("activity", record.get("status_message", ""))
    state = str(record.get("status"))
    display.stage(state if message in ("", MISSING, state) else f"{state}: {message}")
    done, total = record.get("done"), record.get("total")
    if isinstance(done, int) and isinstance(total, int):
        display.bytes(done, total)


def end_of(record: Mapping[str, Any]) -> PullEnd:
    """Return the end that the last answer to a pull means."""
    status, image_id = str(record.get("status")), record.get("id")
    if status == State.READY.value and is_image_id(image_id):
        notice = record.get("notice")
        messages = [printable(str(notice), 1000)] if notice else ()
        return PullEnd(DONE, status, str(image_id), messages)
    if status in _WAITING:
        return PullEnd(DONE, status)
    cause = record.get("cause") or f"The pull ended with {status}."
    request = record.get("request_id") and f"(request {record['request_id']})"
    lines = [printable(str(line), 1000) for line in (cause, record.get("remedy"), request) if line]
    return PullEnd(FAILURE, status, messages=lines)
