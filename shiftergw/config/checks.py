"""Check rules that concern several keys, and find values that this version does not support.

Every configuration of the original gateway loads. The start is refused, with an explanation, if it
requires something that this version cannot do; such a key is never ignored silently.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from shiftergw.config.broker import problems_of_url
from shiftergw.config.document import place
from shiftergw.config.locations import location_advice, location_problems
from shiftergw.errors import ConfigurationError

if TYPE_CHECKING:
    from shiftergw.config import Config
    from shiftergw.config.sections import SshDelivery

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "cifs", "smb3", "smbfs", "beegfs", "ceph", "fuse.sshfs",
     "9p", "afs", "panfs", "pvfs2", "orangefs", "wekafs", "glusterfs", "fuse.glusterfs", "ocfs2",
     "gfs2"}
)  # fmt: skip

_LONGEST_QUEUE_NAME = 200
"""Bytes of the name of a system that has a queue; a broker accepts 255 for the whole name."""

_KEYS_OF_ACCESS = {"local": ("local",), "remote": ("host", "ssh")}
"""The required keys of a system, by its `accesstype`."""


def _objects(document: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and content of each object in a table, such as `Platforms`."""
    table = document.get(key)
    if isinstance(table, dict):
        yield from ((name, inner) for name, inner in table.items() if isinstance(inner, dict))


def relation_problems(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a problem for each key that is missing or wrong because of another key."""
    munge = document.get("Authentication", "munge") == "munge"
    for name, platform in _objects(document, "Platforms"):
        if not name or "/" in name or not name.isprintable():
            yield (
                f"{place('Platforms', name)}: the name of a system is part of URLs: it must not be"
                " empty, nor contain / or control characters"
            )
        access = platform.get("accesstype")
        for key in _KEYS_OF_ACCESS.get(access, ()) if isinstance(access, str) else ():
            if platform.get(key) in (None, []):
                yield f'{place("Platforms", name, key)}: is required with accesstype "{access}"'
        if munge and platform.get("mungeSocketPath") is None:
            yield f"{place('Platforms', name, 'mungeSocketPath')}: is required with munge"
    yield from location_problems(document)
    if document.get("MongoDBURI") is not None and document.get("MongoDB") is None:
        yield "MongoDB: is required with MongoDBURI: the name of the database"
    yield from _import_problems(document)
    yield from _broker_problems(document)


def _import_problems(document: Mapping[str, Any]) -> Iterator[str]:
    command = document.get("ImportCommand")
    if isinstance(command, list) and command:
        texts = [argument for argument in command if isinstance(argument, str)]
        if "{path}" not in texts[1:]:
            yield 'ImportCommand: needs the argument "{path}", which stands for the file'
        if not {"{user}", "{uid}"}.intersection(texts[1:]):
            yield (
                'ImportCommand: needs "{user}" or "{uid}": without them every user could read the'
                " files of the gateway's user"
            )
        names = ("{path}", "{user}", "{uid}")
        if any(name in text and text != name for text in texts for name in names):
            yield (
                'ImportCommand: "{path}", "{user}" and "{uid}" must be whole arguments, or a shell'
                " could run commands that a user hides in a path"
            )
        if any(os.path.basename(text) in {"ssh", "rsh"} for text in texts):  # noqa: PTH119 - text
            yield (
                "ImportCommand: ssh gives its arguments to a shell, which would run commands that a"
                " user hides in a path; run a worker on the machine that has the files"
            )


def _broker_problems(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the reasons why workers on other machines cannot work with `BrokerURL`."""
    url = document.get("BrokerURL")
    if url is None:
        return
    if isinstance(url, str):
        yield from (f"BrokerURL: {problem}" for problem in problems_of_url(url))
    if find_spec("celery") is None:
        yield "BrokerURL: needs Celery, which is not installed: pip install 'shiftergw[celery]'"
    if document.get("MongoDBURI") is None:
        yield (
            "BrokerURL: needs MongoDBURI: workers on other machines cannot reach the SQLite file"
            " with the state of this gateway"
        )
    for name, _ in _objects(document, "Platforms"):
        if "," in name or name.startswith("amq.") or len(name.encode()) > _LONGEST_QUEUE_NAME:
            yield (
                f"{place('Platforms', name)}: names a queue of the broker: it must not contain a"
                f" comma, nor begin with amq., nor be longer than {_LONGEST_QUEUE_NAME} bytes"
            )


def advice(document: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Yield a warning for each value whose effect differs from what its author may expect.

    `config` is the loaded `document`.
    """
    for name, platform in _objects(document, "Platforms"):
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
    for name, ssh in _ssh_deliveries(config):
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
    for name, platform in _objects(document, "Platforms"):
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
    for name, platform in _objects(document, "Platforms"):
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


def _endpoint(text: str) -> tuple[list[str], dict[str, str]]:
    """Split a Twisted endpoint string into its positional and its keyword arguments."""
    arguments: list[str] = []
    keywords: dict[str, str] = {}
    for part in re.split(r"(?<!\\):", text):
        name, sign, value = part.partition("=")
        text = re.sub(r"\\(.)", r"\1", value if sign else part)
        if sign:
            keywords[name] = text
        else:
            arguments.append(text)
    return arguments, keywords


def is_local_endpoint(endpoint: str) -> bool:
    """Return whether only this machine can reach a Twisted endpoint, described by a string.

    An endpoint of an unknown kind or form counts as reachable for other machines.
    """
    arguments, keywords = _endpoint(endpoint)
    kind = arguments[0] if arguments else ""
    if kind == "unix":
        return True
    try:
        interface = ipaddress.ip_address(keywords["interface"])
    except (KeyError, ValueError):
        return False
    return kind in {"tcp", "tcp6", "ssl"} and interface.is_loopback


def _ssh_deliveries(config: Config) -> list[tuple[str, SshDelivery]]:
    """Return name and section `ssh` of each system that is reached over SSH."""
    return [
        (name, system.ssh_delivery)
        for name, system in config.systems.items()
        if system.ssh_delivery is not None
    ]


def ssh_option_problems(config: Config) -> list[str]:
    """Return a problem for each option of `ssh` or `scp` whose value our own SSH cannot use."""
    return [
        f"{place('Platforms', name, 'ssh')}.{problem}"
        for name, ssh in _ssh_deliveries(config)
        if ssh.transport == "conch"
        for problem in ssh.options.problems
    ]


_UNSUPPORTED_VALUES: tuple[tuple[Callable[[Config], bool], str], ...] = (
    (
        lambda config: any(
            ssh.transport == "conch" and ssh.options.jump for _, ssh in _ssh_deliveries(config)
        ),
        (
            'sshCmdOptions: only "transport": "openssh" can use a jump host (-J, ProxyJump,'
            " ProxyCommand): set it in the section ssh, or remove the option."
        ),
    ),
    (
        lambda config: any(
            ssh.transport == "openssh" and ssh.passphrase_file is not None
            for _, ssh in _ssh_deliveries(config)
        ),
        (
            'passphraseFile: with "transport": "openssh" the gateway cannot enter the passphrase:'
            " remove passphraseFile, and add the private key to an agent of the gateway's user."
        ),
    ),
    (
        lambda config: config.examiner is not None,
        (
            "examiner: it requires that every image is examined, and this version does not run it:"
            " remove the key if you can do without the examination."
        ),
    ),
    (
        lambda config: (
            config.authentication == "mock" and not all(map(is_local_endpoint, config.listen))
        ),
        (
            'Listen: with "Authentication": "mock" a client can claim to be any user, so it must'
            ' be the loopback interface: set "tcp:5000:interface=127.0.0.1", or a unix: endpoint.'
        ),
    ),
)
"""Configurations that this version refuses to start with: a predicate, and what to do."""


def check_supported(config: Config) -> None:
    """Raise `ConfigurationError`, with all reasons, if this version cannot start with `config`."""
    reasons = [text for applies, text in _UNSUPPORTED_VALUES if applies(config)]
    if reasons:
        raise ConfigurationError("\n".join(reasons), remedy="")


def lock_trouble(kind: str, options: frozenset[str]) -> str | None:
    """Return why locks (`flock`) on a file system do not exclude other machines; None if they do.

    `kind` is the type of the file system, `options` are its mount options. A file system that is
    not shared by machines has no trouble.
    """
    if kind in {"nfs", "nfs4"} and options & {"nolock", "local_lock=flock", "local_lock=all"}:
        return "it is mounted with nolock or local_lock: its locks hold on this machine only"
    if kind == "lustre" and "flock" not in options:
        return "it is mounted without flock: its locks fail, or hold on this machine only"
    return None


def check_state_file_system(kind: str) -> None:
    """Raise `ConfigurationError` if `kind`, that of StateDirectory, is a network file system."""
    if kind in NETWORK_FILE_SYSTEMS:
        raise ConfigurationError(
            f"StateDirectory: it is on a network file system ({kind}), where SQLite's locks are"
            " not reliable.",
            remedy="Set it to a directory on a disk of this machine.",
        )
