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
from shiftergw.cli.progress import Display, Output
from shiftergw.cli.progress_rows import Row, Work
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
    """How a pull has ended for one system: exit code, a word for the display, lines to print.

    `status` is that of the last answer, "" if there was none.
    """

    code: int
    word: str
    image_id: str = ""
    messages: Sequence[str] = ()
    status: str = ""

    @classmethod
    def from_error(cls, error: Stop | GatewayError) -> PullEnd:
        """Return the end of a pull of which no gateway could tell the end."""
        if isinstance(error, Stop):
            return cls(error.exit_code, "Not done", messages=error.message.splitlines())
        return cls(code_of(error), "Not done", messages=text_of(error).splitlines())

    def show(self, row: Row) -> None:
        """Show the end in the row of the pull."""
        members = {
            "status": self.status,
            "id": self.image_id,
            "exit_code": self.code,
            "messages": list(self.messages),
        }
        known_members = {name: value for name, value in members.items() if value not in ("", [])}
        row.end(self.word, is_complete=self.code == DONE, members=known_members)


@dataclass(frozen=True, slots=True)
class PullOptions:
    """What is requested for each system: an image as type and name, and whether to wait for it.

    `members` are those of the request, such as readers. `upload` sends an image of the user's own
    to the gateway first, and returns the id of the upload, or the record of the READY image if
    there is nothing to send. `output` says how the progress is shown, and the ends.
    """

    image: tuple[str, str]
    members: Mapping[str, Any]
    wait: bool
    upload: Callable[[Remote, Row], Coroutine[Any, Any, str | Mapping[str, Any]]] | None = None
    output: Output = Output.PEOPLE

    @property
    def name(self) -> str:
        """Return type and name of the image."""
        return ":".join(self.image)


async def pull_for_all(
    reactor: Reactor, remotes: Mapping[str, Remote], options: PullOptions
) -> int:
    """Pull an image for the system or the systems of the command line; return the exit code."""
    if len(remotes) > 1:
        return await pull_for_each(remotes, reactor, options)
    ((system, remote),) = remotes.items()
    return await pull_image(remote, reactor, options, system)


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


async def pull_image(remote: Remote, clock: Any, options: PullOptions, system: str = "") -> int:
    """Pull an image and wait for the end; print its id and return the exit code."""
    with Display([Work(options.name, system)], options.output, seconds=clock.seconds) as display:
        (row,) = display.rows
        try:
            record = await _last_answer(remote, clock, options, row)
        except (Stop, GatewayError) as error:
            PullEnd.from_error(error).show(row)
            raise
        end = end_of(record)
        if record.get("status") not in _WAITING:
            end.show(row)
    if options.output is Output.EVENTS:
        return end.code
    if end.image_id:
        click.echo(end.image_id)
    if end.messages:
        click.echo("\n".join(end.messages), err=True)
    return end.code


async def pull_for_each(remotes: Mapping[str, Remote], clock: Any, options: PullOptions) -> int:
    """Pull an image for each system and wait for all ends; print ids and errors by system.

    No system waits for another. Returns the exit code of the worst end, by `BEST_TO_WORST`.
    """
    works = [Work(options.name, system) for system in remotes]
    with Display(works, options.output, seconds=clock.seconds) as display:
        pulls = [
            Deferred.fromCoroutine(_pull_for(remote, clock, options, row))
            for remote, row in zip(remotes.values(), display.rows, strict=True)
        ]
        try:
            ends = dict(zip(remotes, [await pull for pull in pulls], strict=True))
        finally:
            cancel_all(pulls)
    if options.output is not Output.EVENTS:
        for system, end in ends.items():
            if end.image_id:
                click.echo(f"{system}: {end.image_id}")
            for text in end.messages:
                click.echo(f"{system}: {text}", err=True)
    return max((end.code for end in ends.values()), key=BEST_TO_WORST.index)


async def _pull_for(remote: Remote, clock: Any, options: PullOptions, row: Row) -> PullEnd:
    try:
        record = await _last_answer(remote, clock, options, row)
    except (Stop, GatewayError) as error:
        end = PullEnd.from_error(error)
    else:
        end = end_of(record)
        if record.get("status") in _WAITING:
            return end
    end.show(row)
    return end


async def _last_answer(
    remote: Remote, clock: Any, options: PullOptions, row: Row
) -> Mapping[str, Any]:
    """Poll until the pull has ended, or ask once; show the progress, return the last answer."""
    if options.upload is None:
        record = await remote.pull(*options.image, options.members)
    else:
        upload = await options.upload(remote, row)
        if not isinstance(upload, str):
            return upload
        members = {**options.members, "upload": upload}
        options = replace(options, members=members)
        # The gateway that has the upload may be restarting.
        call = partial(remote.pull, *options.image, members, to_last=True)
        record = await polling.retry_while_silent(call, clock, row.notify)
    while options.wait and record.get("status") in _WAITING:
        row.show(record)
        await polling.pause(clock)
        call = partial(remote.poll, *options.image, options.members, row.notify)
        record = await polling.retry_while_silent(call, clock, row.notify)
    if record.get("status") in _WAITING:
        row.show(record)
    return record


def end_of(record: Mapping[str, Any]) -> PullEnd:
    """Return the end that the last answer to a pull means."""
    status, image_id = str(record.get("status")), record.get("id")
    if status == State.READY.value and is_image_id(image_id):
        notice = record.get("notice")
        messages = [printable(str(notice), 1000)] if notice else ()
        return PullEnd(DONE, "Done", str(image_id), messages, status)
    if status in _WAITING:
        return PullEnd(DONE, "Not done", status=status)
    cause = record.get("cause") or f"The pull ended with {status}."
    request = record.get("request_id") and f"(request {record['request_id']})"
    lines = [printable(str(line), 1000) for line in (cause, record.get("remedy"), request) if line]
    return PullEnd(FAILURE, "Failed", messages=lines, status=status)
