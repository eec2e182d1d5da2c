"""images, lookup and queue: show the images of a system, and the pulls in its queue."""

from __future__ import annotations

import json
import time

import click

from shiftergw.cli.exits import DONE
from shiftergw.cli.image_names import ask_for_image, meanings_of
from shiftergw.cli.image_table import ORDERS, filter_of, matches, rows_of, table
from shiftergw.cli.options import complete_images, single_system_option
from shiftergw.cli.queue_table import queue_table
from shiftergw.cli.remote import Remote
from shiftergw.cli.requests import run_requests
from shiftergw.cli.settings import Settings


@click.command()
@click.argument("pattern", required=False, shell_complete=complete_images)
@click.option(
    "--filter",
    "filters",
    metavar="KEY=VALUE",
    multiple=True,
    help="access=private, owner=USER, type=custom, larger=1GB, smaller=SIZE, older=30d or"
    " newer=TIME; repeatable.",
)
@click.option(
    "--sort",
    "order",
    type=click.Choice(sorted(ORDERS)),
    default="name",
    help="The order of the rows; by name without it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
@single_system_option
@click.pass_obj
def images(
    settings: Settings, pattern: str | None, filters: tuple[str, ...], order: str, as_json: bool
) -> None:
    """List the images of the system that you may use, or those whose name fits PATTERN.

    PATTERN is a name, with or without its tag, in which * stands for any text and ? for any
    character. An image is listed if it fits all filters. An image with several tags has a row
    for each.
    """
    now = time.time()
    conditions = [filter_of(text, now) for text in filters]

    async def command(remote: Remote) -> int:
        rows = [
            row
            for row in sorted(rows_of(await remote.images()), key=ORDERS[order])
            if (pattern is None or matches(row, pattern))
            and all(condition(row) for condition in conditions)
        ]
        if as_json:
            records = {id(row.record): row.record for row in rows}
            click.echo(json.dumps(list(records.values())))
        elif rows:
            click.echo(table(rows, now), nl=False)
        else:
            condition = "that fits" if pattern or filters else "that you may use"
            click.echo(f"There is no image {condition} on {settings.single_system()}.", err=True)
        return DONE

    run_requests(settings, command)


@click.command()
@click.argument("image", shell_complete=complete_images)
@single_system_option
@click.pass_obj
def lookup(settings: Settings, image: str) -> None:
    """Print the id of IMAGE.

    IMAGE is a name, or the first digits of an id, at least four.
    """
    default_type = settings.default_type()
    meanings_of(image, default_type)  # whatever cannot be a name is refused without a request

    async def command(remote: Remote) -> int:
        click.echo(await ask_for_image(remote, image, default_type, remote.lookup))
        return DONE

    run_requests(settings, command)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@single_system_option
@click.pass_obj
def queue(settings: Settings, as_json: bool) -> None:
    """Show the pulls that wait, work or have failed, the oldest first.

    You see whose they are of your own pulls; admins see that of all.
    """

    async def command(remote: Remote) -> int:
        rows = await remote.queue()
        if as_json:
            click.echo(json.dumps(rows))
        elif rows:
            click.echo(queue_table(rows, time.time()), nl=False)
        else:
            click.echo(
                f"No pull waits, works or has failed on {settings.single_system()}.", err=True
            )
        return DONE

    run_requests(settings, command)
