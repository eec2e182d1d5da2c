"""workers: which machines work for a system, and at what."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

import click

from shiftergw import __version__
from shiftergw.cli.exits import DONE, run
from shiftergw.cli.options import of_one_system
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from shiftergw.errors import printable


@click.command(short_help="Show the machines that do the work (admins).")
@click.option("--json", "as_json", is_flag=True, help="Print the machines as JSON.")
@of_one_system
@click.pass_obj
def workers(settings: Settings, as_json: bool) -> None:
    """Show the machines that work for the system: slots, version, last sign of life, jobs (admins).

    A machine whose version is not this command's is marked by an exclamation mark.
    """

    async def command(reactor: Any) -> int:
        found = await Remote(reactor, settings).workers()
        if as_json:
            click.echo(json.dumps(found))
        elif found:
            click.echo(workers_table(found, time.time()), nl=False)
        else:
            click.echo("No machine works for this system.", err=True)
        return DONE

    run(command)


def workers_table(machines: Iterable[Mapping[str, Any]], now: float) -> str:
    """Return one line per machine, and one below it for each of its jobs."""
    lines = []
    for one in machines:
        jobs = one.get("jobs")
        jobs = jobs if isinstance(jobs, list) else []
        heard = one.get("heard")
        silent = max(0, now - heard) if isinstance(heard, (int, float)) else 0
        version = printable(str(one.get("version")), 40)
        mark = "" if version == __version__ else "!"
        leaving = " leaving" if one.get("leaving") is True else ""
        name, slots = printable(str(one.get("name")), 100), printable(str(one.get("slots")), 10)
        use = f"{len(jobs)}/{slots}"
        lines.append(f"{name:30} {use:>7} {version + mark:10} {silent:5.0f} s ago{leaving}\n")
        lines += [f"    {printable(str(job), 1000)}\n" for job in jobs]
    return "".join(lines)
