"""pull, images, lookup and queue: what a user asks of the gateway."""

from __future__ import annotations

import grp
import json
import pwd
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from shiftergw.cli.answers import MISSING, is_image_id
from shiftergw.cli.exits import DONE, FAILED, Misused, NoGateway, run
from shiftergw.cli.progress import Display
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from shiftergw.errors import printable
from shiftergw.states import POLLED

INTERVAL = 0.5
"""Seconds between two polls."""

PATIENCE = 60.0
"""Seconds for which a gateway may be silent in the middle of a pull: it may be restarting."""

HIGHEST_ID = 2**32 - 2
"""The last uid or gid; 2**32 - 1 means "none" to the kernel."""

_WAITING = {*(state.value for state in POLLED), MISSING}


def image_of(text: str, default: str = "docker") -> tuple[str, str]:
    """Split `[TYPE:]NAME` into type and name; without a type it is of the type `default`."""
    word, colon, rest = text.partition(":")
    if not colon or word not in {"docker", "custom", "id", "local"}:
        word, rest = default, text
    if word in {"id", "local"}:
        raise Misused(f"{text}: images of the type {word} are not the gateway's.")
    return word, rest


def numbers(texts: Iterable[str], kind: str, number_of: Callable[[str], int]) -> list[str]:
    """Return ids for comma lists of names and numbers; `kind` says what they name.

    Raises `Misused` for what nobody has here, and for what cannot be in a list of access: root
    needs no place there, and the clients' own list would drop it without a word.
    """
    found = []
    for item in (item.strip() for text in texts for item in text.split(",")):
        if re.fullmatch("-?[0-9]+", item):
            number = int(item)
        else:
            try:
                number = number_of(item)
            except (KeyError, ValueError):
                raise Misused(f"There is no {kind} {item!r} on this machine.") from None
        if number == 0:
            raise Misused(f"The {kind} {item} cannot be given access: root has it anyway.")
        if not 0 < number <= HIGHEST_ID:
            raise Misused(f"{item} is not the number of a {kind}: 1 to {HIGHEST_ID}.")
        found.append(str(number))
    return list(dict.fromkeys(found))


def _acl(users: Iterable[str], groups: Iterable[str]) -> dict[str, str]:
    ids = {
        "allowed_uids": numbers(users, "user", lambda name: pwd.getpwnam(name).pw_uid),
        "allowed_gids": numbers(groups, "group", lambda name: grp.getgrnam(name).gr_gid),
    }
    return {member: ",".join(found) for member, found in ids.items() if found}


@click.command()
@click.argument("image")
@click.option(
    "--user",
    "users",
    metavar="LIST",
    multiple=True,
    help="Who may use the image if it is private: names or numbers, with commas; repeatable.",
)
@click.option(
    "--group", "groups", metavar="LIST", multiple=True, help="Which groups may; as with --user."
)
@click.option("--nowait", is_flag=True, help="Ask once and do not wait.")
@click.pass_obj
def pull(
    settings: Settings, image: str, users: tuple[str, ...], groups: tuple[str, ...], nowait: bool
) -> None:
    """Have the gateway get IMAGE from its registry, and wait until it is there."""
    wanted, acl = image_of(image, settings.default_type()), _acl(users, groups)

    async def command(reactor: Any) -> int:
        return await pull_image(Remote(reactor, settings), reactor, wanted, acl, wait=not nowait)

    run(command, "Interrupted. If the pull has begun it goes on; the same command shows it again.")


async def pull_image(
    remote: Remote, clock: Any, image: tuple[str, str], acl: Mapping[str, str], *, wait: bool
) -> int:
    """Ask for an image until its pull has ended; print its id and return the exit code."""
    with Display() as display:
        record = await remote.pull(*image, acl)
        while wait and record.get("status") in _WAITING:
            _show(display, record)
            await deferLater(clock, INTERVAL, int)
            record = await _poll(remote, clock, image, acl, display)
        if record.get("status") in _WAITING:
            _show(display, record)
    return _end(record)


async def _poll(
    remote: Remote, clock: Any, image: tuple[str, str], acl: Mapping[str, str], display: Display
) -> dict[str, Any]:
    """Ask again; bear a gateway that is silent for a while."""
    deadline = clock.seconds() + PATIENCE
    while True:
        try:
            return await remote.pull(*image, acl)
        except CancelledError:
            raise
        except NoGateway as error:
            if clock.seconds() > deadline:
                raise
            display.say(f"{error.message} Trying on.")
            await deferLater(clock, INTERVAL, int)


def _show(display: Display, record: Mapping[str, Any]) -> None:
    message = record.get("status_message", "")
    state = str(record.get("status"))
    display.stage(state if message in ("", MISSING, state) else f"{state}: {message}")
    done, total = record.get("done"), record.get("total")
    if isinstance(done, int) and isinstance(total, int):
        display.bytes(done, total)


def _end(record: Mapping[str, Any]) -> int:
    status, image_id = record.get("status"), record.get("id")
    if status == "READY" and is_image_id(image_id):
        click.echo(image_id)
        return DONE
    if status in _WAITING:
        return DONE
    cause = record.get("cause") or f"The pull ended with {status}."
    lines = [cause, record.get("remedy"), record.get("request_id") and _request(record)]
    click.echo("\n".join(printable(str(line), 1000) for line in lines if line), err=True)
    return FAILED


def _request(record: Mapping[str, Any]) -> str:
    return f"(request {record['request_id']})"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
@click.pass_obj
def images(settings: Settings, as_json: bool) -> None:
    """List the images of the system."""

    async def command(reactor: Any) -> int:
        records = await Remote(reactor, settings).images()
        click.echo(json.dumps(records) if as_json else listing(records), nl=as_json)
        return DONE

    run(command)


def listing(records: Iterable[Mapping[str, Any]]) -> str:
    """Return one line per tag, sorted by tag, as the existing client prints them."""
    rows = []
    for record in records:
        pulled = record.get("last_pull")
        seconds = pulled if isinstance(pulled, float) else 0
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))
        system, itype, status, image_id = (
            printable(str(record.get(name))) for name in ("system", "itype", "status", "id")
        )
        start = f"{system:10} {itype:10} {status:8} {image_id:.10}   {when}"
        tags = record.get("tag")
        for tag in tags if isinstance(tags, list) else [tags]:
            name = printable(str(tag), 1000)
            rows.append((name, f"{start} {name:30}\n"))
    return "".join(line for _, line in sorted(rows))


@click.command()
@click.argument("image")
@click.pass_obj
def lookup(settings: Settings, image: str) -> None:
    """Print the id of IMAGE."""
    wanted = image_of(image, settings.default_type())

    async def command(reactor: Any) -> int:
        click.echo(await Remote(reactor, settings).lookup(*wanted))
        return DONE

    run(command)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.pass_obj
def queue(settings: Settings, as_json: bool) -> None:
    """Show the pulls that wait, work or have failed."""

    async def command(reactor: Any) -> int:
        rows = await Remote(reactor, settings).queue()
        click.echo(json.dumps(rows) if as_json else queue_table(rows), nl=as_json)
        return DONE

    run(command)


def queue_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return one line per pull: state, image, and how far it is or why it failed."""
    lines = []
    for row in rows:
        note = row.get("cause") or row.get("stage") or ""
        if row.get("total"):
            note = f"{note} {100 * row.get('done', 0) // row['total']} %"
        status, image = printable(str(row.get("status"))), printable(str(row.get("image")), 1000)
        lines.append(f"{status:12} {image:40} {printable(str(note))}".rstrip() + "\n")
    return "".join(lines)
