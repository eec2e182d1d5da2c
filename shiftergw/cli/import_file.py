"""import: upload a squashfs file, as `pull squashfs:FILE NAME` does."""

from __future__ import annotations

from pathlib import Path

import click

from shiftergw.cli.access_lists import groups_option, users_option
from shiftergw.cli.options import (
    events_option,
    nowait_option,
    public_option,
    quiet_option,
    systems_option,
)
from shiftergw.cli.settings import Settings
from shiftergw.model.source_names import LocalSourceName


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name")
@users_option
@groups_option
@public_option
@nowait_option
@events_option
@quiet_option
@systems_option
@click.pass_obj
def import_file(
    settings: Settings,
    file: Path,
    name: str,
    users: tuple[str, ...],
    groups: tuple[str, ...],
    public: bool,
    nowait: bool,
    output: str | None,
) -> None:
    """Upload FILE, a squashfs file of your own, as the image custom:NAME[:TAG].

    The gateway builds the image anew from the content of FILE. Only you, and the users and
    groups that the options name, may use it.
    """
    from shiftergw.cli.pull_work import CommandOptions, pull_upload  # noqa: PLC0415 - see there

    options = CommandOptions(users, groups, public, nowait, output)
    pull_upload(settings, LocalSourceName("squashfs", file), name, options)
