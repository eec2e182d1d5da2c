"""Registries with and without TLS are reached through squid, which wants a login."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import pytest_twisted

from shiftergw.errors import RegistryUnavailable
from shiftergw.model.images import Digest, Platform
from shiftergw.model.references import ImageReference
from tests import children
from tests.certificates import Authority
from tests.images import make_image, tar_of
from tests.parts import free_port, lacking, need, wait_for_port
from tests.patience import patient
from tests.registries import FakeRegistry
from tests.sources.registry.network import Sink, open_client, quiet

IMAGE = make_image([tar_of({"a": b"a" * 100_000})])
HELPER = Path("/usr/lib/squid/basic_ncsa_auth")
PASSWORD_FILE = "alice:$apr1$testtest$wKDV9oI4bJWY49JYbDJnL.\n"

CONFIGURATION = """
http_port 127.0.0.1:{port}
pid_filename {directory}/squid.pid
access_log stdio:{directory}/access.log
cache_log {directory}/cache.log
coredump_dir {directory}
cache deny all
pinger_enable off
shutdown_lifetime 0 seconds
auth_param basic program {helper} {directory}/passwd
auth_param basic children 1
auth_param basic realm tests
acl users proxy_auth REQUIRED
http_access allow users
http_access deny all
"""


class Squid:
    """The program `squid` on a free port of the loopback, with one user: alice, `s3:cret`."""

    def __init__(self) -> None:
        """Prepare a directory that squid's own user may write to."""
        self._program = need("squid")
        if not HELPER.exists():
            lacking(f"{HELPER} is not installed")
        self._directory = Path(tempfile.mkdtemp(prefix="squid-"))
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start squid, and wait until it listens."""
        (self._directory / "passwd").write_text(PASSWORD_FILE)
        configuration = self._directory / "squid.conf"
        configuration.write_text(
            CONFIGURATION.format(port=self._port, directory=self._directory, helper=HELPER)
        )
        if os.geteuid() == 0:  # squid becomes this user
            for path in (self._directory, *self._directory.iterdir()):
                shutil.chown(path, "proxy", "proxy")
        self._process = children.start(
            [self._program, "-N", "-f", configuration],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_port(self._port)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop squid, and remove its files."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(patient(10))
        shutil.rmtree(self._directory)

    def url(self, password: str = "s3%3Acret") -> str:
        """Return the value of `https_proxy`."""
        return f"http://alice:{password}@127.0.0.1:{self._port}"

    def requests(self) -> list[str]:
        """Return status, method and user of each request in squid's log."""
        lines = (self._directory / "access.log").read_text().splitlines()
        return [
            f"{fields[3].rpartition('/')[2]} {fields[5]} {fields[7]}"
            for fields in map(str.split, lines)
        ]


@pytest.fixture
def squid() -> Iterator[Squid]:
    """Run squid."""
    with Squid() as running:
        yield running


@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest_twisted.ensureDeferred
async def test_a_pull_through_squid(tmp_path: Path, squid: Squid, scheme: str) -> None:
    """An image arrives through squid, whose login the registry never gets."""
    authority = Authority(tmp_path)
    registry = FakeRegistry(IMAGE)
    await registry.start(authority.options("127.0.0.1") if scheme == "https" else None)
    reference, sink = ImageReference.parse("team/app"), Sink()
    environment = {f"{scheme}_proxy": squid.url()}
    url = f"{scheme}://{registry.host}"
    try:
        async with open_client(url, environment=environment, cacert=authority.pem) as client:
            image, _ = await client.resolve(reference, Platform(), None, quiet)
            await client.blob(image, image.layers[0], None, quiet, 0, sink)
        assert Digest.of(bytes(sink.content)) == image.layers[0].digest
        assert {ask.header("Proxy-Authorization") for ask in registry.requests} == {None}
        environment = {f"{scheme}_proxy": squid.url("wrong")}
        async with open_client(url, environment=environment, cacert=authority.pem) as client:
            with pytest.raises(RegistryUnavailable, match="407") as caught:
                await client.resolve(reference, Platform(), None, quiet)
        assert "wrong" not in f"{caught.value}{caught.value.detail}"
    finally:
        await registry.stop()
    method = "CONNECT" if scheme == "https" else "GET"
    assert f"200 {method} alice" in squid.requests()
