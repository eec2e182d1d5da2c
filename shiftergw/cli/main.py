"""shiftergw: the command line of users and admins."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import ClassVar

import click

from shiftergw import __version__
from shiftergw.cli.options import Listed
from shiftergw.cli.settings import UDIROOT, Settings, check_text, sockets_of, systems_of


class Commands(click.Group):
    """The commands, of which one that is asked for is imported alone: it begins sooner."""

    modules: ClassVar = {
        "admin": ("expire", "autoexpire", "rm", "metrics"),
        "check": ("check",),
        "convert": ("convert",),
        "images": ("images", "lookup", "queue"),
        "login": ("login", "logout"),
        "migrate": ("migrate",),
        "pull": ("pull",),
        "ssh_trust": ("ssh-trust",),
        "workers": ("workers",),
    }
    """What each module of this package has."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return sorted(name for names in self.modules.values() for name in names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; None leaves all loaded, among which click looks for similar names."""
        every = cmd_name not in self.list_commands(ctx)
        for module, names in self.modules.items():
            if every or cmd_name in names:
                loaded = import_module(f"shiftergw.cli.{module}")
                for name in names:
                    self.add_command(getattr(loaded, name.replace("-", "_")))
        return self.commands.get(cmd_name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
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
    4 not allowed or not found, 70 a fault of the program itself; 130, 143 and 129 after SIGINT,
    SIGTERM and SIGHUP, 141 if nobody reads the output.
    """
    check_text(credential, "--credential")
    sockets = sockets_of(munge_sockets)
    context.obj = Settings(gateways, systems_of(systems), credential, udiroot, sockets)
