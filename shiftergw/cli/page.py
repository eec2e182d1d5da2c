"""page: print an address at which a browser shows the queue and the images of a system."""

from __future__ import annotations

import click

from shiftergw.cli.exits import DONE
from shiftergw.cli.options import single_system_option
from shiftergw.cli.remote import Remote
from shiftergw.cli.requests import run_requests
from shiftergw.cli.settings import Settings


@click.command()
@single_system_option
@click.pass_obj
def page(settings: Settings) -> None:
    """Print an address that shows your browser the queue and the images of the system.

    The address works once, within 5 minutes. It needs a gateway with https://, or one of this
    machine.
    """

    async def command(remote: Remote) -> int:
        click.echo(await remote.page_address())
        click.echo("Open it in a browser within 5 minutes; it works once.", err=True)
        return DONE

    run_requests(settings, command)
