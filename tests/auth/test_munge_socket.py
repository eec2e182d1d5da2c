"""The causes for which a munge daemon cannot be used, and their remedies, with real daemons."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shiftergw.auth.libmunge import Status
from shiftergw.auth.munge_client import try_daemon
from shiftergw.auth.munge_socket import trouble_of
from shiftergw.errors import Unavailable
from tests.munged import MungeDaemon, clock_off_by
from tests.parts import need_root


def cause(path: Path) -> str:
    """Return the error text for a daemon that cannot be used."""
    with pytest.raises(Unavailable) as caught:
        try_daemon(path)
    assert caught.value.remedy
    return caught.value.what


def test_a_daemon_that_works() -> None:
    """The clock of a daemon that works agrees with this machine's."""
    with MungeDaemon() as munged:
        assert abs(try_daemon(munged.socket)) < 15


@pytest.mark.parametrize(("shift", "low", "high"), [("-1h", -3620, -3595), ("+1h", 3580, 3605)])
def test_a_daemon_with_another_clock(shift: str, low: float, high: float) -> None:
    """The difference of the clocks is measured; the daemon itself does not notice it."""
    with MungeDaemon(env=clock_off_by(shift)) as munged:
        assert low <= try_daemon(munged.socket) <= high


def test_no_such_socket(tmp_path: Path) -> None:
    """The path does not exist, or is not a socket."""
    assert cause(tmp_path / "none").startswith(f"{tmp_path}/none: there is no such socket")
    assert "no such socket" in cause(tmp_path / "no" / "directory")
    (tmp_path / "file").write_text("")
    assert cause(tmp_path / "file") == f"{tmp_path}/file: it is not a socket."


def test_a_daemon_that_has_ended() -> None:
    """A daemon that was killed leaves a socket behind."""
    with MungeDaemon() as munged:
        os.kill(munged.pid, signal.SIGKILL)
        os.waitid(os.P_PID, munged.pid, os.WEXITED | os.WNOWAIT)
        assert "no munged listens at this socket any more" in cause(munged.socket)


def test_a_daemon_that_hangs() -> None:
    """A hanging daemon accepts connections and does not answer."""
    with MungeDaemon() as munged, munged.suspension():
        trouble = trouble_of(munged.socket, Status.TIMEOUT)
    assert "does not answer" in trouble.what
    assert trouble.remedy


def test_a_server_that_is_not_munged(tmp_path: Path) -> None:
    """A program that does not speak munge is reported as such."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen(1)
        trouble = trouble_of(tmp_path / "socket", Status.SOCKET)
    assert "does not speak munge" in trouble.what


def test_a_full_queue(tmp_path: Path) -> None:
    """A daemon whose queue of connections is full counts as hanging."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "socket"))
        server.listen(0)
        client.connect(str(tmp_path / "socket"))
        assert "hangs" in trouble_of(tmp_path / "socket", Status.SOCKET).what


_AS_NOBODY = """
import json, os, sys
from pathlib import Path
from shiftergw.auth.libmunge import Status
from shiftergw.auth.munge_socket import trouble_of
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(json.dumps(trouble_of(Path(sys.argv[1]), Status.SOCKET)))
"""


def test_permission_denied() -> None:
    """The error names the closed directory, or the socket that the user may not write to."""
    need_root()
    with MungeDaemon() as munged:
        for path, mode in ((munged.root, 0o700), (munged.socket, 0o700)):
            path.chmod(mode)
            argv = [sys.executable, "-c", _AS_NOBODY, str(munged.socket)]
            output = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout
            what, remedy = json.loads(output)
            assert "permission denied" in what
            assert (str(munged.root) in remedy) is (path == munged.root), remedy
            munged.root.chmod(0o711)
