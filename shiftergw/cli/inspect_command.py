"""inspect: show what the gateway knows of one image."""

from __future__ import annotations

import json
import time

import click

from shiftergw.cli.exits import DONE
from shiftergw.cli.image_names import ask_for_image, meanings_of
from shiftergw.cli.inspection_text import lines_of
from shiftergw.cli.options import complete_images, single_system_option
from shiftergw.cli.remote import Remote
from shiftergw.cli.requests import run_requests
from shiftergw.cli.settings import Settings


@click.command("inspect")
@click.argument("image", shell_complete=complete_images)
@click.option("--json", "as_json", is_flag=True, help="Print the answer of the gateway as JSON.")
@single_system_option
@click.pass_obj
def inspect_image(settings: Settings, image: str, as_json: bool) -> None:
    """Show what the gateway knows of IMAGE, which must be there.

    IMAGE is a name, or the first digits of an id, at least four. What is shown is where the image
    comes from, its layers and settings, who may use it, when it expires, which systems have it,
    and what the conversion has left out.
    """
    default_type = settings.default_type()
    meanings_of(image, default_type)  # whatever cannot be a name is refused without a request

    async def command(remote: Remote) -> int:
        record = await ask_for_image(remote, image, default_type, remote.inspect)
        if as_json:
            click.echo(json.dumps(record))
        else:
            click.echo("\n".join(lines_of(record, time.time())))
        return DONE

    run_requests(settings, command)
