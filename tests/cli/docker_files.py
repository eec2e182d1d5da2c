"""Files and credential helpers of Docker, for tests of logins."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any


def entry(user: str, password: str) -> dict[str, str]:
    """Return a login as Docker writes it below `auths`."""
    return {"auth": b64encode(f"{user}:{password}".encode()).decode()}


def write_config(path: Path, document: Any, mode: int = 0o600) -> Path:
    """Write a file such as `config.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(mode)
    return path


def write_helper(directory: Path, name: str, script: str) -> None:
    """Write `docker-credential-NAME`, a shell script with the server's name in `$server`."""
    directory.mkdir(exist_ok=True)
    program = directory / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\nread -r server\n{script}\n")
    program.chmod(0o755)


def helper_of(logins: dict[str, tuple[str, str]]) -> str:
    """Return a script of a helper that has these logins by server."""
    cases = [
        f"'{server}') echo '{json.dumps({'ServerURL': server, 'Username': user, 'Secret': key})}';;"
        for server, (user, key) in logins.items()
    ]
    missing = "*) echo credentials not found in native keychain; exit 1;;"
    return "\n".join(['case "$server" in', *cases, missing, "esac"])
