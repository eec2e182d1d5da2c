"""Run the SFTP server of Twisted Conch on standard input and output.

With the argument `no-chmod` it sets no modes, as ProFTPD with `<Limit SITE_CHMOD>`: a request to
create a file with a mode creates the file and is then refused.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.conch.interfaces import ISFTPServer
from twisted.conch.ssh.filetransfer import (
    FX_PERMISSION_DENIED,
    FXF_CREAT,
    FileTransferServer,
    SFTPError,
)
from twisted.conch.unix import SFTPServerForUnixConchUser
from twisted.internet.error import ConnectionDone
from twisted.internet.stdio import StandardIO
from twisted.python.components import registerAdapter
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath

from tests.installed_reactor import reactor

_DONE = Failure(ConnectionDone())


class Avatar:
    """The account of the user who runs this program."""

    def getHomeDir(self) -> FilePath[str]:
        """Return the directory that relative paths start from."""
        return FilePath(str(Path.cwd()))

    def _runAsUser(self, function: Any, *arguments: Any) -> Any:
        """Call one or more functions, and return the result of the last."""
        calls = function if isinstance(function, list) else [(function, arguments)]
        results = [call(*call_arguments) for call, call_arguments in calls]
        return results[-1]


class Server(FileTransferServer):
    """The server, which ends when its input ends."""

    def connectionLost(self, reason: Failure = _DONE) -> None:
        """Stop."""
        super().connectionLost(reason)
        reactor.stop()


class NoChmod(SFTPServerForUnixConchUser):
    """An account that cannot set modes."""

    def openFile(self, filename: bytes, flags: int, attrs: dict[str, Any]) -> Any:
        """Open a file; refuse the request if it has a mode."""
        if flags & FXF_CREAT:
            mode = attrs.pop("permissions", None)
            file = super().openFile(filename, flags, {"permissions": 0o666})
            if mode is not None:
                file.close()
                raise DENIAL
            return file
        return super().openFile(filename, flags, attrs)

    def setAttrs(self, path: bytes, attrs: dict[str, Any]) -> None:
        """Refuse."""
        raise DENIAL


DENIAL = SFTPError(FX_PERMISSION_DENIED, "Permission denied")

if __name__ == "__main__":
    kind = NoChmod if sys.argv[1:] == ["no-chmod"] else SFTPServerForUnixConchUser
    registerAdapter(kind, Avatar, ISFTPServer)
    StandardIO(Server(avatar=Avatar()))
    reactor.run()
