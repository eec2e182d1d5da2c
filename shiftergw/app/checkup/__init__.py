"""Check all that the gateway needs to start and work, behind `shiftergw check`.

Nothing is changed on this machine. In the image directory of a remote system a small file is
created and removed again, since only that shows whether the account may write there. The checks use
the rights of the user who runs them: run them as the gateway's user.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.web.client import Agent, HTTPConnectionPool

from shiftergw.app.checkup.admin import admin_listener
from shiftergw.app.checkup.audit import audit_log
from shiftergw.app.checkup.builders import builders, link_races
from shiftergw.app.checkup.contents import contents
from shiftergw.app.checkup.database import state
from shiftergw.app.checkup.finding import NETWORK_LIMIT, Finding, Level, failure, of_free_space
from shiftergw.app.checkup.hosts import remote_directory
from shiftergw.app.checkup.machines import broker
from shiftergw.app.checkup.packers import packers
from shiftergw.app.checkup.policies import policies
from shiftergw.app.checkup.registries import registries
from shiftergw.app.checkup.secrets import secrets
from shiftergw.app.checkup.users import users
from shiftergw.app.preparation import check_one_name, identity
from shiftergw.build import mksquashfs
from shiftergw.build.check import unsquashfs_of
from shiftergw.config import Config, LoadedConfig, System
from shiftergw.errors import GatewayError, TimedOut, amount, printable
from shiftergw.plumbing import listening
from shiftergw.plumbing.files import broken_link, is_read_only, nearest_existing
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

_READ_ONLY = "its file system is mounted read-only"
_MOUNT = "Mount it for writing, or name another directory."

__all__ = ["Finding", "Level", "checkup", "contents"]


async def checkup(
    reactor: Reactor, loaded_config: LoadedConfig, environ: Mapping[str, str]
) -> list[Finding]:
    """Return all findings about a configuration and what it names, in the order of the file."""
    config = loaded_config.config
    findings = [*_configuration(loaded_config), *secrets(loaded_config), *_directories(config)]
    findings += [*audit_log(config), *builders(config)]
    findings += packers(config)
    findings += await state(config, reactor)
    findings += await broker(config, reactor)
    findings += [finding async for finding in _programs(config, reactor)]
    findings += [finding async for finding in policies(config, reactor)]
    findings += [finding async for finding in users(config, reactor)]
    for host_findings in await gather_or_cancel(
        remote_directory(system, section, reactor)
        for system in config.systems.values()
        if (section := system.ssh_delivery) is not None
    ):
        findings += host_findings
    findings += await registries(config, environ, reactor)
    findings += await _listeners(config, reactor)
    return [*findings, await admin_listener(config, reactor)]


def _failure_of(name: str, check: Callable[[], object]) -> Finding | None:
    """Return the failure that `check` raises, or None."""
    try:
        check()
    except GatewayError as error:
        return failure(name, error)
    return None


def _configuration(loaded_config: LoadedConfig) -> Iterator[Finding]:
    name = "configuration"
    yield from (Finding(name, Level.WARNING, warning) for warning in loaded_config.warnings)
    problem = _failure_of(name, loaded_config.config.check_supported)
    yield problem or Finding(name, Level.OK, f"systems: {', '.join(loaded_config.config.systems)}")


def _directories(config: Config) -> Iterator[Finding]:
    """Yield the findings about every local directory in which the gateway writes."""
    for name, path in (
        ("StateDirectory", config.state_directory),
        ("UploadDirectory", config.upload_directory),
        ("CacheDirectory", config.cache_directory),
        ("ExpandDirectory", config.expand_directory),
    ):
        yield _private_directory(name, path)
    for system in config.systems.values():
        if system.delivery.is_mounted:
            yield _image_directory(system)
    problem = _failure_of("image directories", partial(_check_names, config))
    if problem is not None:
        yield problem


def _check_names(config: Config) -> None:
    """Raise `ConfigurationError`, as the start does, for one image directory under two names."""
    places: list[tuple[System, tuple[int, int]]] = []
    for system in config.systems.values():
        if system.delivery.is_mounted:
            with suppress(OSError):  # `_image_directory` reports it
                places.append((system, identity(system.image_dir)))
    check_one_name(places)


def _private_directory(name: str, path: Path) -> Finding:
    """Check a directory that the gateway creates if necessary, and closes to other users."""
    existing = nearest_existing(path)
    if link := broken_link(path):
        text = f"{path} cannot be made: {link} is a symbolic link that leads nowhere"
    elif not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        absent = "" if path == existing else f"{path} cannot be made: "
        reason = "you may not write to it" if existing.is_dir() else "it is no directory"
        text = f"{absent}{existing}: {reason}"
        if is_read_only(existing):
            text = f"{absent}{existing}: {_READ_ONLY}"
            return Finding(name, Level.FAILURE, text, _MOUNT)
    elif path == existing and os.geteuid() not in {0, path.stat().st_uid}:
        text = f"{path} belongs to another user"
    else:
        return _space(name, path, existing)
    remedy = "Make it a directory that belongs to the gateway's user, or name another one."
    return Finding(name, Level.FAILURE, text, remedy)


def _image_directory(system: System) -> Finding:
    name, path = f"imageDir of {system.name}", system.image_dir
    if nearest_existing(path) != path or not path.is_dir():
        remedy = "Make it, for the gateway's user, on the file system that the nodes see."
        return Finding(name, Level.FAILURE, f"{path}: there is no such directory for you", remedy)
    if is_read_only(path):
        return Finding(name, Level.FAILURE, f"{path}: {_READ_ONLY}", _MOUNT)
    if not os.access(path, os.W_OK | os.X_OK):
        remedy = "Give it to the gateway's user."
        return Finding(name, Level.FAILURE, f"{path} is not writable", remedy)
    if stat.S_IMODE(path.stat().st_mode) & stat.S_IWOTH:
        remedy = "Take the permission to write from everybody else: chmod o-w."
        return Finding(name, Level.WARNING, f"everybody may write to {path}", remedy)
    return _space(name, path, path)


def _space(name: str, path: Path, existing: Path) -> Finding:
    free = shutil.disk_usage(existing).free
    text = f"{path}{'' if path == existing else ' will be made'}: {amount(free)} free"
    return of_free_space(name, text, free)


async def _programs(config: Config, reactor: Reactor) -> AsyncIterator[Finding]:
    try:
        numbers = await mksquashfs.version(config.mksquashfs, reactor, reactor)
        warning = mksquashfs.check_version(numbers)
    except GatewayError as error:
        yield failure("mksquashfs", error)
    else:
        version = ".".join(map(str, numbers))
        yield Finding("mksquashfs", Level.WARNING if warning else Level.OK, warning or version)
        for finding in link_races(config, numbers):
            yield finding
    unsquashfs = unsquashfs_of(config.mksquashfs)
    path = shutil.which(unsquashfs)
    if path is None:
        remedy = "Install squashfs-tools: every image is checked with it."
        yield Finding("unsquashfs", Level.FAILURE, f"{unsquashfs} is not there", remedy)
    else:
        yield Finding("unsquashfs", Level.OK, path)
    path = shutil.which("sqfs2tar")
    text = path or "not there; only SIF and squashfs files need it (squashfs-tools-ng)"
    yield Finding("sqfs2tar", Level.OK, text)
    if config.import_command:
        program = config.import_command[0]
        path = shutil.which(program)
        remedy = "Install it on all machines with workers, or correct the key."
        yield (
            Finding("ImportCommand", Level.FAILURE, f"{printable(program)} is not there", remedy)
            if path is None
            else Finding("ImportCommand", Level.OK, path)
        )


async def _listeners(config: Config, reactor: Reactor) -> list[Finding]:
    """Listen at all addresses at the same time, as the gateway does, and stop."""
    ports: list[Any] = []
    try:
        return [await _listening(text, reactor, ports) for text in config.listen]
    finally:
        for port in ports:
            await port.stopListening()


async def _listening(text: str, reactor: Reactor, ports: list[Any]) -> Finding:
    """Check that the gateway's address is free, or that a gateway answers there already.

    A port that was opened is added to `ports`.
    """
    name = f"Listen {text}"
    try:
        ports.append(await serverFromString(reactor, text).listen(Factory()))
    except CannotListenError as error:
        if await _answers(text, reactor):
            return Finding(name, Level.OK, "a gateway answers there")
        # Only for tcp endpoints we can find out whether a gateway listens there.
        level = Level.FAILURE if text.startswith("tcp:") else Level.WARNING
        remedy = listening.remedy(error)
        if level is Level.WARNING:
            remedy = f"Unless it is the gateway that listens there: {remedy}"
        return Finding(name, level, printable(str(error)), remedy)
    except listening.ERRORS as error:
        return failure(name, listening.endpoint_error(text, error))
    return Finding(name, Level.OK, "free")


async def _answers(text: str, reactor: Reactor) -> bool:
    """Return whether a gateway answers at a tcp endpoint of this machine."""
    kind, _, rest = text.partition(":")
    number, *options = rest.split(":")
    interface = dict(option.partition("=")[::2] for option in options).get("interface", "127.0.0.1")
    if kind != "tcp" or not number.isdigit():
        return False
    pool = HTTPConnectionPool(reactor, persistent=False)
    asking = Agent(reactor, pool=pool).request(
        b"HEAD", f"http://{interface}:{number}/livez".encode()
    )
    try:
        response = await within(
            NETWORK_LIMIT, reactor, asking, lambda: TimedOut("The gateway does not answer.")
        )
        return bool(response.headers.getRawHeaders(b"server") == [b"shiftergw"])
    except CancelledError:
        raise
    except Exception:  # noqa: BLE001 - whatever the Agent raises: no gateway answers
        return False
