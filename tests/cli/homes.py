"""A home of the test's own for the processes that it starts.

The command line takes a user's home from the host's database, so the processes see a changed one.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from shiftergw.auth.munge_client import decode_own
from tests.cli.command import ENVIRONMENT, PROGRAM
from tests.munged import MungeDaemon
from tests.parts import lacking
from tests.patience import patient

LIMIT = patient(30.0)
"""Seconds that a command may take."""

_LIBRARY = "libnss_wrapper.so"


def at_home(home: Path) -> Mapping[str, str]:
    """Return the environment of a process whose user has this home; made if it is missing."""
    preload = {"LD_PRELOAD": _LIBRARY}
    probe = subprocess.run(["true"], env={**os.environ, **preload}, stderr=-1, check=True)
    if probe.stderr:
        lacking(f"{_LIBRARY} is not installed; `tests/run` installs it")
    home.mkdir(exist_ok=True)
    lines = []
    for user in pwd.getpwall():
        directory = str(home) if user.pw_uid == os.getuid() else user.pw_dir
        lines.append(f"{user.pw_name}:x:{user.pw_uid}:{user.pw_gid}::{directory}:/bin/sh\n")
    passwd = home.parent / f"{home.name}.passwd"
    passwd.write_text("".join(lines))
    return {
        **preload,
        "NSS_WRAPPER_PASSWD": str(passwd),
        "NSS_WRAPPER_GROUP": "/etc/group",
        "HOME": "/nonexistent",
    }


class Home:
    """The home of a user, and the commands that the user runs."""

    def __init__(
        self,
        path: Path,
        munged: MungeDaemon,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        """Start without logins; `env` is added to the environment of the commands."""
        self._munged = munged
        self._program = program
        self.file = path / "home" / ".udiRoot" / ".cred"
        self.env: Mapping[str, str] = {
            **ENVIRONMENT,
            **at_home(path / "home"),
            "SHIFTERGW_SYSTEM": "mycluster",
            "SHIFTERGW_MUNGE_SOCKET": str(munged.socket),
            **(env or {}),
        }

    def run(self, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Run a command without a terminal; return exit code, output and standard error."""
        done = subprocess.run(
            [*self._program, *arguments],
            env=self.env,
            input=stdin,
            capture_output=True,
            timeout=patient(LIMIT),
            start_new_session=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def logins(self) -> dict[str, bytes]:
        """Return the payloads of the stored credentials, by key."""
        pairs = [line.split("=", 1) for line in self.file.read_text().splitlines()]
        return {key: decode_own(text, self._munged.socket) for key, text in pairs}
