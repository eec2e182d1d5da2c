"""expire, autoexpire and metrics: commands for admins, and for owners of an image."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

import click

from shiftergw.cli.exits import DONE
from shiftergw.cli.image_names import ask_for_image, meanings_of
from shiftergw.cli.options import complete_images, single_system_option
from shiftergw.cli.remote import Remote
from shiftergw.cli.requests import run_requests
from shiftergw.cli.settings import Settings
from shiftergw.errors import printable


@click.command()
@click.argument("image", shell_complete=complete_images)
@single_system_option
@click.pass_obj
def expire(settings: Settings, image: str) -> None:
    """Take the tag IMAGE away; an image without any tag is removed.

    For admins, for users with images that only they may read, and for the owner of the name of
    an uploaded image.
    """
    default_type = settings.default_type()
    meanings_of(image, default_type)  # whatever cannot be a name is refused without a request

    async def command(remote: Remote) -> int:
        async def ask(itype: str, name: str) -> None:
            await remote.expire(itype, name)
            click.echo(f"{itype}:{name} is expired.")

        await ask_for_image(remote, image, default_type, ask)
        return DONE

    run_requests(settings, command)


@click.command()
@single_system_option
@click.pass_obj
def autoexpire(settings: Settings) -> None:
    """Expire the images whose time is up, and print their ids (admins).

    The gateway does so by itself, too.
    """

    async def command(remote: Remote) -> int:
        ids = await remote.autoexpire()
        for image_id in ids:
            click.echo(printable(image_id))
        if not ids:
            click.echo("No image's time is up.", err=True)
        return DONE

    run_requests(settings, command)


@click.command()
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=10, show_default=True, help="Rows."
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@single_system_option
@click.pass_obj
def metrics(settings: Settings, limit: int, as_json: bool) -> None:
    """Show the last look-ups: who asked for which image, the newest last (admins).

    There are none unless the gateway's configuration says `"Metrics": true`.
    """

    async def command(remote: Remote) -> int:
        rows = await remote.metrics(limit)
        click.echo(json.dumps(rows) if as_json else metrics_table(rows), nl=as_json)
        return DONE

    run_requests(settings, command)


def metrics_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return one line per look-up: time, user, system, id and image."""
    lines = []
    for row in rows:
        seconds = row.get("time")
        seconds = seconds if isinstance(seconds, (int, float)) else 0
        date = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))
        user = printable(f"{row.get('user')}({row.get('uid')})")
        system, image_id = printable(str(row.get("system"))), printable(str(row.get("id")))
        image = printable(f"{row.get('type')}:{row.get('tag')}", 1000)
        lines.append(f"{date} {user:20} {system:10} {image_id:.10} {image}\n")
    return "".join(lines)
