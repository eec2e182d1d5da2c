"""uploads: list the user's own uploads at the gateways of a system, and remove them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

import click

from shiftergw.cli import answers
from shiftergw.cli.exits import (
    BEST_TO_WORST,
    DONE,
    NO_GATEWAY,
    Misuse,
    RequestRefused,
    Stop,
    report,
)
from shiftergw.cli.options import single_system_option
from shiftergw.cli.remote import Remote
from shiftergw.cli.requests import run_requests
from shiftergw.cli.settings import Settings
from shiftergw.errors import GatewayError, amount, printable

_OLD_GATEWAY = "The gateway is older than this command: it lists no uploads."


@click.command()
@click.option(
    "--remove", "upload_ids", metavar="ID", multiple=True, help="Remove this upload; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print the uploads as JSON.")
@single_system_option
@click.pass_obj
def uploads(settings: Settings, upload_ids: tuple[str, ...], as_json: bool) -> None:
    """List your uploads that no image has been made of yet, the last changed one first.

    The gateway removes each of them at the time that is shown, unless its upload goes on before.
    """
    if upload_ids and as_json:
        raise Misuse("Give one of: --remove ID, --json.")
    for upload_id in upload_ids:
        if not answers.is_key(upload_id):
            raise Misuse(f"{printable(upload_id, 120)!r} is not the id of an upload.")

    codes: dict[str, int] = {}

    async def command(remote: Remote) -> int:
        if not upload_ids:
            return await _list(remote, as_json=as_json)
        for upload_id in upload_ids:
            # `run_requests` may run this again, by another client: what is removed stays so.
            if upload_id not in codes:
                codes[upload_id] = await _remove(remote, upload_id)
        return max(codes.values(), key=BEST_TO_WORST.index)

    run_requests(settings, command)


async def _remove(remote: Remote, upload_id: str) -> int:
    """Remove an upload from the gateway that has it; say what came of it, return the exit code."""
    path = ["upload", upload_id]
    try:
        await remote.ask_first("DELETE", path, answers.parse_object, needs_all=True)
    except (Stop, GatewayError) as error:
        code = report(error)
        remedy = " Run the command again when all gateways answer." if code == NO_GATEWAY else ""
        click.echo(f"{upload_id} is not removed.{remedy}", err=True)
        return code
    click.echo(f"{upload_id} is removed.")
    return DONE


async def _list(remote: Remote, *, as_json: bool) -> int:
    """Print the uploads at all gateways, and the errors of those that do not answer."""
    lists, errors = await remote.ask_each("GET", ["upload"], answers.parse_uploads)
    # Gateways have a spool each, or share one.
    by_id = {row["upload"]: row for uploads in lists for row in uploads}
    rows = sorted(by_id.values(), key=lambda row: row["expires"], reverse=True)
    code = DONE
    for error in errors:
        # The request has nothing that could be wrong.
        is_old = isinstance(error, Misuse)
        shown_error = RequestRefused(_OLD_GATEWAY) if is_old else error
        shown_error.show()
        code = code or shown_error.exit_code
    if as_json:
        click.echo(json.dumps(rows))
    else:
        click.echo(uploads_table(rows), nl=False)
        if not (rows or errors):
            click.echo("You have no uploads.", err=True)
    return code


def uploads_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return one line per upload: id, bytes, expiration, file, and what is made of it."""
    lines = []
    for row in rows:
        size, offset = row["size"], row["offset"]
        progress = amount(size) if offset == size else f"{amount(offset)} of {amount(size)}"
        date = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(row["expires"]))
        filename = printable(row.get("filename") or "-")
        line = f"{row['upload']:32} {progress:20} until {date} {filename}"
        images = [printable(f"custom:{image}", 1000) for image in row.get("images", [])]
        if images:
            line += f" (used by {', '.join(images)})"
        lines.append(f"{line}\n")
    return "".join(lines)
