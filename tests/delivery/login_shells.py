"""SSH servers whose account has a login shell and a start-up file chosen by the test."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.parts import lacking, need
from tests.sshd import Sshd

_LIBRARY = "libnss_wrapper.so"


def server_with_shell(
    home: Path, shell: str, start_up: str = "", text: str = "", *settings: str
) -> Sshd:
    """Return a server on which this user has another home and login shell.

    `start_up` is the shell's start-up file, relative to the home, and `text` its content.
    """
    home.mkdir()
    if start_up:
        path = home / start_up
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    # Another SetEnv than that of the tests' server, so that bash reads its start-up file.
    return Sshd(*settings, "SetEnv LC_NOTHING=1", environment=_accounts(home, need(shell)))


def _accounts(home: Path, shell: str) -> Mapping[str, str]:
    """Return an environment in which this user has another home and login shell."""
    preload = {"LD_PRELOAD": _LIBRARY}
    probe = subprocess.run(["true"], env={**os.environ, **preload}, stderr=-1, check=True)
    if probe.stderr:
        lacking(f"{_LIBRARY} is not installed; `tests/run` installs it")
    lines = []
    for user in pwd.getpwall():
        place = f"{home}:{shell}" if user.pw_uid == os.getuid() else f"{user.pw_dir}:/bin/sh"
        lines.append(f"{user.pw_name}:x:{user.pw_uid}:{user.pw_gid}::{place}\n")
    passwd = home / "passwd"
    passwd.write_text("".join(lines))
    return {**preload, "NSS_WRAPPER_PASSWD": str(passwd), "NSS_WRAPPER_GROUP": "/etc/group"}
