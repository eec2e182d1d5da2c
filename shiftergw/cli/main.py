"""shiftergw: the command line of users and admins."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import click

from shiftergw import __version__
from shiftergw.cli.options import CommaList, complete_systems
from shiftergw.cli.settings import UDIROOT, Settings, check_text, sockets_of, systems_of


class CommandEntry(NamedTuple):
    """The module of this package that has a command, and the line of `--help` about it.

    `function` is the command's name in the module, unless it is that of the command.
    """

    module: str
    summary: str
    function: str = ""


COMMANDS = {
    "autoexpire": CommandEntry("admin", "Expire the images whose time is up (admins)."),
    "check": CommandEntry("check", "Check the configuration and what it names."),
    "convert": CommandEntry("convert", "Make a squashfs file without any gateway."),
    "expire": CommandEntry(
        "admin", "Take the tag IMAGE away; an image without any tag is removed."
    ),
    "explain": CommandEntry("explain", "Say what a pull of IMAGE would do."),
    "images": CommandEntry("images", "List the images of the system."),
    "import": CommandEntry("import_file", "Upload a squashfs file of your own.", "import_file"),
    "inspect": CommandEntry("inspect_command", "Show what is known of IMAGE.", "inspect_image"),
    "login": CommandEntry("login", "Keep your login for a registry."),
    "logout": CommandEntry("login", "Forget your login for a registry."),
    "lookup": CommandEntry("images", "Print the id of IMAGE."),
    "metrics": CommandEntry("admin", "Show the last look-ups (admins)."),
    "migrate": CommandEntry("migrate", "Copy the gateway's state from SQLite to MongoDB."),
    "page": CommandEntry("page", "Print an address that shows the system in your browser."),
    "pin": CommandEntry("own_images", "Keep an image from expiring."),
    "pull": CommandEntry("pull_command", "Have the gateway get images, or upload one of your own."),
    "queue": CommandEntry("images", "Show the pulls that wait, work or have failed."),
    "rm": CommandEntry("own_images", "Remove an image with all its tags and files."),
    "ssh-trust": CommandEntry("ssh_trust", "Make a system's SSH host keys known."),
    "unpin": CommandEntry("own_images", "Let an image expire again."),
    "uploads": CommandEntry("uploads", "List your uploads, or remove them."),
    "workers": CommandEntry("workers", "Show the machines that do the work (admins)."),
}


class Commands(click.Group):
    """The commands of `COMMANDS`; the module of a command is imported only to run it.

    To import all of them takes half a second.
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line, or complete it for a shell."""
        if any(name.endswith("_COMPLETE") for name in os.environ):
            import_module("shiftergw.cli.completion").register()
        return super().main(*args, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """Return the names of the commands, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command; return None if there is no command of that name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            for name in COMMANDS:  # click looks for similar names among them
                self.commands.setdefault(name, click.Command(name))
            return None
        module = import_module(f"shiftergw.cli.{entry.module}")
        command: click.Command = getattr(module, entry.function or cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summaries of the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])


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
    shell_complete=complete_systems,
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
    type=CommaList(),
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
