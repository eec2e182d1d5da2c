"""Twisted Conch's own SFTP server on standard input and output; run as a program.

With the argument `no-chmod` it sets no modes, as ProFTPD where `<Limit SITE_CHMOD>` denies that: a
file that is to be made with a mode is made, and then the server refuses to have opened it.
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
from twisted.internet import reactor as global_reactor
from twisted.internet.error import ConnectionDone
from twisted.internet.stdio import StandardIO
from twisted.python.components import registerAdapter
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath

reactor: Any = global_reactor


_DONE = Failure(ConnectionDone())


class Avatar:
    """An account that is whoever runs this program."""

    def getHomeDir(self) -> FilePath[str]:
        """Return where relative paths begin."""
        return FilePath(str(Path.cwd()))

    def _runAsUser(self, function: Any, *arguments: Any) -> Any:
        """Call a function, or several, and return what the last one does."""
        calls = function if isinstance(function, list) else [(function, arguments)]
        results = [each(*its) for each, its in calls]
        return results[-1]


class Server(FileTransferServer):
    """The server; it ends with its input."""

    def connectionLost(self, reason: Failure = _DONE) -> None:
        """Stop."""
        super().connectionLost(reason)
        reactor.stop()


class NoChmod(SFTPServerForUnixConchUser):
    """An account that may set no modes."""

    def openFile(self, filename: bytes, flags: int, attrs: dict[str, Any]) -> Any:
        """Open a file; refuse that where it would need a mode."""
        if flags & FXF_CREAT:
            mode = attrs.pop("permissions", None)
            file = super().openFile(filename, flags, {"permissions": 0o666})
            if mode is not None:
                file.close()
                raise DENIED
            return file
        return super().openFile(filename, flags, attrs)

    def setAttrs(self, path: bytes, attrs: dict[str, Any]) -> None:
        """Refuse."""
        raise DENIED


DENIED = SFTPError(FX_PERMISSION_DENIED, "Permission denied")

if __name__ == "__main__":
    kind = NoChmod if sys.argv[1:] == ["no-chmod"] else SFTPServerForUnixConchUser
    registerAdapter(kind, Avatar, ISFTPServer)
    StandardIO(Server(avatar=Avatar()))
    reactor.run()
