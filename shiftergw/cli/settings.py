"""Which gateway and system a command uses, and the credential or munge socket of the caller."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from shiftergw.cli.exits import Misuse
from shiftergw.cli.hosts import is_host
from shiftergw.errors import printable
from shiftergw.plumbing.files import read_whole

UDIROOT = Path("/etc/shifter/udiRoot.conf")
"""The configuration of the site's Shifter clients."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of the command line and the environment; "" and () where there is none.

    `credential` is for mock authentication and takes precedence over munge. `munge_sockets` are by
    system; "" stands for every system that is not listed. `udiroot` is read for what the options
    leave open.
    """

    gateways: Sequence[str] = ()
    systems: Sequence[str] = ()
    credential: str = field(default="", repr=False)
    udiroot: Path = UDIROOT
    munge_sockets: Mapping[str, Path] = field(default_factory=dict)

    def gateway_urls(self) -> list[str]:
        """Return the base URLs of the gateways, without a slash at their end.

        Raises `Misuse` if there is no gateway, or an invalid URL.
        """
        urls = self.gateways or read_udiroot(self.udiroot).get("imageGateway", "").split()
        if not urls:
            raise self._missing("gateway", "--gateway URL", "SHIFTERGW_GATEWAY", "imageGateway")
        return [_base_url(url if "://" in url else f"http://{url}") for url in urls]

    def system_names(self) -> Sequence[str]:
        """Return the names of the systems, each once; raise `Misuse` if there is none."""
        if self.systems:
            return self.systems
        system = read_udiroot(self.udiroot).get("system", "")
        if not system:
            raise self._missing("system", "--system NAME", "SHIFTERGW_SYSTEM", "system")
        return [system]

    def single_system(self) -> str:
        """Return the name of the only system; raise `Misuse` for several, or none."""
        systems = self.system_names()
        if len(systems) > 1:
            names = ", ".join(systems)
            raise Misuse(f"This command is for one system, and {names} are named: choose one.")
        return systems[0]

    def munge_socket_of(self, system: str) -> Path | None:
        """Return the socket of a system's munge daemon; None stands for munge's default."""
        return self.munge_sockets.get(system) or self.munge_sockets.get("")

    def default_type(self) -> str:
        """Return the type of an image whose name has no type."""
        return read_udiroot(self.udiroot).get("defaultImageType", "docker")

    def answer_limit(self) -> float | None:
        """Return how long the site's clients wait for an answer, in seconds; None if unset."""
        text = read_udiroot(self.udiroot).get("gatewayTimeout", "")
        return (int(text) or None) if re.fullmatch("[0-9]{1,9}", text) else None

    def _missing(self, thing: str, option: str, variable: str, key: str) -> Misuse:
        try:
            read_whole(self.udiroot)
        except OSError as error:
            problem = f" (which cannot be read: {error.strerror})"
        else:
            problem = ""
        file = printable(str(self.udiroot), 1000)
        return Misuse(
            f"No {thing} is known: use {option}, or set {variable}, or {key} in {file}{problem}."
        )


def _base_url(url: str) -> str:
    """Return the base URL of a gateway; raise `Misuse` for a text that cannot be one."""
    wrong = f"{printable(url, 200)} is no address of a gateway: "
    if "@" in url:
        raise Misuse("A gateway takes no login in its address: write http://HOST:PORT.")
    if not url.isprintable() or re.search(r"[\s\\]", url):
        raise Misuse(f"{wrong}there is a blank, or a character that cannot be printed, in it.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Misuse(f"{wrong}{printable(str(error))}.") from error
    if parts.scheme not in {"http", "https"}:
        raise Misuse(f"{wrong}it begins with http:// or https://.")
    if not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise Misuse(f"{wrong}write http://HOST:PORT, such as http://imagegw.example.com:5000.")
    if not is_host(parts.hostname):
        raise Misuse(
            f"{wrong}a host's name has letters, digits, '-' and '.' alone. Where it has others,"
            " such as '_', write another name of the host, or its IP address."
        )
    return url.rstrip("/")


def check_text(text: str, name: str) -> None:
    """Raise `Misuse` for an argument or variable that is not valid UTF-8.

    Python keeps invalid bytes as surrogates, which no request can carry.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Misuse(
            f"{name} is not UTF-8: look at the encoding of the terminal or script it comes from."
        ) from None


def systems_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the names in comma-separated lists, each once; raise `Misuse` for an empty name."""
    texts = list(texts)
    for text in texts:
        check_text(text, "--system")
    lists = [text.split(",") for text in texts if text.strip()]
    names = [name.strip() for names in lists for name in names]
    if not all(names):
        raise Misuse(f"--system: there is a name missing in {', '.join(names)!r}.")
    return tuple(dict.fromkeys(names))


def sockets_of(texts: Iterable[str]) -> dict[str, Path]:
    """Return the sockets in texts `SYSTEM=PATH` and `PATH`, by system; "" for a bare `PATH`.

    Raises `Misuse` if the system or the path is empty.
    """
    sockets = {}
    for text in filter(None, texts):
        system, sign, path = text.partition("=")
        if not sign or "/" in system:  # a path may hold the sign
            system, path = "", text
        elif not (system and path):
            raise Misuse(f"--munge-socket {text}: write PATH, or SYSTEM=PATH.")
        sockets[system] = Path(path)
    return sockets


def read_udiroot(path: Path) -> dict[str, str]:
    """Return the keys of `udiRoot.conf`; none if the file cannot be read."""
    try:
        content, _ = read_whole(path)
    except OSError:
        return {}
    return parse_udiroot(content)


def parse_udiroot(content: bytes) -> dict[str, str]:
    """Return the keys in the content of `udiRoot.conf`.

    `#` begins a comment line, and a backslash at the end of a line continues it. The values of a
    repeated key are joined, with a blank between them.
    """
    text = content.decode("utf-8", "replace").replace("\r\n", "\n")
    values: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        key, sign, value = line.partition("=")
        if sign and not line.lstrip().startswith("#"):
            key = key.strip()
            values[key] = f"{values.get(key, '')} {value.strip()}".strip()
    return values
