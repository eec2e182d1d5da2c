"""shiftergw: the command line of users and admins."""

from __future__ import annotations

from pathlib import Path

import click

from shiftergw import __version__
from shiftergw.cli.admin import autoexpire, expire, metrics, rm
from shiftergw.cli.check import check
from shiftergw.cli.convert import convert
from shiftergw.cli.images import images, lookup, queue
from shiftergw.cli.login import login, logout
from shiftergw.cli.migrate import migrate
from shiftergw.cli.options import Listed
from shiftergw.cli.pull import pull
from shiftergw.cli.settings import UDIROOT, Settings, sockets_of, systems_of
from shiftergw.cli.ssh_trust import ssh_trust
from shiftergw.cli.workers import workers


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--gateway", "gateways", multiple=True, envvar="SHIFTERGW_GATEWAY", help="Base URL; repeatable."
)
@click.option(
    "--system",
    "systems",
    metavar="LIST",
    multiple=True,
    envvar="SHIFTERGW_SYSTEM",
    help="Name of the cluster; of several, with commas, for `pull`. Also after the command.",
)
@click.option(
    "--credential", default="", envvar="SHIFTERGW_CREDENTIAL", help="For mock authentication."
)
@click.option(
    "--munge-socket",
    "munge_sockets",
    metavar="[SYSTEM=]PATH",
    multiple=True,
    envvar="SHIFTERGW_MUNGE_SOCKET",
    type=Listed(),
    help="Of the munge daemon that knows you; munge's own default without it. Repeatable.",
)
@click.option(
    "--udiroot",
    default=UDIROOT,
    envvar="SHIFTERGW_UDIROOT",
    type=click.Path(path_type=Path),
    help="Where gateway and system stand if no option names them.",
)
@click.version_option(__version__, prog_name="shiftergw")
@click.pass_context
def main(
    context: click.Context,
    gateways: tuple[str, ...],
    systems: tuple[str, ...],
    credential: str,
    munge_sockets: tuple[str, ...],
    udiroot: Path,
) -> None:
    """Images for clusters: from a container registry to one squashfs file.

    Exit codes: 0 done, 1 the image failed, 2 usage or configuration, 3 no gateway answered,
    4 not allowed or not found, 70 a fault of the program itself.
    """
    sockets = sockets_of(munge_sockets)
    context.obj = Settings(gateways, systems_of(systems), credential, udiroot, sockets)


for command in (
    *(pull, images, lookup, queue),
    *(login, logout),
    *(expire, autoexpire, rm, metrics, workers),
    *(convert, check, migrate, ssh_trust),
):
    main.add_command(command)
