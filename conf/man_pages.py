"""Write the manual pages of all commands into a directory: python conf/man_pages.py DIRECTORY.

The texts are those of `--help`. The pages have the date of SOURCE_DATE_EPOCH, so that a package is
built the same each time. Nothing but an installed shiftergw is needed.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from shiftergw import __version__
from shiftergw.cli.importer import importer
from shiftergw.cli.main import COMMANDS, main

SUMMARY_LIMIT = 200
"""Characters of the line that whatis(1) shows."""

_CHARACTERS = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "^": r"\(ha", "~": r"\(ti", "`": r"\(ga"}
"""Characters that roff replaces by others, and how to have them as they are (groff_char(7))."""


def roff(text: str) -> str:
    """Return a line of text in the language of the pages; words in backquotes are bold."""
    pieces = [
        "".join(_CHARACTERS.get(character, character) for character in piece)
        for piece in re.split("`([^`]+)`", text)
    ]
    bold = [rf"\fB{piece}\fP" if number % 2 else piece for number, piece in enumerate(pieces)]
    line = "".join(bold)
    return rf"\&{line}" if line.startswith(".") else line  # a dot there begins a request


def page_of(context: click.Context, summary: str) -> Iterator[str]:
    """Yield the lines of the page of a command."""
    command, name = context.command, context.command_path.replace(" ", "-")
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    yield f'.TH "{roff(name.upper())}" 1 {date} "shiftergw {__version__}" "User Commands"'
    yield ".SH NAME"
    yield rf"{roff(name)} \- {roff(summary.rstrip('.'))}"
    yield ".SH SYNOPSIS"
    usage = " ".join(command.collect_usage_pieces(context))
    yield rf"\fB{roff(context.command_path)}\fP {roff(usage)}"
    yield ".SH DESCRIPTION"
    for line in (command.help or summary).splitlines():
        yield roff(line.strip()) or ".PP"
    yield ".SH OPTIONS"
    options = [option for option in command.get_params(context) if isinstance(option, click.Option)]
    for option in options:
        names, text = option.get_help_record(context) or ("", "")
        yield from (".TP", rf"\fB{roff(names)}\fP", roff(text))
    variables = {option.envvar: option.opts[0] for option in options if option.envvar}
    if variables:
        yield ".SH ENVIRONMENT"
    for variable, name in variables.items():
        yield from (".TP", rf"\fB{variable}\fP", roff(f"Stands for `{name}` where that is absent."))
    if context.parent is not None:
        yield from (".SH SEE ALSO", rf"\fB{roff(context.parent.command_path)}\fP(1)")


def pages_of(program: str, group: click.Group) -> Iterator[tuple[str, str]]:
    """Yield the names and the contents of the pages of a program and its commands."""
    context = click.Context(group, info_name=program)
    lines = [*page_of(context, (group.help or "").partition("\n")[0]), ".SH COMMANDS"]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        entry = COMMANDS.get(name) if group is main else None
        summary = entry.summary if entry else command.get_short_help_str(SUMMARY_LIMIT)
        page = page_of(click.Context(command, info_name=name, parent=context), summary)
        yield f"{program}-{name}.1", "\n".join([*page, ""])
        lines += [".TP", rf"\fB{roff(f'{program}-{name}')}\fP(1)", roff(summary)]
    yield f"{program}.1", "\n".join([*lines, ""])


def write_pages(directory: Path) -> None:
    """Write all pages into a directory, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    for program, group in (("shiftergw", main), ("shiftergw-pyxis", importer)):
        for name, content in pages_of(program, group):
            (directory / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and the directory
        sys.exit("usage: python conf/man_pages.py DIRECTORY")
    write_pages(Path(sys.argv[1]))
