"""Options that more than one command has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from shiftergw.cli.settings import systems_of


class Listed(click.types.StringParamType):
    """A text; of an environment variable, each text of a list with commas.

    A comma counts where `NAME=` follows it: a path may have some of its own.
    """

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Return the texts of an environment variable."""
        return re.split(r",(?=[^,/=]+=)", rv)


def _chosen(context: click.Context, _: click.Parameter, texts: Sequence[str]) -> None:
    """Have the systems that the command itself names count before those named earlier."""
    systems = systems_of(texts)
    if systems and not context.resilient_parsing:  # a shell that completes a word has no settings
        context.obj = replace(context.obj, systems=systems)


def _chosen_one(context: click.Context, option: click.Parameter, texts: Sequence[str]) -> None:
    """Refuse several, wherever they are named."""
    _chosen(context, option, texts)
    if not context.resilient_parsing and context.obj.systems:
        context.obj.found_system()


of_one_system = click.option(
    "--system",
    multiple=True,
    expose_value=False,
    callback=_chosen_one,
    metavar="NAME",
    help="Name of the cluster.",
)
"""The option of a command for one system."""

of_systems = click.option(
    "--system",
    multiple=True,
    expose_value=False,
    callback=_chosen,
    metavar="LIST",
    help="Names of the clusters, with commas; repeatable.",
)
"""The option of a command for one system or several."""

config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="imagemanager.json (else $GWCONFIG, else the one in $CONFIG_PATH).",
)
"""The option of a command that works on the gateway's own machine."""
