"""rm, pin and unpin: remove images, and keep them from expiring."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

import click

from shiftergw.cli.exits import BEST_TO_WORST, DONE, Misuse, Stop, report
from shiftergw.cli.image_names import ask_for_image, id_of, meanings_of
from shiftergw.cli.options import complete_images, single_system_option
from shiftergw.cli.remote import Remote
from shiftergw.cli.requests import run_requests
from shiftergw.cli.settings import Settings
from shiftergw.errors import GatewayError, printable

Change = Callable[[Remote, str, str], Awaitable[str]]
"""Changes the image of a type and name; returns what to print."""


@click.command()
@click.argument("images", metavar="[IMAGE]...", nargs=-1, shell_complete=complete_images)
@click.option("--now", "removal", metavar="ID", help="Remove the image, and refuse it from now on.")
@click.option("--allow", "permission", metavar="ID", help="Take that back: it may be pulled again.")
@single_system_option
@click.pass_obj
def rm(
    settings: Settings, images: tuple[str, ...], removal: str | None, permission: str | None
) -> None:
    """Remove each IMAGE with all its tags and files.

    IMAGE is a name, or the first digits of an id, at least four. For users with images that nobody
    else has pulled or looked up, or that only they may read, and for admins. `expire` takes one
    tag away.

    With `--now` and `--allow` admins have the gateway refuse an image, and take that back.
    """
    if sum((bool(images), removal is not None, permission is not None)) != 1:
        raise Misuse("Give one of: IMAGE, --now ID, --allow ID.")
    if images:
        _change_each(settings, images, _remove)
    prefix = id_of(removal or permission or "")

    async def command(remote: Remote) -> int:
        if removal is None:
            click.echo(f"{await remote.allow(prefix)} may be pulled again.")
            return DONE
        image_id, names = await remote.take_down(prefix)
        for name in names:
            click.echo(f"{printable(name, 1000)} is removed.")
        click.echo(f"{image_id} is refused from now on.")
        return DONE

    run_requests(settings, command)


@click.command()
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete_images
)
@single_system_option
@click.pass_obj
def pin(settings: Settings, images: tuple[str, ...]) -> None:
    """Keep each IMAGE from expiring.

    IMAGE is a name, or the first digits of an id, at least four. The image is pinned, and not its
    name: when a name gets a newer image, the older one stays. For admins, and for the owners of
    images where the site lets them.
    """
    _change_each(settings, images, _pin)


@click.command()
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=complete_images
)
@single_system_option
@click.pass_obj
def unpin(settings: Settings, images: tuple[str, ...]) -> None:
    """Let each IMAGE expire again."""
    _change_each(settings, images, _unpin)


async def _remove(remote: Remote, itype: str, name: str) -> str:
    image_id, names = await remote.remove(itype, name)
    return "\n".join(f"{printable(text, 1000)} is removed." for text in names or [image_id])


async def _pin(remote: Remote, itype: str, name: str) -> str:
    return f"{await remote.pin(itype, name)} is pinned."


async def _unpin(remote: Remote, itype: str, name: str) -> str:
    return f"{await remote.unpin(itype, name)} is not pinned any more."


def _change_each(settings: Settings, images: Sequence[str], change: Change) -> NoReturn:
    """Change each image, report every error, and exit with the worst exit code."""
    default_type = settings.default_type()
    for image in images:
        meanings_of(image, default_type)  # whatever cannot be a name is refused without a request
    codes: dict[str, int] = {}

    async def change_image(remote: Remote, image: str) -> int:
        async def ask(itype: str, name: str) -> str:
            return await change(remote, itype, name)

        try:
            click.echo(await ask_for_image(remote, image, default_type, ask))
        except (Stop, GatewayError) as error:
            return report(error)
        return DONE

    async def command(remote: Remote) -> int:
        for image in images:
            # `run_requests` may run this again, by another client: what is changed stays so.
            if image not in codes:
                codes[image] = await change_image(remote, image)
        return max(codes.values(), key=BEST_TO_WORST.index)

    run_requests(settings, command)
