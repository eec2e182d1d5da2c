"""Read `client.conf`, by which a site tells its nodes where their gateway and images are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shiftergw.cli.exits import Misuse
from shiftergw.cli.settings import Settings, parse_udiroot
from shiftergw.errors import printable
from shiftergw.plumbing.files import read_whole

CLIENT_CONF = Path("/etc/shiftergw/client.conf")


@dataclass(frozen=True, slots=True)
class ClientConf:
    """The gateways and the system of a node, and where the node sees the system's images."""

    settings: Settings
    image_directory: Path

    @classmethod
    def read(cls, path: Path, credential: str = "") -> ClientConf:
        """Read the file; raise `Misuse` if it cannot be read, or lacks a key.

        Its form and most of its keys are those of `udiRoot.conf`. `credential` is for mock
        authentication.
        """
        file = printable(str(path), 1000)
        try:
            content, _ = read_whole(path)
        except OSError as error:
            raise Misuse(
                f"{file}, which names the gateway, cannot be read: {error.strerror}."
                " Tell the site's support."
            ) from error
        values = parse_udiroot(content)
        for key in ("imageGateway", "system", "imagePath"):
            if not values.get(key):
                raise Misuse(f"{file} lacks the key {key}. Tell the site's support.")
        directory = Path(values["imagePath"])
        if not directory.is_absolute() or not str(directory).isprintable():
            raise Misuse(f"{file}: imagePath must be an absolute path. Tell the site's support.")
        socket = values.get("mungeSocket")
        settings = Settings(
            systems=[values["system"]],
            credential=credential,
            udiroot=path,
            munge_sockets={"": Path(socket)} if socket else {},
        )
        return cls(settings, directory)
