"""convert: convert one image, from anywhere, to one squashfs file, without any service."""

from __future__ import annotations

import json
import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shiftergw.cli.exits import DONE, Misuse, text_of
from shiftergw.cli.image_names import image_of
from shiftergw.cli.progress import Display
from shiftergw.cli.progress_rows import Row
from shiftergw.cli.reactor import run
from shiftergw.cli.scratch_directory import scratch_directory
from shiftergw.config import Config
from shiftergw.errors import GatewayError
from shiftergw.model.build_options import COMPRESSORS, GZIP_LEVEL, HIGHEST_LEVEL, SquashOptions
from shiftergw.model.names import DOCKER_HUB, DOCKER_HUB_ALIASES
from shiftergw.model.records import Progress
from shiftergw.model.references import ImageReference
from shiftergw.model.source_names import LocalSourceName, parse_source
from shiftergw.states import State

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

_NAME_LIMIT = 200
"""Bytes of OUT's name: temporary files have longer names, and file systems allow 255 bytes."""

SYSTEM = "local"
"""The name of the system if there is no configuration."""


@click.command()
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="imagemanager.json")
@click.option("--system", "system", help="Whose architecture and squashfs options.")
@click.option(
    "--policy",
    "policy_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Which images need which signatures: containers-policy.json(5).",
)
@click.option("--plain-http", is_flag=True, help="Speak http with the registry that SOURCE names.")
@click.option(
    "--compressor",
    metavar="NAME",
    type=click.Choice(COMPRESSORS),
    help="gzip, lzo, lz4, xz or zstd.",
)
@click.option("--level", type=click.IntRange(1, 22), help="Compression level.")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
def convert(
    config_file: Path | None,
    system: str | None,
    policy_file: Path | None,
    plain_http: bool,
    compressor: str | None,
    level: int | None,
    source: str,
    out: Path,
) -> None:
    """Write the image SOURCE to OUT, a squashfs file.

    SOURCE is the name of an image in a registry, or one of oci:DIR[:TAG], oci-archive:FILE[:TAG],
    docker-archive:FILE[:NAME], dir:DIR, sif:FILE, squashfs:FILE, the path of any of them, or - for
    standard input.

    With --config the image must be one that the policy of the system accepts. --policy replaces
    that policy.

    Progress goes to standard error; on standard output comes one JSON object at the end.
    """
    out = out.absolute()
    _check_replaceable(out)
    scratch = out.parent / f".{out.name}.{secrets.token_hex(4)}"
    try:
        image = _image(source)
        if isinstance(image, LocalSourceName):
            _check_source_stays(image, out)
        plain_http = plain_http or source.lower().startswith("http://")
        config = _config(config_file, image, plain_http, scratch)
    except GatewayError as error:
        raise Misuse(text_of(error)) from error
    name = system_of(config, system)
    if policy_file is not None:
        config = _with_policy(config, name, policy_file.absolute())
    options = squash_options(config.systems[name].squash_options(config), compressor, level)

    async def command(reactor: Reactor) -> int:
        # Not needed for `--help`.
        from shiftergw.app.convert import Conversion, convert  # noqa: PLC0415

        # Made while signals are cancellations, so that no signal leaves it behind.
        with scratch_directory(scratch), Display() as display:
            # A site's own converted files stay in place, for deliveries.
            scratch_only = config_file is None
            (row,) = display.rows
            watcher = RowWatcher(row)
            conversion = Conversion(image, name, out, scratch, options, link=scratch_only)
            result = await convert(reactor, config, conversion, watcher)
            row.end("Done", is_complete=True, members={})
        click.echo(json.dumps(result))
        return DONE

    run(command)


def _image(source: str) -> ImageReference | LocalSourceName:
    """Return what SOURCE names; raise `Misuse` or `BadRequest`."""
    local = parse_source(source)
    if local is None:
        path = Path(source)
        if path.is_file() or path.is_dir():
            kind = "directory" if path.is_dir() else "file"
            line = f"{source} is taken for a name in a registry; for the {kind} write ./{source}"
            click.echo(line, err=True)
        _, name = image_of(source)
        return ImageReference.parse(name)
    if local.kind == "stdin" and sys.stdin.isatty():
        raise Misuse("- reads an archive from standard input: nothing is piped into this command.")
    return local


def _check_replaceable(out: Path) -> None:
    """Raise `Misuse` unless a file may be renamed to `out`: a rename replaces a device, too."""
    if not out.parent.is_dir():
        raise Misuse(f"{out.parent} is not a directory.")
    if len(os.fsencode(out.name)) > _NAME_LIMIT:
        raise Misuse(f"The name of OUT is longer than {_NAME_LIMIT} bytes.")
    if out.exists() and not out.is_file():
        raise Misuse(
            f"{out} is a directory, a device or another special file: name a new file, or a regular"
            " one to replace."
        )


def _check_source_stays(source: LocalSourceName, out: Path) -> None:
    """Raise `Misuse` if `out` is the source, or a file of it: it would be replaced."""
    if not out.exists():
        return
    if source.kind == "stdin":
        is_source = os.path.samestat(os.fstat(sys.stdin.fileno()), out.stat())
    else:
        is_same = source.path.exists() and source.path.samefile(out)
        is_source = is_same or source.path.resolve() in out.resolve().parents
    if is_source:
        raise Misuse(f"{out} is SOURCE itself, or a part of it: name another file for OUT.")


def _config(
    file: Path | None, image: ImageReference | LocalSourceName, plain_http: bool, scratch: Path
) -> Config:
    if file is not None:
        configuration = Config.load(file, os.environ)
        for warning in configuration.warnings:
            click.echo(f"{file}: {warning}", err=True)
        return configuration.config
    reference = image if isinstance(image, ImageReference) else None
    document = default_document(reference, scratch, plain_http=plain_http)
    return Config.from_document(document, base=scratch, environ={}).config


def default_document(
    reference: ImageReference | None, scratch: Path, *, plain_http: bool
) -> dict[str, Any]:
    """Return a configuration with Docker Hub and the registry of `reference`, if there is one.

    All its directories are in `scratch`.
    """
    urls = {DOCKER_HUB: f"https://{DOCKER_HUB}"}
    host, slash, _ = ("" if reference is None else reference.name).partition("/")
    # Docker's rule: a first part with a dot or a port is a host; otherwise it belongs to the name.
    if slash and ("." in host or ":" in host or host == "localhost"):
        if host not in DOCKER_HUB_ALIASES:
            urls[host] = f"{'http' if plain_http else 'https'}://{host}"
    elif plain_http:
        raise Misuse("--plain-http needs a SOURCE that begins with its registry's host.")
    return {
        "Platforms": {SYSTEM: {"accesstype": "local", "local": {"imageDir": str(scratch)}}},
        "Locations": {name: {"remotetype": "dockerv2", "url": url} for name, url in urls.items()},
        "DefaultImageLocation": DOCKER_HUB,
        "CacheDirectory": str(scratch / "cache"),
        "ExpandDirectory": str(scratch / "expand"),
        "StateDirectory": str(scratch / "state"),
        "Authentication": "mock",
    }


def system_of(config: Config, name: str | None) -> str:
    """Return the name of the chosen system, or else of the only one; raise `Misuse`."""
    names = list(config.systems)
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise Misuse(f"--system must be one of: {', '.join(names)}")
    return name


def _with_policy(config: Config, name: str, policy_file: Path) -> Config:
    """Return the configuration with another policy of one system."""
    system = config.systems[name].model_copy(update={"policy_file": policy_file})
    return config.model_copy(update={"systems": {**config.systems, name: system}})


def squash_options(
    options: SquashOptions, compressor: str | None, level: int | None
) -> SquashOptions:
    """Return the configured options, changed by those of the command line; raise `Misuse`."""
    if compressor is not None and compressor != options.compressor:
        default = GZIP_LEVEL if compressor == "gzip" else None
        options = replace(options, compressor=compressor, level=default)
    if level is None:
        return options
    highest = HIGHEST_LEVEL.get(options.compressor)
    if highest is None:
        raise Misuse(f"{options.compressor} has no levels.")
    if level > highest:
        raise Misuse(f"The levels of {options.compressor} are 1 to {highest}.")
    return replace(options, level=level)


class RowWatcher:
    """Shows a conversion in a row of a display."""

    def __init__(self, row: Row) -> None:
        """Show in `row`."""
        self._row = row
        self._progress = Progress()

    def enter_stage(self, state: State, message: str) -> None:
        """Show the stage that begins."""
        self._progress = Progress()
        self._row.stage(message or state.value)

    def report(self, progress: Progress) -> None:
        """Show the progress of the stage, which never goes backwards."""
        self._progress = progress.after(self._progress)
        self._row.bytes(self._progress.done, self._progress.total)

    def report_reading(self, progress: Progress) -> None:
        """Show nothing: the display has one stage."""

    def notify(self, message: str) -> None:
        """Show what the conversion waits for."""
        self._row.notify(message)
