"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shiftergw.cli.settings import systems_of

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SYSTEMS_OF_COMMAND = "shiftergw.systems"
"""Key in `meta` of the context, while a shell completes a word: the systems after the command."""


def complete_images(context: click.Context, _: click.Parameter, word: str) -> list[str]:
    """Return the names of images that begin with a word."""
    from shiftergw.cli import completion  # noqa: PLC0415 - only a shell that completes needs it

    return completion.images_like(context, word)


def complete_sources(
    context: click.Context, _: click.Parameter, word: str
) -> list[CompletionItem[str]]:
    """Return the names of images that begin with a word, or files to upload."""
    from shiftergw.cli import completion  # noqa: PLC0415 - as above

    return completion.sources_like(context, word)


def complete_systems(context: click.Context, _: click.Parameter, word: str) -> list[str]:
    """Return the names of systems that begin with a word."""
    from shiftergw.cli import completion  # noqa: PLC0415 - as above

    return completion.systems_like(context, word)


class CommaList(click.types.StringParamType):
    """A text on the command line, a comma-separated list of texts in an environment variable.

    Only a comma before `NAME=` separates two texts, since a path may contain commas.
    """

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Return the texts in an environment variable."""
        return re.split(r",(?=[^,/=]+=)", rv)


def _choose_systems(context: click.Context, _: click.Parameter, texts: Sequence[str]) -> None:
    """Let `--system` after the command take precedence over `--system` before it."""
    systems = systems_of(texts)
    if context.resilient_parsing:  # a shell that completes a word has no settings yet
        context.meta[SYSTEMS_OF_COMMAND] = systems
    elif systems:
        context.obj = replace(context.obj, systems=systems)


def _choose_system(context: click.Context, option: click.Parameter, texts: Sequence[str]) -> None:
    """Raise `Misuse` for several systems, before or after the command."""
    _choose_systems(context, option, texts)
    if not context.resilient_parsing and context.obj.systems:
        context.obj.single_system()


single_system_option = click.option(
    "--system",
    multiple=True,
    expose_value=False,
    callback=_choose_system,
    shell_complete=complete_systems,
    metavar="NAME",
    help="Name of the cluster.",
)
"""The option of a command for one system."""

systems_option = click.option(
    "--system",
    multiple=True,
    expose_value=False,
    callback=_choose_systems,
    shell_complete=complete_systems,
    metavar="LIST",
    help="Names of the clusters, with commas; repeatable.",
)
"""The option of a command for one system or several."""

public_option = click.option(
    "--public", is_flag=True, help="Let everybody use an image that you upload."
)
nowait_option = click.option("--nowait", is_flag=True, help="Ask once and do not wait.")
events_option = click.option(
    "--json", "output", flag_value="events", help="Print progress and end as lines of JSON."
)
quiet_option = click.option(
    "-q", "--quiet", "output", flag_value="silence", help="Show no progress."
)
"""Options of the commands that pull."""

config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="imagemanager.json (else $GWCONFIG, else the one in $CONFIG_PATH).",
)
"""The option of a command that runs on the gateway's own machine."""
