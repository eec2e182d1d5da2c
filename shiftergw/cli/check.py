"""check: check that this machine can run the gateway with this configuration."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from shiftergw.cli.exits import DONE, FAILURE, Misuse, text_of
from shiftergw.cli.options import config_option
from shiftergw.cli.output import Console
from shiftergw.cli.reactor import run
from shiftergw.config import Config, file_of_environment
from shiftergw.errors import ConfigurationError

if TYPE_CHECKING:
    from shiftergw.app.checkup import Finding
    from shiftergw.plumbing.reactor import Reactor

UNWRAPPED_WIDTH = 1000
"""Characters of a line if the output is not a terminal."""

_COLORS = {"ok": "green", "warning": "yellow", "failure": "bold red"}


@click.command()
@config_option
@click.option("--database", is_flag=True, help="Tell what is in the database, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(config_file: Path | None, database: bool, as_json: bool) -> None:
    """Check the configuration and everything that it names, and say what to do.

    With --database tell instead what is in the database of the configuration, and what becomes of
    it when the gateway starts: for one that the original gateway has filled.

    Exits with 1 if something would keep the gateway from working, and with 2 if the configuration
    cannot be read. Warnings, such as a registry beside the default one that does not answer, do not
    count.
    """
    try:
        configuration = Config.load(config_file or file_of_environment(os.environ), os.environ)
    except ConfigurationError as error:
        if as_json:
            rows = [_row("failure", "configuration", error.what, error.remedy)]
            click.echo(json.dumps(rows))
        raise Misuse(text_of(error)) from error

    async def command(reactor: Reactor) -> int:
        # Not needed for `--help`.
        from shiftergw.app.checkup import checkup, contents  # noqa: PLC0415

        # A file or a pipe has no width, so lines need not be wrapped.
        width = None if sys.stdout.isatty() else UNWRAPPED_WIDTH
        if database:
            findings = await contents(reactor, configuration.config)
        else:
            findings = await checkup(reactor, configuration, os.environ)
        if as_json:
            rows = [_row(f.level, f.name, f.text, f.remedy) for f in findings]
            click.echo(json.dumps(rows))
        else:
            show(findings, Console(highlight=False, width=width))
        return FAILURE if any(f.level == "failure" for f in findings) else DONE

    run(command)


def _row(level: str, subject: str, what: str, remedy: str) -> dict[str, str]:
    """Return a finding as JSON has it; the remedy may be empty."""
    return {"level": str(level), "subject": subject, "what": what, "remedy": remedy}


def show(findings: Iterable[Finding], console: Console) -> None:
    """Print findings as a table."""
    table = Table("", "What", "Found, and what to do", box=None, pad_edge=False)
    for finding in findings:
        level = Text(finding.level, style=_COLORS[finding.level])
        text = Text(finding.text)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style="bold")
        table.add_row(level, Text(finding.name), text)
    console.print(table)
