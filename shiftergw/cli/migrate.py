"""migrate: copy the gateway's state from the SQLite file to MongoDB."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shiftergw.cli.exits import DONE, Misuse, text_of
from shiftergw.cli.options import config_option
from shiftergw.cli.reactor import run
from shiftergw.config import Config, file_of_environment
from shiftergw.errors import ConfigurationError

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor


@click.command()
@config_option
def migrate(config_file: Path | None) -> None:
    """Copy the gateway's state from SQLite to MongoDB.

    From the file in StateDirectory to the database that MongoDBURI and MongoDB name, which is to be
    empty. Stop the gateway first, when nothing is in its queue. The file keeps what it holds. It
    can be interrupted and run again.

    Exits with 1 if something must be seen to, and with 2 if the configuration, or what it names,
    is not fit.
    """
    try:
        config = Config.load(config_file or file_of_environment(os.environ), os.environ).config
    except ConfigurationError as error:
        raise Misuse(text_of(error)) from error
    if config.mongodb_uri is None:
        raise Misuse("The configuration has no MongoDBURI: there is nowhere to copy to.")

    async def command(reactor: Reactor) -> int:
        from shiftergw.app import migration  # noqa: PLC0415 - not needed for `--help`

        counts = await migration.migrate(reactor, config, lambda text: click.echo(text, err=True))
        summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        click.echo(f"All of it is in the database {config.mongodb}, and the same: {summary}.")
        return DONE

    run(command, "Interrupted: run it again to go on.")
