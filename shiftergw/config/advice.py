"""Warn of values whose effect differs from what the author of a configuration may expect."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from shiftergw.config.checks import ssh_deliveries
from shiftergw.config.document import objects_in, place
from shiftergw.config.location_checks import location_advice

if TYPE_CHECKING:
    from shiftergw.config import Config


def advice(document: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Yield a warning for each value whose effect differs from what its author may expect.

    `config` is the loaded `document`.
    """
    for name, platform in objects_in(document, "Platforms"):
        if isinstance(platform.get("admins"), str):
            yield f"{place('Platforms', name, 'admins')}: text is read as one name; write a list"
    yield from _shared_socket_warnings(document)
    yield from _config_warnings(config)
    yield from _shared_directory_warnings(document)
    if document.get("MongoDB") is not None and document.get("MongoDBURI") is None:
        yield "MongoDB: has no effect without MongoDBURI: the state is in SQLite"
    if document.get("BrokerAway") is not None and document.get("BrokerURL") is None:
        yield "BrokerAway: has no effect without BrokerURL: the gateway has its own workers"
    if config.broker_url is not None and config.gateway_url is None:
        yield (
            "GatewayURL: is not set, so worker machines that do not see UploadDirectory cannot make"
            " images of uploads"
        )
    if config.import_command and config.import_users == ():
        yield "ImportCommand: has no effect, because ImportUsers lists nobody"
    if document.get("ImportUsers") == []:
        yield 'ImportUsers: an empty list means nobody (in the original, everybody: write "all")'


def _config_warnings(config: Config) -> Iterator[str]:
    """Yield the warnings that do not depend on how the values are written in the document."""
    yield from location_advice(config.locations)
    for name, ssh in ssh_deliveries(config):
        where = place("Platforms", name, "ssh")
        if ssh.transport == "conch":
            yield from (f"{where}.{warning}" for warning in ssh.options.warnings)
        elif ssh.scp_cmd_options:
            yield (
                f'{where}.scpCmdOptions: has no meaning with "transport": "openssh", which runs'
                " `ssh` and never `scp`; write options for `ssh` in sshCmdOptions"
            )
    yield from _policy_warnings(config)
    if config.disable_acl_metadata:
        yield (
            "DISABLE_ACL_METADATA: the metadata of private images names no readers, so every user"
            " of the compute nodes who knows an image's id can start the image; only runtimes that"
            " are too old to read the names need this key"
        )
    if config.waiting_per_user > config.fair_share:
        yield (
            "UserLimits.waiting: one user may have more than a tenth of QueueLimit"
            f" ({config.fair_share}) waiting, and can keep other users out of the queue"
        )


def _shared_socket_warnings(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a warning for each system that uses the munge socket of an earlier one."""
    systems_by_socket: dict[str, str] = {}
    for name, platform in objects_in(document, "Platforms"):
        socket = platform.get("mungeSocketPath")
        if isinstance(socket, str) and systems_by_socket.setdefault(socket, name) != name:
            yield (
                f"{place('Platforms', name, 'mungeSocketPath')}: {systems_by_socket[socket]} has"
                " the same socket, so each accepts the credentials of the other"
            )


def _shared_directory_warnings(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a warning for remote systems that seem to share a directory under different names.

    The first host is part of a directory's name in the store. A directory with two names has two
    lists of readers, and its leases do not exclude each other.
    """
    directories: list[tuple[str, str, list[str]]] = []
    for name, platform in objects_in(document, "Platforms"):
        hosts, ssh = platform.get("host"), platform.get("ssh")
        path = ssh.get("imageDir") if isinstance(ssh, dict) else None
        is_remote = platform.get("accesstype") == "remote"
        if not (is_remote and isinstance(hosts, list) and hosts and isinstance(path, str)):
            continue
        path = os.path.normpath(path)
        for earlier_name, earlier_path, earlier_hosts in directories:
            shares_host = any(host in earlier_hosts for host in hosts)
            if earlier_path == path and shares_host and earlier_hosts[0] != hosts[0]:
                yield (
                    f"{place('Platforms', name, 'host')}: {earlier_name} has the same imageDir on"
                    " some of these hosts, but its first host is another; if the systems share the"
                    " directory, put the same host first in both"
                )
        directories.append((name, path, hosts))


def _policy_warnings(config: Config) -> Iterator[str]:
    """Yield a warning for each system whose images another policy may have put in place."""
    policies: dict[str, tuple[str, object]] = {}
    for name, system in config.systems.items():
        earlier = policies.setdefault(system.directory_name, (name, system.policy_file))
        if earlier[1] != system.policy_file:
            yield (
                f"{place('Platforms', name, 'policy_file')}: {earlier[0]} has the same image"
                " directory and another policy, so jobs can run what only one of them accepts"
            )
