"""Where the gateway is, which system is meant, and who asks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shiftergw.cli.exits import Misused

UDIROOT = Path("/etc/shifter/udiRoot.conf")
"""The configuration of the site's Shifter clients."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line and the environment say; "", () and None where they say nothing.

    `credential` is for mock authentication and wins over munge.
    """

    gateways: Sequence[str] = ()
    system: str = ""
    credential: str = field(default="", repr=False)
    udiroot: Path = UDIROOT
    munge_socket: Path | None = None

    def found_gateways(self) -> list[str]:
        """Return the base URLs of the gateways, without a slash at their end."""
        found = self.gateways or read_udiroot(self.udiroot).get("imageGateway", "").split()
        if not found:
            raise self._unknown("gateway", "--gateway URL", "SHIFTERGW_GATEWAY", "imageGateway")
        return [(url if "://" in url else f"http://{url}").rstrip("/") for url in found]

    def found_system(self) -> str:
        """Return the name of the system."""
        found = self.system or read_udiroot(self.udiroot).get("system", "")
        if not found:
            raise self._unknown("system", "--system NAME", "SHIFTERGW_SYSTEM", "system")
        return found

    def default_type(self) -> str:
        """Return the type of images that are named without one."""
        return read_udiroot(self.udiroot).get("defaultImageType", "docker")

    def answer_limit(self) -> float | None:
        """Return for how many seconds the site's clients wait for an answer, if it says so."""
        text = read_udiroot(self.udiroot).get("gatewayTimeout", "")
        return (int(text) or None) if re.fullmatch("[0-9]{1,9}", text) else None

    def _unknown(self, what: str, option: str, variable: str, key: str) -> Misused:
        return Misused(
            f"No {what} is known: use {option}, or set {variable}, or {key} in {self.udiroot}."
        )


def read_udiroot(path: Path) -> dict[str, str]:
    """Return the keys of `udiRoot.conf`; nothing if there is no such file.

    `#` begins a comment line, a backslash at its end continues a line. The values of a key that
    stands there more than once add up, with a blank between them.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        key, sign, value = line.partition("=")
        if sign and not line.lstrip().startswith("#"):
            key = key.strip()
            found[key] = f"{found.get(key, '')} {value.strip()}".strip()
    return found
