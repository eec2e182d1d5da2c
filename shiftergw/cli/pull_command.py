"""The command `pull`: images of registries, or one of the user's own that is uploaded first."""

from __future__ import annotations

import click

from shiftergw.cli.access_lists import groups_option, users_option
from shiftergw.cli.options import (
    complete_sources,
    events_option,
    nowait_option,
    public_option,
    quiet_option,
    systems_option,
)
from shiftergw.cli.settings import Settings


@click.command()
@click.argument(
    "images",
    metavar="IMAGE... | SOURCE NAME",
    nargs=-1,
    required=True,
    shell_complete=complete_sources,
)
@users_option
@groups_option
@public_option
@nowait_option
@events_option
@quiet_option
@systems_option
@click.pass_obj
def pull(
    settings: Settings,
    images: tuple[str, ...],
    users: tuple[str, ...],
    groups: tuple[str, ...],
    public: bool,
    nowait: bool,
    output: str | None,
) -> None:
    """Have the gateway get each IMAGE from its registry, and wait until all are there.

    With NAME, SOURCE is an image of your own, which is uploaded: oci:DIR[:TAG],
    oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], dir:DIR, sif:FILE, squashfs:FILE, a path,
    or - for standard input. The image gets the name custom:NAME[:TAG]. Only you, and the users and
    groups that the options name, may use it. Standard input is first copied to a private file in
    $TMPDIR, or else in /tmp, which needs room for all of it.

    Of several images the ids are printed as `IMAGE: ID`, for several systems as `SYSTEM: ID`, and
    for both as `IMAGE on SYSTEM: ID`. Errors are reported for each; the exit code is then the
    first of 2, 4, 1, 3 that one of them has, 0 if all images are there.

    --json prints one JSON object a line instead of the ids: `event` is `progress`, `notice` or
    `end`, which comes once for each image and system.
    """
    from shiftergw.cli.pull_work import CommandOptions, pull_images  # noqa: PLC0415 - see there

    pull_images(settings, images, CommandOptions(users, groups, public, nowait, output))
