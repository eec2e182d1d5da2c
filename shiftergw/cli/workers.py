"""workers: show the worker machines of a system and their jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

import click

from shiftergw import __version__
from shiftergw.cli.exits import DONE
from shiftergw.cli.options import single_system_option
from shiftergw.cli.remote import Remote
from shiftergw.cli.requests import run_requests
from shiftergw.cli.settings import Settings
from shiftergw.errors import printable


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the machines as JSON.")
@single_system_option
@click.pass_obj
def workers(settings: Settings, as_json: bool) -> None:
    """Show the machines that work for the system: slots, version, last sign of life, jobs (admins).

    A machine whose version is not this command's is marked by an exclamation mark.
    """

    async def command(remote: Remote) -> int:
        machines = await remote.workers()
        if as_json:
            click.echo(json.dumps(machines))
        elif machines:
            click.echo(workers_table(machines, time.time()), nl=False)
        else:
            click.echo("No machine works for this system.", err=True)
        return DONE

    run_requests(settings, command)


def workers_table(machines: Iterable[Mapping[str, Any]], now: float) -> str:
    """Return one line per machine, and one below it for each of its jobs."""
    lines = []
    for machine in machines:
        jobs = machine.get("jobs")
        jobs = jobs if isinstance(jobs, list) else []
        heartbeat = machine.get("heard")
        silence = max(0, now - heartbeat) if isinstance(heartbeat, (int, float)) else 0
        version = printable(str(machine.get("version")), 40)
        mark = "" if version == __version__ else "!"
        leaving = " leaving" if machine.get("leaving") is True else ""
        name, slots = (
            printable(str(machine.get("name")), 100),
            printable(str(machine.get("slots")), 10),
        )
        use = f"{len(jobs)}/{slots}"
        lines.append(f"{name:30} {use:>7} {version + mark:10} {silence:5.0f} s ago{leaving}\n")
        lines += [f"    {printable(str(job), 1000)}\n" for job in jobs]
    return "".join(lines)
