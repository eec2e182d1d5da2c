"""Upload a file by another SSH client for Python, in a process of its own.

`python_clients.py PACKAGE PORT USER KEY KNOWN_HOSTS CIPHER SOURCE TARGET` prints wall seconds and
CPU seconds as JSON. They include the login, but not the start of Python.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from importlib import import_module
from typing import Any


def by_asyncssh(
    package: Any,
    port: int,
    user: str,
    key: str,
    hosts_file: str,
    cipher: str,
    source: str,
    target: str,
) -> None:
    """Upload a file by asyncssh."""

    async def put() -> None:
        async with (
            package.connect(
                "127.0.0.1",
                port,
                username=user,
                client_keys=[key],
                known_hosts=hosts_file,
                encryption_algs=[cipher],
                config=None,
            ) as connection,
            connection.start_sftp_client() as sftp,
        ):
            await sftp.put(source, target)

    asyncio.run(put())


def by_paramiko(
    package: Any,
    port: int,
    user: str,
    key: str,
    hosts_file: str,
    cipher: str,
    source: str,
    target: str,
) -> None:
    """Upload a file by paramiko."""
    client = package.SSHClient()
    client.load_host_keys(hosts_file)
    transport: type = package.Transport
    transport._preferred_ciphers = (cipher,)  # type: ignore[attr-defined]  # paramiko has no public way
    client.connect(
        "127.0.0.1", port, user, key_filename=key, allow_agent=False, look_for_keys=False
    )
    with client, client.open_sftp() as sftp:
        sftp.put(source, target)


def main() -> None:
    """Upload a file and print the times."""
    name, port, *rest = sys.argv[1:]
    package = import_module(name)
    begin, cpu = time.monotonic(), time.process_time()
    user, key, hosts_file, cipher, source, target = rest
    put = {"asyncssh": by_asyncssh, "paramiko": by_paramiko}[name]
    put(package, int(port), user, key, hosts_file, cipher, source, target)
    cost = {"wall": time.monotonic() - begin, "cpu": time.process_time() - cpu}
    print(json.dumps(cost))  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    main()
