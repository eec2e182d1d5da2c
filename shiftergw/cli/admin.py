"""expire, autoexpire, rm and metrics: what admins ask of the gateway, and owners of an image."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

import click

from shiftergw.cli.exits import DONE, Misused, run
from shiftergw.cli.images import image_of
from shiftergw.cli.options import of_one_system
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from shiftergw.errors import printable
from shiftergw.names import is_image_id


@click.command()
@click.argument("image")
@of_one_system
@click.pass_obj
def expire(settings: Settings, image: str) -> None:
    """Take the tag IMAGE away; an image without any tag is removed.

    For admins, and for users with images that only they may read.
    """
    itype, name = image_of(image, settings.default_type())

    async def command(reactor: Any) -> int:
        await Remote(reactor, settings).expire(itype, name)
        click.echo(f"{itype}:{name} is expired.")
        return DONE

    run(command)


@click.command(short_help="Expire the images whose time is up (admins).")
@of_one_system
@click.pass_obj
def autoexpire(settings: Settings) -> None:
    """Expire the images whose time is up, and print their ids (admins).

    The gateway does so by itself, too.
    """

    async def command(reactor: Any) -> int:
        ids = await Remote(reactor, settings).autoexpire()
        for image_id in ids:
            click.echo(printable(image_id))
        if not ids:
            click.echo("No image's time is up.", err=True)
        return DONE

    run(command)


@click.command()
@click.option("--now", "removed", metavar="ID", help="Remove the image, and refuse it from now on.")
@click.option("--allow", "allowed", metavar="ID", help="Take that back: it may be pulled again.")
@of_one_system
@click.pass_obj
def rm(settings: Settings, removed: str | None, allowed: str | None) -> None:
    """Take an image down at once: all its tags and files (admins).

    ID is the id that `lookup` prints: 64 hexadecimal digits.
    """
    if (removed is None) == (allowed is None):
        raise Misused("Give one of: --now ID, --allow ID.")
    image_id = removed or allowed or ""
    if not is_image_id(image_id):
        raise Misused(f"{image_id!r} is not an image id: 64 hexadecimal digits in lower case.")

    async def command(reactor: Any) -> int:
        remote = Remote(reactor, settings)
        if removed is None:
            await remote.allow(image_id)
            click.echo(f"{image_id} may be pulled again.")
            return DONE
        for name in await remote.take_down(image_id):
            click.echo(f"{printable(name, 1000)} is removed.")
        click.echo(f"{image_id} is refused from now on.")
        return DONE

    run(command)


@click.command(short_help="Show the last look-ups (admins).")
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=10, show_default=True, help="Rows."
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@of_one_system
@click.pass_obj
def metrics(settings: Settings, limit: int, as_json: bool) -> None:
    """Show the last look-ups: who asked for which image, the newest last (admins).

    There are none unless the gateway's configuration says `"Metrics": true`.
    """

    async def command(reactor: Any) -> int:
        rows = await Remote(reactor, settings).metrics(limit)
        click.echo(json.dumps(rows) if as_json else metrics_table(rows), nl=as_json)
        return DONE

    run(command)


def metrics_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return one line per look-up: when, who, which system, which image, which id."""
    lines = []
    for row in rows:
        asked = row.get("time")
        seconds = asked if isinstance(asked, (int, float)) else 0
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))
        who = printable(f"{row.get('user')}({row.get('uid')})")
        system, image_id = printable(str(row.get("system"))), printable(str(row.get("id")))
        image = printable(f"{row.get('type')}:{row.get('tag')}", 1000)
        lines.append(f"{when} {who:20} {system:10} {image_id:.10} {image}\n")
    return "".join(lines)
