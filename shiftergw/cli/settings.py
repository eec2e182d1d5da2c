"""Where the gateway is, which system is meant, and who asks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from shiftergw.cli.exits import Misused
from shiftergw.cli.hosts import is_host
from shiftergw.errors import printable
from shiftergw.plumbing.files import read_whole

UDIROOT = Path("/etc/shifter/udiRoot.conf")
"""The configuration of the site's Shifter clients."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line and the environment say; "" and () where they say nothing.

    `credential` is for mock authentication and wins over munge. `munge_sockets` are by system, ""
    stands for every other one.
    """

    gateways: Sequence[str] = ()
    systems: Sequence[str] = ()
    credential: str = field(default="", repr=False)
    udiroot: Path = UDIROOT
    munge_sockets: Mapping[str, Path] = field(default_factory=dict)

    def found_gateways(self) -> list[str]:
        """Return the base URLs of the gateways, without a slash at their end."""
        found = self.gateways or read_udiroot(self.udiroot).get("imageGateway", "").split()
        if not found:
            raise self._unknown("gateway", "--gateway URL", "SHIFTERGW_GATEWAY", "imageGateway")
        return [_checked(url if "://" in url else f"http://{url}") for url in found]

    def found_systems(self) -> Sequence[str]:
        """Return the names of the systems that are meant, at least one, each once."""
        if self.systems:
            return self.systems
        found = read_udiroot(self.udiroot).get("system", "")
        if not found:
            raise self._unknown("system", "--system NAME", "SHIFTERGW_SYSTEM", "system")
        return [found]

    def found_system(self) -> str:
        """Return the name of the one system that is meant; raise `Misused` for several."""
        first, *others = self.found_systems()
        if others:
            named = ", ".join([first, *others])
            raise Misused(f"This command is for one system, and {named} are named: choose one.")
        return first

    def munge_socket_of(self, system: str) -> Path | None:
        """Return the socket of a system's munge daemon; None means munge's own default."""
        return self.munge_sockets.get(system) or self.munge_sockets.get("")

    def default_type(self) -> str:
        """Return the type of images that are named without one."""
        return read_udiroot(self.udiroot).get("defaultImageType", "docker")

    def answer_limit(self) -> float | None:
        """Return for how many seconds the site's clients wait for an answer, if it says so."""
        text = read_udiroot(self.udiroot).get("gatewayTimeout", "")
        return (int(text) or None) if re.fullmatch("[0-9]{1,9}", text) else None

    def _unknown(self, what: str, option: str, variable: str, key: str) -> Misused:
        try:
            read_whole(self.udiroot)
        except OSError as error:
            why = f" (which cannot be read: {error.strerror})"
        else:
            why = ""
        place = printable(str(self.udiroot), 1000)
        return Misused(
            f"No {what} is known: use {option}, or set {variable}, or {key} in {place}{why}."
        )


def _checked(url: str) -> str:
    """Return the base URL of a gateway; raise `Misused` for what can be none."""
    wrong = f"{printable(url, 200)} is no address of a gateway: "
    if "@" in url:
        raise Misused("A gateway takes no login in its address: write http://HOST:PORT.")
    if not url.isprintable() or re.search(r"[\s\\]", url):
        raise Misused(f"{wrong}there is a blank, or a character that cannot be printed, in it.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Misused(f"{wrong}{printable(str(error))}.") from error
    if parts.scheme not in {"http", "https"}:
        raise Misused(f"{wrong}it begins with http:// or https://.")
    if not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise Misused(f"{wrong}write http://HOST:PORT, such as http://imagegw.example.com:5000.")
    if not is_host(parts.hostname):
        raise Misused(
            f"{wrong}a host's name has letters, digits, '-' and '.' alone. Where it has others,"
            " such as '_', write another name of the host, or its IP address."
        )
    return url.rstrip("/")


def check_text(text: str, what: str) -> None:
    """Raise `Misused` for an argument or variable, named by `what`, that is not valid UTF-8.

    Python keeps its other bytes as surrogates, which no request can carry.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Misused(
            f"{what} is not UTF-8: look at the encoding of the terminal or script it comes from."
        ) from None


def systems_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the names in comma lists, each once; raise `Misused` for a list with a gap."""
    texts = list(texts)
    for text in texts:
        check_text(text, "--system")
    lists = [text.split(",") for text in texts if text.strip()]
    names = [name.strip() for names in lists for name in names]
    if not all(names):
        raise Misused(f"--system: there is a name missing in {', '.join(names)!r}.")
    return tuple(dict.fromkeys(names))


def sockets_of(texts: Iterable[str]) -> dict[str, Path]:
    """Return the sockets that `PATH` and `SYSTEM=PATH` name, by system, "" where none is named."""
    found = {}
    for text in filter(None, texts):
        system, sign, path = text.partition("=")
        if not sign or "/" in system:  # a path may hold the sign
            system, path = "", text
        elif not (system and path):
            raise Misused(f"--munge-socket {text}: write PATH, or SYSTEM=PATH.")
        found[system] = Path(path)
    return found


def read_udiroot(path: Path) -> dict[str, str]:
    """Return the keys of `udiRoot.conf`; nothing if there is no such file.

    `#` begins a comment line, a backslash at its end continues a line. The values of a key that
    stands there more than once add up, with a blank between them.
    """
    try:
        content, _ = read_whole(path)
    except OSError:
        return {}
    text = content.decode("utf-8", "replace").replace("\r\n", "\n")
    found: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        key, sign, value = line.partition("=")
        if sign and not line.lstrip().startswith("#"):
            key = key.strip()
            found[key] = f"{found.get(key, '')} {value.strip()}".strip()
    return found
