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

from shiftergw.config.admin import admin_problems
from shiftergw.config.broker import problems_of_url
from shiftergw.config.document import objects_in, place
from shiftergw.config.location_checks import location_problems
from shiftergw.errors import ConfigurationError

if TYPE_CHECKING:
    from shiftergw.config import Config
    from shiftergw.config.sections import SshDelivery

_LONGEST_QUEUE_NAME = 200
"""Bytes of the name of a system that has a queue; a broker accepts 255 for the whole name."""

_KEYS_OF_ACCESS = {"local": ("local",), "remote": ("host", "ssh")}
"""The required keys of a system, by its `accesstype`."""


def relation_problems(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a problem for each key that is missing or wrong because of another key."""
    munge = document.get("Authentication", "munge") == "munge"
    for name, platform in objects_in(document, "Platforms"):
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
    yield from admin_problems(document)


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
    for name, _ in objects_in(document, "Platforms"):
        if "," in name or name.startswith("amq.") or len(name.encode()) > _LONGEST_QUEUE_NAME:
            yield (
                f"{place('Platforms', name)}: names a queue of the broker: it must not contain a"
                f" comma, nor begin with amq., nor be longer than {_LONGEST_QUEUE_NAME} bytes"
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


def ssh_deliveries(config: Config) -> list[tuple[str, SshDelivery]]:
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
        for name, ssh in ssh_deliveries(config)
        if ssh.transport == "conch"
        for problem in ssh.options.problems
    ]


def file_mode_problems(config: Config) -> Iterator[str]:
    """Yield a problem for each system that has another `FileMode` for the same directory."""
    modes: dict[str, tuple[str, int | None]] = {}
    for name, system in config.systems.items():
        first, mode = modes.setdefault(system.directory_name, (name, system.file_mode))
        if mode != system.file_mode:
            yield (
                f"{place('Platforms', name, 'FileMode')}: must be that of {first}, whose images are"
                " in the same directory"
            )


_UNSUPPORTED_VALUES: tuple[tuple[Callable[[Config], bool], str], ...] = (
    (
        lambda config: any(
            ssh.transport == "conch" and ssh.options.jump for _, ssh in ssh_deliveries(config)
        ),
        (
            'sshCmdOptions: only "transport": "openssh" can use a jump host (-J, ProxyJump,'
            " ProxyCommand): set it in the section ssh, or remove the option."
        ),
    ),
    (
        lambda config: any(
            ssh.transport == "openssh" and ssh.passphrase_file is not None
            for _, ssh in ssh_deliveries(config)
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
