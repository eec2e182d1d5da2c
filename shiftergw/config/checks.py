"""Rules of the configuration that concern more than one key, and what this version does not keep.

The configuration of every deployment of the original loads. What it asks for and this version does
not keep yet is refused at the start, in words, and never ignored.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

from shiftergw.config.broker import problems_of_url
from shiftergw.config.document import place
from shiftergw.config.values import HOST
from shiftergw.errors import ConfigurationError, printable

if TYPE_CHECKING:
    from shiftergw.config import Config
    from shiftergw.config.sections import SshDelivery

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "cifs", "smb3", "smbfs", "beegfs", "ceph", "fuse.sshfs",
     "9p", "afs", "panfs", "pvfs2", "orangefs", "wekafs", "glusterfs", "fuse.glusterfs", "ocfs2",
     "gfs2"}
)  # fmt: skip

_NOT_YET = frozenset({"ImportUsers"})
"""Keys without which this version behaves as their safer value says."""

_LONGEST_QUEUE = 200
"""Bytes of a system's name that name a queue; a broker takes 255."""

_REQUIRED = {"local": ("local",), "remote": ("host", "ssh")}


def _objects(document: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the named objects of a table of the document."""
    table = document.get(key)
    if isinstance(table, dict):
        yield from ((name, inner) for name, inner in table.items() if isinstance(inner, dict))


def relations(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a problem for every two keys that do not fit each other."""
    munge = document.get("Authentication", "munge") == "munge"
    for name, platform in _objects(document, "Platforms"):
        if not name or "/" in name or not name.isprintable():
            yield f"{place('Platforms', name)}: a system's name stands in addresses: no / in it"
        access = platform.get("accesstype")
        for key in _REQUIRED.get(access, ()) if isinstance(access, str) else ():
            if platform.get(key) in (None, []):
                yield f'{place("Platforms", name, key)}: is required with accesstype "{access}"'
        if munge and platform.get("mungeSocketPath") is None:
            yield f"{place('Platforms', name, 'mungeSocketPath')}: is required with munge"
    for name, location in _objects(document, "Locations"):
        if location.get("url") is None and not HOST.fullmatch(name.lower()):
            yield f"{place('Locations', name, 'url')}: is required where the name is not a host"
    if document.get("MongoDBURI") is not None and document.get("MongoDB") is None:
        yield "MongoDB: is required with MongoDBURI: the name of the database"
    yield from _about_the_broker(document)
    default, locations = document.get("DefaultImageLocation"), document.get("Locations")
    if isinstance(default, str) and isinstance(locations, dict) and default not in locations:
        names = printable(", ".join(locations))
        yield f"DefaultImageLocation: must be one of the Locations: {names}"


def _about_the_broker(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a problem for what keeps workers on other machines from working."""
    url = document.get("BrokerURL")
    if url is None:
        return
    if isinstance(url, str):
        yield from (f"BrokerURL: {problem}" for problem in problems_of_url(url))
    if find_spec("celery") is None:
        yield "BrokerURL: needs Celery, which is not installed: pip install 'shiftergw[celery]'"
    if document.get("MongoDBURI") is None:
        yield (
            "BrokerURL: needs MongoDBURI: workers on other machines cannot reach the SQLite file in"
            " which this gateway keeps its state"
        )
    for name, _ in _objects(document, "Platforms"):
        if "," in name or name.startswith("amq.") or len(name.encode()) > _LONGEST_QUEUE:
            yield (
                f"{place('Platforms', name)}: names a queue of the broker: no comma in it, no amq."
                f" before it, and {_LONGEST_QUEUE} bytes at most"
            )


def advice(document: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Yield a warning for values that mean something else, or less, than their author thought."""
    for name, platform in _objects(document, "Platforms"):
        if isinstance(platform.get("admins"), str):
            yield f"{place('Platforms', name, 'admins')}: text is read as one name; write a list"
    yield from _shared_daemons(document)
    for name, ssh in _ssh_deliveries(config):
        where = place("Platforms", name, "ssh")
        if ssh.transport == "conch":
            yield from (f"{where}.{warning}" for warning in ssh.options.warnings)
        elif ssh.scp_cmd_options:
            yield (
                f'{where}.scpCmdOptions: has no meaning with "transport": "openssh", since `ssh`'
                " runs there and never `scp`; what it shall read belongs into sshCmdOptions"
            )
    yield from _one_directory_by_two_names(document)
    yield from chain(_open_on_the_nodes(config), _unfair_share(config))
    for key in sorted(_NOT_YET & document.keys()):
        yield f"{key}: is read, and has no effect in this version"
    if document.get("MongoDB") is not None and document.get("MongoDBURI") is None:
        yield "MongoDB: has no effect without MongoDBURI: the state is in SQLite"
    if document.get("BrokerAway") is not None and document.get("BrokerURL") is None:
        yield "BrokerAway: has no effect without BrokerURL: the gateway has its own workers"
    if document.get("ImportUsers") == []:
        yield 'ImportUsers: an empty list is nobody (the original let everybody in: "all")'


def _open_on_the_nodes(config: Config) -> Iterator[str]:
    """Yield a warning if the runtime is not told who may start a private image."""
    if config.disable_acl_metadata:
        yield (
            "DISABLE_ACL_METADATA: the files beside private images name no readers, so on the nodes"
            " everybody who knows its id can start one; only runtimes too old to read them need it"
        )


def _unfair_share(config: Config) -> Iterator[str]:
    """Yield a warning if one user can fill the queue."""
    if config.waiting_per_user > config.fair_share:
        yield (
            "UserLimits.waiting: one user may have more than a tenth of QueueLimit"
            f" ({config.fair_share}) waiting, and can keep others out of the queue"
        )


def _shared_daemons(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a warning for systems whose credentials are worth something on another one."""
    known: dict[str, str] = {}
    for name, platform in _objects(document, "Platforms"):
        socket = platform.get("mungeSocketPath")
        if isinstance(socket, str) and known.setdefault(socket, name) != name:
            where = place("Platforms", name, "mungeSocketPath")
            yield f"{where}: {known[socket]} has the same; a credential of one counts on the other"


def _one_directory_by_two_names(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a warning for remote systems that seem to share a directory, and do not say so.

    A directory is known by the first host: under two names, each has its own readers and leases.
    """
    known: list[tuple[str, str, list[str]]] = []
    for name, platform in _objects(document, "Platforms"):
        hosts, ssh = platform.get("host"), platform.get("ssh")
        path = ssh.get("imageDir") if isinstance(ssh, dict) else None
        remote = platform.get("accesstype") == "remote"
        if not (remote and isinstance(hosts, list) and hosts and isinstance(path, str)):
            continue
        path = os.path.normpath(path)
        for other, there, theirs in known:
            if there == path and theirs[0] != hosts[0] and any(one in theirs for one in hosts):
                where = place("Platforms", name, "host")
                yield (
                    f"{where}: {other} has the same imageDir on some of these hosts, and names"
                    " another one first; if they share the directory, name the same host first"
                )
        known.append((name, path, hosts))


def _endpoint(text: str) -> tuple[list[str], dict[str, str]]:
    """Split a Twisted endpoint string into its positional and its named parts."""
    positional: list[str] = []
    named: dict[str, str] = {}
    for part in re.split(r"(?<!\\):", text):
        name, sign, value = part.partition("=")
        plain = re.sub(r"\\(.)", r"\1", value if sign else part)
        if sign:
            named[name] = plain
        else:
            positional.append(plain)
    return positional, named


def only_local(endpoint: str) -> bool:
    """Say whether nobody outside this machine can reach a Twisted endpoint string.

    A kind of endpoint, or a way to write it, that we do not know counts as reachable.
    """
    positional, named = _endpoint(endpoint)
    kind = positional[0] if positional else ""
    if kind == "unix":
        return True
    try:
        interface = ipaddress.ip_address(named["interface"])
    except (KeyError, ValueError):
        return False
    return kind in {"tcp", "tcp6", "ssl"} and interface.is_loopback


def _ssh_deliveries(config: Config) -> list[tuple[str, SshDelivery]]:
    """Return the names of the systems that are reached over SSH, and how."""
    return [
        (name, system.ssh_delivery)
        for name, system in config.systems.items()
        if system.ssh_delivery is not None
    ]


def unusable_options(config: Config) -> list[str]:
    """Return a problem for every option that our own SSH cannot do without a value for."""
    return [
        f"{place('Platforms', name, 'ssh')}.{problem}"
        for name, ssh in _ssh_deliveries(config)
        if ssh.transport == "conch"
        for problem in ssh.options.problems
    ]


_UNKEPT: tuple[tuple[Callable[[Config], bool], str], ...] = (
    (
        lambda config: any(
            ssh.transport == "conch" and ssh.options.jump for _, ssh in _ssh_deliveries(config)
        ),
        (
            'sshCmdOptions: only "transport": "openssh" goes over another host (-J, ProxyJump,'
            " ProxyCommand): set it in ssh, or remove the option."
        ),
    ),
    (
        lambda config: any(
            ssh.transport == "openssh" and ssh.passphrase_file is not None
            for _, ssh in _ssh_deliveries(config)
        ),
        (
            'passphraseFile: with "transport": "openssh" nobody types it in: remove it, and give'
            " the key to an agent of the gateway's user."
        ),
    ),
    (
        lambda config: any(s.policy_file is not None for s in config.systems.values()),
        (
            "policy_file: it promises that signatures are checked, and this version does not check"
            " them: remove the key if you can do without."
        ),
    ),
    (
        lambda config: config.examiner is not None,
        (
            "examiner: it promises that every image is examined, and this version does not run it:"
            " remove the key if you can do without."
        ),
    ),
    (
        lambda config: config.authentication == "mock" and not all(map(only_local, config.listen)),
        (
            'Listen: with "Authentication": "mock" everybody can be anybody, so the gateway listens'
            ' on the loopback only: set "tcp:5000:interface=127.0.0.1", or a unix: endpoint.'
        ),
    ),
)
"""What keeps the gateway from starting: when, and what to do about it."""


def check_supported(config: Config) -> None:
    """Raise `ConfigurationError` for everything in `config` that forbids the start."""
    found = [text for applies, text in _UNKEPT if applies(config)]
    if found:
        raise ConfigurationError("\n".join(found), remedy="")


def lock_trouble(kind: str, options: frozenset[str]) -> str | None:
    """Return why locks (`flock`) on a file system are no locks for other machines; None if fine.

    `options` are those with which it is mounted. Only network file systems can be shared at all.
    """
    if kind in {"nfs", "nfs4"} and options & {"nolock", "local_lock=flock", "local_lock=all"}:
        return "it is mounted with nolock or local_lock: its locks count on this machine alone"
    if kind == "lustre" and "flock" not in options:
        return "it is mounted without flock: its locks fail, or count on this machine alone"
    return None


def check_state_file_system(kind: str) -> None:
    """Raise `ConfigurationError` if StateDirectory lies on a network file system."""
    if kind in NETWORK_FILE_SYSTEMS:
        raise ConfigurationError(
            f"StateDirectory: it lies on a network file system ({kind}), where SQLite's locks"
            " cannot be trusted.",
            remedy="Set it to a directory on a disk of this machine.",
        )
