"""Check where the admin listener is to listen, and the files and the group that it needs."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from shiftergw.app.admin import KEY, group_id, read_token, tls_endpoint
from shiftergw.app.checkup.finding import Finding, Level, failure
from shiftergw.config import Config
from shiftergw.errors import GatewayError, printable
from shiftergw.plumbing.files import nearest_existing
from shiftergw.plumbing.listening import Listener, remedy
from shiftergw.plumbing.unix_listening import check_path, has_listener

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor


async def admin_listener(config: Config, reactor: Reactor) -> Finding:
    """Check `AdminListen`, with its group, certificate and token; return the finding."""
    finding = await _finding(config, reactor)
    if config.admin_listen.is_default and finding.level is Level.FAILURE:
        return replace(finding, level=Level.WARNING)  # the gateway works without it
    return finding


async def _finding(config: Config, reactor: Reactor) -> Finding:
    address = config.admin_listen
    try:
        if address.path is not None:
            return _socket(address.path, config)
        if address:
            return await _port(config, reactor)
    except GatewayError as error:
        return failure(KEY, error)
    return Finding(KEY, Level.OK, "none")


def _socket(path: Path, config: Config) -> Finding:
    check_path(KEY, path)
    group = None if config.admin_group is None else group_id(config.admin_group)
    directory = nearest_existing(path.parent)
    # StateDirectory is made at the start; other directories are not.
    if path.parent not in {directory, config.state_directory}:
        text = f"{path.parent}: no such directory, or you may not enter it"
        return Finding(KEY, Level.FAILURE, text, "Make it, for the gateway's user.")
    if not os.access(directory, os.W_OK | os.X_OK):
        text = f"{directory}: you may not write to it"
        return Finding(KEY, Level.FAILURE, text, "Give it to the gateway's user.")
    if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
        return Finding(KEY, Level.FAILURE, f"{path} is not a socket", "Remove it.")
    if group is not None and (problem := _group_problem(path.parent, group, config)):
        return problem
    return Finding(KEY, Level.OK, f"{path}{': a gateway answers there' * has_listener(path)}")


def _group_problem(directory: Path, group: int, config: Config) -> Finding | None:
    """Return why the members of `AdminGroup` could not use the socket, if they could not."""
    if os.geteuid() != 0 and group not in {os.getegid(), *os.getgroups()}:
        text = f"AdminGroup: you are not in the group {printable(config.admin_group or '', 60)}"
        remedy_text = "Add the gateway's user to it: only members may give a file to a group."
        return Finding(KEY, Level.FAILURE, text, remedy_text)
    if directory == config.state_directory:
        return Finding(
            KEY,
            Level.WARNING,
            "AdminGroup has no effect: only the gateway's user may enter StateDirectory",
            "Name a socket in another directory, such as /run/shiftergw/admin.sock.",
        )
    return None


async def _port(config: Config, reactor: Reactor) -> Finding:
    """Read the token and the certificate, and listen for a moment."""
    assert config.admin_token_file is not None  # a port without it does not load
    read_token(config.admin_token_file)
    listener = Listener(tls_endpoint(config), Factory(), reactor, KEY)
    try:
        await listener.startService()
    except CannotListenError as error:
        text = printable(str(error))
        advice = f"Unless it is the gateway that listens there: {remedy(error, KEY)}"
        return Finding(KEY, Level.WARNING, text, advice)
    await listener.stopService()
    return Finding(KEY, Level.OK, f"{config.admin_listen} is free")
