"""One upload by another SSH client for Python, in a process of its own.

`python_clients.py PACKAGE PORT USER KEY KNOWN_HOSTS CIPHER SOURCE TARGET` prints what it took, in
seconds of the clock and of the CPU, with the login and without the start of Python.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from importlib import import_module
from typing import Any


def by_asyncssh(
    package: Any, port: int, user: str, key: str, known: str, cipher: str, source: str, target: str
) -> None:
    """Put a file by asyncssh."""

    async def put() -> None:
        async with (
            package.connect(
                "127.0.0.1",
                port,
                username=user,
                client_keys=[key],
                known_hosts=known,
                encryption_algs=[cipher],
                config=None,
            ) as connection,
            connection.start_sftp_client() as sftp,
        ):
            await sftp.put(source, target)

    asyncio.run(put())


def by_paramiko(
    package: Any, port: int, user: str, key: str, known: str, cipher: str, source: str, target: str
) -> None:
    """Put a file by paramiko."""
    client = package.SSHClient()
    client.load_host_keys(known)
    transport: type = package.Transport
    transport._preferred_ciphers = (cipher,)  # type: ignore[attr-defined]  # its own way
    client.connect(
        "127.0.0.1", port, user, key_filename=key, allow_agent=False, look_for_keys=False
    )
    with client, client.open_sftp() as sftp:
        sftp.put(source, target)


def main() -> None:
    """Upload, and print what it took."""
    name, port, *rest = sys.argv[1:]
    package = import_module(name)
    began, cpu = time.monotonic(), time.process_time()
    user, key, known, cipher, source, target = rest
    put = {"asyncssh": by_asyncssh, "paramiko": by_paramiko}[name]
    put(package, int(port), user, key, known, cipher, source, target)
    taken = {"wall": time.monotonic() - began, "cpu": time.process_time() - cpu}
    print(json.dumps(taken))  # noqa: T201 - whoever started it reads it


if __name__ == "__main__":
    main()
