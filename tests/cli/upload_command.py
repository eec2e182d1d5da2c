"""Files to upload, and the command that uploads them."""

from __future__ import annotations

import os

from tests.cli import command
from tests.cli.upload_gateway import UploadGateway
from tests.images import entry, tar_of

MIB = 1 << 20
CONTENT = tar_of([entry("image", os.urandom(256 * 1024) * 13)])[: 3 * MIB + 3]
"""The first 3 MiB and some bytes of an archive."""


def run(
    gateway: UploadGateway, *arguments: str, stdin: bytes = b"", **variables: str
) -> tuple[int, str, str]:
    """Run a command to its end; return exit code, output and standard error."""
    done = command.run(*arguments, env={**gateway.env, **variables}, stdin=stdin)
    return done.returncode, done.stdout.decode(), done.stderr.decode()
