"""The command `pull`: images of registries, or one of the user's own that is uploaded first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from shiftergw.cli.access_lists import access_list, groups_option, users_option
from shiftergw.cli.exchange_twisted import TwistedExchange
from shiftergw.cli.exits import Misuse
from shiftergw.cli.image_names import image_of
from shiftergw.cli.options import (
    events_option,
    nowait_option,
    public_option,
    quiet_option,
    systems_option,
)
from shiftergw.cli.progress import Display, Output
from shiftergw.cli.progress_rows import Work
from shiftergw.cli.pull import PullOptions, pull_for_all, remotes
from shiftergw.cli.reactor import run
from shiftergw.cli.settings import Settings
from shiftergw.cli.upload import prepared_source, upload
from shiftergw.cli.upload_check import check_upload
from shiftergw.cli.upload_source import check_registry_image, local_source_of
from shiftergw.errors import BadRequest, printable
from shiftergw.model.references import ImageReference
from shiftergw.model.source_names import LocalSourceName

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor


UPLOAD_ARGUMENTS = 2
"""An upload has a source and a name."""


@dataclass(frozen=True, slots=True)
class UploadOptions:
    """Who may use an uploaded image, whether to wait until it is there, and what is shown."""

    users: Sequence[str]
    groups: Sequence[str]
    public: bool
    nowait: bool
    output: Output


@click.command()
@click.argument("images", metavar="IMAGE... | SOURCE NAME", nargs=-1, required=True)
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
    form = Output(output or Output.PEOPLE)
    source = local_source_of(images[0]) if len(images) == UPLOAD_ARGUMENTS else None
    if source is not None:
        options = UploadOptions(users, groups, public, nowait, form)
        pull_upload(settings, source, images[1], options)
    if public:
        raise Misuse("--public is for images of your own: write their source, and a NAME.")
    for image in images:
        check_registry_image(image)
    readers, default_type = access_list(users, groups), settings.default_type()
    names = dict.fromkeys(image_of(image, default_type) for image in images)
    pulls = [PullOptions(name, readers, not nowait, output=form) for name in names]
    run(
        lambda reactor: pull_for_all(reactor, remotes(TwistedExchange(reactor), settings), pulls),
        "Interrupted. If the pull has begun it goes on; the same command shows it again.",
    )


def pull_upload(
    settings: Settings, source: LocalSourceName, name: str, options: UploadOptions
) -> NoReturn:
    """Upload an image, pull it under a name of the type `custom`, and exit.

    Raises `Misuse` for a name of another type or form, and for readers of a public image.
    """
    itype, image = image_of(name, "custom")
    if itype != "custom":
        raise Misuse(f"An image that is uploaded has the type custom, not {itype}.")
    try:
        ImageReference.parse(image).check_uploaded_name()
    except BadRequest as error:
        raise Misuse(
            f"{printable(name, 120)!r} cannot be the name of an uploaded image: write NAME or"
            " NAME:TAG, NAME in lower case, for example analysis:1.2."
        ) from error
    members: dict[str, Any] = {**access_list(options.users, options.groups)}
    if options.public:
        if members:
            raise Misuse("Everybody may use a public image: leave --user and --group out.")
        members["public"] = True

    async def command(reactor: Reactor) -> int:
        exchange = TwistedExchange(reactor)
        gateways = remotes(exchange, settings)
        check = partial(check_upload, gateways, image)
        async with AsyncExitStack() as stack:
            with Display([Work(f"{itype}:{image}")], options.output) as display:
                (row,) = display.rows
                content = await stack.enter_async_context(
                    prepared_source(source, exchange.in_thread, row, check)
                )
            request = {**members, "selector": content.selector}
            call = partial(
                upload,
                clock=reactor,
                in_thread=exchange.in_thread,
                source=content,
                image={"name": image, **request},
            )
            return await pull_for_all(
                reactor,
                gateways,
                [PullOptions((itype, image), request, not options.nowait, call, options.output)],
            )

    run(
        command,
        "Interrupted. The same command goes on from here: what the gateway has received is not"
        " sent again, and a pull that has begun goes on.",
    )
