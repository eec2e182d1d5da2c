"""Do the work of the commands that pull images, or upload them first.

Loads Twisted, which takes longer than all else that the completion of their arguments loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from shiftergw.cli.access_lists import access_list
from shiftergw.cli.exchange_twisted import TwistedExchange
from shiftergw.cli.exits import Misuse
from shiftergw.cli.image_names import image_of
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
class CommandOptions:
    """Who may use an image, whether to wait until it is there, and what is shown."""

    users: Sequence[str]
    groups: Sequence[str]
    public: bool
    nowait: bool
    output: str | None
    """A value of `Output`; None shows progress to people."""


def pull_images(settings: Settings, images: Sequence[str], options: CommandOptions) -> NoReturn:
    """Pull images from their registries, or upload one of the user's own, and exit.

    Raises `Misuse` for names and options that do not fit.
    """
    source = local_source_of(images[0]) if len(images) == UPLOAD_ARGUMENTS else None
    if source is not None:
        pull_upload(settings, source, images[1], options)
    if options.public:
        raise Misuse("--public is for images of your own: write their source, and a NAME.")
    for image in images:
        check_registry_image(image)
    readers, default_type = access_list(options.users, options.groups), settings.default_type()
    names = dict.fromkeys(image_of(image, default_type) for image in images)
    output = Output(options.output or Output.PEOPLE)
    pulls = [PullOptions(name, readers, not options.nowait, output=output) for name in names]
    run(
        lambda reactor: pull_for_all(reactor, remotes(TwistedExchange(reactor), settings), pulls),
        "Interrupted. If the pull has begun it goes on; the same command shows it again.",
    )


def pull_upload(
    settings: Settings, source: LocalSourceName, name: str, options: CommandOptions
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
    output = Output(options.output or Output.PEOPLE)

    async def command(reactor: Reactor) -> int:
        exchange = TwistedExchange(reactor)
        gateways = remotes(exchange, settings)
        check = partial(check_upload, gateways, image)
        async with AsyncExitStack() as stack:
            with Display([Work(f"{itype}:{image}")], output) as display:
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
                [PullOptions((itype, image), request, not options.nowait, call, output)],
            )

    run(
        command,
        "Interrupted. The same command goes on from here: what the gateway has received is not"
        " sent again, and a pull that has begun goes on.",
    )
