"""Twisted Conch's own SFTP server on standard input and output; run as a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.conch.interfaces import ISFTPServer
from twisted.conch.ssh.filetransfer import FileTransferServer
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


registerAdapter(SFTPServerForUnixConchUser, Avatar, ISFTPServer)

if __name__ == "__main__":
    StandardIO(Server(avatar=Avatar()))
    reactor.run()
