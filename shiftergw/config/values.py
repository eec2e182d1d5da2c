"""Define the types of values in imagemanager.json: durations, sizes, paths, arguments, hosts.

Each is an annotated type for a pydantic field. Its function converts a value, or raises a
`ValueError` whose text names the allowed values; the caller adds the place in the document.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from shiftergw.errors import printable
from shiftergw.model.images import Platform


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The directory of the configuration (`base`), and warnings about values that are valid."""

    base: Path
    warnings: list[str] = field(default_factory=list)


def _surroundings(info: ValidationInfo) -> Surroundings:
    assert isinstance(info.context, Surroundings)
    return info.context


def base_directory(info: ValidationInfo) -> Path:
    """Return the directory at which relative paths start."""
    return _surroundings(info).base


def _local_path(value: Path, info: ValidationInfo) -> Path:
    if "\0" in str(value) or value == Path():
        raise ValueError("must be a path")
    if str(value).startswith("~") or "$" in str(value):
        _surroundings(info).warnings.append(
            f"the path {printable(str(value))} is used unchanged: ~ and $ have no special meaning;"
            " write an absolute path"
        )
    return _surroundings(info).base / value


def _remote_path(value: Path) -> Path:
    if "\0" in str(value) or not value.is_absolute():
        raise ValueError("must be an absolute path on the system")
    return value


def _program(value: str, info: ValidationInfo) -> str:
    if not value:
        raise ValueError("must be the name or the path of a program")
    return str(_local_path(Path(value), info)) if "/" in value else value


LocalPath = Annotated[Path, AfterValidator(_local_path)]
"""A path on this machine; a relative path starts at the directory of the configuration file."""

RemotePath = Annotated[Path, AfterValidator(_remote_path)]
"""An absolute path on another machine."""

Program = Annotated[str, AfterValidator(_program)]
"""The name of a program in PATH, or its path, a `LocalPath`."""


def _duration(value: Any) -> float:
    match = re.fullmatch(r"(\d{1,6}):(\d{1,6}):(\d{1,6}):(\d{1,6})", str(value), re.ASCII)
    if match is None:
        raise ValueError('must be "days:hours:minutes:seconds", such as "90:00:00:00"')
    days, hours, minutes, seconds = map(int, match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


Duration = Annotated[float, BeforeValidator(_duration)]
"""Seconds, written as `days:hours:minutes:seconds`."""

Seconds = Annotated[float, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]

_UNITS = {
    f"{prefix}{binary}B".upper(): (1024 if binary else 1000) ** (power + 1)
    for power, prefix in enumerate("KMGT")
    for binary in ("", "i")
}


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,18}) ?([KMGT]i?B)?", value, re.ASCII | re.IGNORECASE)
    if match is None:
        raise ValueError('must be a number of bytes, or text such as "200GB" or "150GiB"')
    return int(match[1]) * (_UNITS[match[2].upper()] if match[2] else 1)


Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]
"""Bytes: a number, or text with a decimal (`GB`) or binary (`GiB`) unit."""

MOST_OSTS = 2000
"""The maximum number of OSTs of one file in Lustre."""


def _ost_count(value: Any) -> int:
    # The samples of the original gateway have a number, which that program never read.
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value, re.ASCII):
        value = int(value)
    if type(value) is not int or not -1 <= value <= MOST_OSTS:
        raise ValueError(f"must be a number of OSTs, at most {MOST_OSTS}, or -1 for all, or 0")
    return value


OstCount = Annotated[int, BeforeValidator(_ost_count)]
"""The number of Lustre's OSTs that store a file: 0 is the default of the file system, -1 all."""

BLOCK_SIZES = (*(f"{2**power}K" for power in range(2, 10)), "1M")
"""The block sizes of squashfs: powers of two, 4 KiB to 1 MiB."""


def _block_size(value: str) -> str:
    if value not in BLOCK_SIZES:
        raise ValueError(f"must be one of {', '.join(BLOCK_SIZES)}")
    return value


def _memory(value: str) -> str:
    if re.fullmatch(r"[1-9][0-9]{0,5}[KMG]", value) is None:
        raise ValueError('must be text such as "512M" or "2G"')
    return value


_FILE_MODES = {"0600": 0o600, "0640": 0o640, "0644": 0o644}


def _file_mode(value: Any) -> int:
    mode = _FILE_MODES.get(value) if isinstance(value, str) else None
    if mode is None:
        raise ValueError('must be "0600", "0640" or "0644"')
    return mode


FileMode = Annotated[int, BeforeValidator(_file_mode)]
"""The mode of files that their owner writes, and nobody runs."""

BlockSize = Annotated[str, AfterValidator(_block_size)]
Memory = Annotated[str, AfterValidator(_memory)]


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("must be a list of texts")
    return tuple(value)


def _texts_or_text(value: Any) -> tuple[str, ...]:
    try:
        return _texts([value] if isinstance(value, str) else value)
    except ValueError:
        raise ValueError("must be text or a list of texts") from None


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
"""A list of strings."""

Arguments = Annotated[tuple[str, ...], BeforeValidator(_texts_or_text)]
"""Arguments of a program: a string is one argument."""


def _users(value: Any) -> tuple[str | int, ...]:
    users = [value] if isinstance(value, str) else value
    if not isinstance(users, list) or not all(
        (isinstance(user, str) and user) or (type(user) is int and user >= 0) for user in users
    ):
        raise ValueError("must be a list of user names and uids")
    return tuple(users)


def _importers(value: Any) -> tuple[str, ...] | None:
    if value == "all":
        return None
    if value in (None, "none", "None"):
        return ()
    try:
        return _texts(value)
    except ValueError:
        raise ValueError('must be "all", "none" or a list of user names') from None


Users = Annotated[tuple[Any, ...], BeforeValidator(_users)]
"""Exact names of users, and uids; a string is one name."""

Importers = Annotated[tuple[str, ...] | None, BeforeValidator(_importers)]
"""Names of the users who may import; None, written as `all`, means every user."""


def _platform(value: Any) -> Platform:
    return Platform.parse(value if isinstance(value, str) else "")


Architecture = Annotated[Platform, BeforeValidator(_platform)]
"""The architecture of a system's nodes, such as `amd64` or `arm64/v8`."""


def registry_url(value: str) -> str:
    """Return `scheme://host[:port]` of a registry's URL; raise `ValueError` if it is not one."""
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        raise ValueError("must be a URL such as https://registry.example.com:5000") from None
    if url.scheme not in {"http", "https"} or not url.hostname or "@" in url.netloc:
        raise ValueError(
            "must be https:// and the host of the registry, with :PORT if necessary, and no user"
            " (http:// for a registry without TLS)"
        )
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}" + (f":{port}" if port else "")


def registry_base(value: str, info: ValidationInfo) -> str:
    """Return `scheme://host[:port]`; warn of a path behind it, which is not used."""
    base = registry_url(value)
    url = urlsplit(value)
    if url.path.strip("/") or url.query or url.fragment:
        warning = f"the path of the registry's URL {printable(value)} is not used"
        _surroundings(info).warnings.append(warning)
    return base


def _gateway_url(value: str) -> str:
    try:
        url = urlsplit(value)
        is_valid = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        is_valid = False
    if not (is_valid and value.isascii() and value.isprintable()) or re.search("[?#@ ]", value):
        raise ValueError("must be http:// or https://, and the gateway's host, port and path")
    return value.rstrip("/")


GatewayUrl = Annotated[str, AfterValidator(_gateway_url)]
"""`http://HOST[:PORT][/PATH]` under which the worker machines reach the gateway."""

HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
"""`host` or `host:port`, in lower case."""


def _hosts(value: Any) -> tuple[str, ...]:
    hosts = tuple(host.lower() for host in _texts(value))
    if not all(HOST.fullmatch(host) for host in hosts):
        raise ValueError('must be a list of "host" or "host:port", IPv6 addresses in brackets')
    return hosts


Hosts = Annotated[tuple[str, ...], BeforeValidator(_hosts)]
"""`host` or `host:port`, in lower case."""


def _proxied_hosts(value: Any) -> tuple[str, ...]:
    hosts = tuple(host.lower() for host in _texts(value))
    if not all(HOST.fullmatch(host.removeprefix("*.").removeprefix(".")) for host in hosts):
        raise ValueError('must be a list of "host", "host:port" or "*.domain"')
    return hosts


ProxiedHosts = Annotated[tuple[str, ...], BeforeValidator(_proxied_hosts)]
"""`host`, `host:port`, or `*.domain` for all hosts in a domain, in lower case."""


def _networks(value: Any) -> tuple[str, ...]:
    networks = _texts(value)
    for network in networks:
        try:
            ip_network(network, strict=False)
        except ValueError:
            raise ValueError(
                'must be a list of addresses or networks, such as "10.0.0.7" or "fd00::/8"'
            ) from None
    return networks


Networks = Annotated[tuple[str, ...], BeforeValidator(_networks)]
"""IP addresses and networks."""
