"""pull: request images for one system, or for several at once, and wait for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click
from twisted.internet.defer import Deferred, DeferredSemaphore

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

T = TypeVar("T")

MOST_REQUESTS = 8
"""Requests of a command about one system that are sent at the same time."""

WAITING = {*(state.value for state in POLLING_STATES), MISSING}
"""The states of a record whose pull has not ended."""


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
    """What is requested of each system: an image as type and name, and whether to wait for it.

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


@dataclass(frozen=True, slots=True)
class PollPace:
    """How fast the requests of `pulls` pulls follow each other, and how many are sent at a time."""

    pulls: int = 1
    turns: DeferredSemaphore = field(default_factory=lambda: DeferredSemaphore(MOST_REQUESTS))

    async def in_turn(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the result of a request, which waits while too many others are being answered."""
        async with self.turns:
            return await call()


async def pull_for_all(
    reactor: Reactor, remotes: Mapping[str, Remote], pulls: Sequence[PullOptions]
) -> int:
    """Pull images for the system or the systems of the command line; return the exit code."""
    if len(remotes) > 1 or len(pulls) > 1:
        return await pull_for_each(remotes, reactor, pulls)
    ((system, remote),) = remotes.items()
    return await pull_image(remote, reactor, pulls[0], system)


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
            record = await _last_answer(remote, clock, options, row, PollPace())
        except (Stop, GatewayError) as error:
            PullEnd.from_error(error).show(row)
            raise
        end = end_of(record)
        if record.get("status") not in WAITING:
            end.show(row)
    if options.output is Output.EVENTS:
        return end.code
    if end.image_id:
        click.echo(end.image_id)
    if end.messages:
        click.echo("\n".join(end.messages), err=True)
    return end.code


async def pull_for_each(
    remotes: Mapping[str, Remote], clock: Any, pulls: Sequence[PullOptions]
) -> int:
    """Pull each image for each system and wait for all ends; print ids and errors by their labels.

    No system waits for another. All images are shown in the same way. Returns the exit code of the
    worst end, by `BEST_TO_WORST`.
    """
    requests = [(options, system) for options in pulls for system in remotes]
    paces = {system: PollPace(len(requests)) for system in remotes}
    works = [Work(options.name, system) for options, system in requests]
    output = pulls[0].output
    with Display(works, output, seconds=clock.seconds) as display:
        running = [
            Deferred.fromCoroutine(_pull_for(remotes[system], clock, options, row, paces[system]))
            for (options, system), row in zip(requests, display.rows, strict=True)
        ]
        try:
            ends = [await pull for pull in running]
        finally:
            cancel_all(running)
    if output is not Output.EVENTS:
        _print_ends([(row.label, end) for row, end in zip(display.rows, ends, strict=True)])
    return max((end.code for end in ends), key=BEST_TO_WORST.index)


def _print_ends(ends: Sequence[tuple[str, PullEnd]]) -> None:
    """Print ids and errors of pulls with their labels, and at the end which of them have failed."""
    for label, end in ends:
        if end.image_id:
            click.echo(f"{label}: {end.image_id}")
        for text in end.messages:
            click.echo(f"{label}: {text}", err=True)
    failures = [label for label, end in ends if end.code != DONE]
    if failures:
        names = ", ".join(failures)
        click.echo(f"{len(failures)} of {len(ends)} pulls have failed: {names}", err=True)


async def _pull_for(
    remote: Remote, clock: Any, options: PullOptions, row: Row, pace: PollPace
) -> PullEnd:
    try:
        record = await _last_answer(remote, clock, options, row, pace)
    except (Stop, GatewayError) as error:
        end = PullEnd.from_error(error)
    else:
        end = end_of(record)
        if record.get("status") in WAITING:
            return end
    end.show(row)
    return end


async def _last_answer(
    remote: Remote, clock: Any, options: PullOptions, row: Row, pace: PollPace
) -> Mapping[str, Any]:
    """Poll until the pull has ended, or ask once; show the progress, return the last answer."""
    if options.upload is None:
        record = await pace.in_turn(partial(remote.pull, *options.image, options.members))
    else:
        upload = await options.upload(remote, row)
        if not isinstance(upload, str):
            return upload
        members = {**options.members, "upload": upload}
        options = replace(options, members=members)
        # The gateway that has the upload may be restarting.
        call = partial(remote.pull, *options.image, members, to_last=True)
        record = await polling.retry_while_silent(call, clock, row.notify)
    while options.wait and record.get("status") in WAITING:
        row.show(record)
        await polling.pause(clock, pace.pulls)
        poll = partial(remote.poll, *options.image, options.members, row.notify)
        record = await polling.retry_while_silent(partial(pace.in_turn, poll), clock, row.notify)
    if record.get("status") in WAITING:
        row.show(record)
    return record


def end_of(record: Mapping[str, Any]) -> PullEnd:
    """Return the end that the last answer to a pull means."""
    status, image_id = str(record.get("status")), record.get("id")
    if status == State.READY.value and is_image_id(image_id):
        notice = record.get("notice")
        messages = [printable(str(notice), 1000)] if notice else ()
        return PullEnd(DONE, "Done", str(image_id), messages, status)
    if status in WAITING:
        return PullEnd(DONE, "Not done", status=status)
    cause = record.get("cause") or f"The pull ended with {status}."
    request = record.get("request_id") and f"(request {record['request_id']})"
    lines = [printable(str(line), 1000) for line in (cause, record.get("remedy"), request) if line]
    return PullEnd(FAILURE, "Failed", messages=lines, status=status)
