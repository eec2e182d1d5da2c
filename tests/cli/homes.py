"""A home of the test's own for the processes that it starts.

The command line takes a user's home from the host's database, so that is what they see changed.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.parts import lacking

_LIBRARY = "libnss_wrapper.so"


def at_home(home: Path) -> Mapping[str, str]:
    """Return the environment of a process whose user has this home; made if it is missing."""
    preloaded = {"LD_PRELOAD": _LIBRARY}
    probe = subprocess.run(["true"], env={**os.environ, **preloaded}, stderr=-1, check=True)
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
        **preloaded,
        "NSS_WRAPPER_PASSWD": str(passwd),
        "NSS_WRAPPER_GROUP": "/etc/group",
        "HOME": "/nonexistent",
    }
