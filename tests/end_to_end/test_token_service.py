"""A registry with a token service: the user's identity token of Docker, through a whole gateway."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.docker_files import write_config
from tests.cli.homes import Home
from tests.images import entry, oci_layout, tar_of
from tests.munged import MungeDaemon
from tests.parts import need
from tests.registries import DockerRegistry
from tests.running_service import SYSTEM, Service
from tests.token_service import SERVICE, TokenService

IDENTITY_TOKEN = "re:fresh-wörd"
IMAGE = "closed/lib/app:1"


class Site:
    """A gateway with munge, and its registry with a token service."""

    def __init__(
        self,
        root: Path,
        service: Service,
        registry: DockerRegistry,
        tokens: TokenService,
        munged: MungeDaemon,
    ) -> None:
        """Keep the parts, whose files are below `root`."""
        self._root = root
        self._munged = munged
        self.service = service
        self.registry = registry
        self.tokens = tokens

    def user_with(self, directory: Path, identity_token: str) -> Home:
        """Return a user whose file of Docker has an identity token, as after a browser login."""
        login = {"auth": "MDAwMDo=", "identitytoken": identity_token}
        path = directory / "user" / ".docker" / "config.json"
        write_config(path, {"auths": {self.registry.host: login}})
        env = {"SHIFTERGW_GATEWAY": self.service.url, "HOME": str(directory / "user")}
        return Home(directory, self._munged, env)

    def files_with(self, text: str) -> list[Path]:
        """Return the files of the gateway and the registry that have a text in them."""
        files = [path for path in self._root.rglob("*") if path.is_file()]
        return [path for path in files if text.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Run the servers; the registry has an image that only holders of a login may read."""
    need("mksquashfs")
    root = tmp_path_factory.mktemp("site")
    with (
        MungeDaemon() as munged,
        TokenService(tmp_path_factory.mktemp("tokens"), IDENTITY_TOKEN) as tokens,
        DockerRegistry(root / "registry", auth=tokens.auth) as registry,
    ):
        oci_layout(root / "layout", [tar_of([entry("etc"), entry("etc/name", b"app")])])
        registry.push(root / "layout", "lib/app:1")
        platform = {
            "accesstype": "local",
            "mungeSocketPath": str(munged.socket),
            "admins": [os.getuid()],
            "squashfs": {"compressor": "gzip", "level": 1},
            "local": {"imageDir": str(root / "gateway" / "images")},
        }
        location = {
            "remotetype": "dockerv2",
            "url": f"http://{registry.host}",
            "trustedHosts": ["127.0.0.1"],
        }
        changes = {"Authentication": "munge", "FailureHold": 1, "Platforms": {SYSTEM: platform}}
        with Service(root / "gateway", {"closed": location}, changes) as service:
            yield Site(root, service, registry, tokens, munged)


@pytest.mark.slow
def test_an_identity_token(site: Site, tmp_path: Path) -> None:
    """Docker's identity token gets the image, and nobody but the token service sees it."""
    user = site.user_with(tmp_path, IDENTITY_TOKEN)
    code, _, errors = user.run("pull", IMAGE)
    assert (code, b"Log in" in errors) == (1, True), errors
    assert {request.method for request in site.tokens.requests} == {"GET"}
    site.tokens.requests.clear()

    code, _, errors = user.run("login", "--from-docker")
    assert code == 0, errors
    code, out, errors = user.run("pull", IMAGE)
    assert code == 0, errors
    assert (site.service.images / f"{out.decode().strip()}.squashfs").exists()
    assert site.registry.blob_requests() >= 2
    forms = [r.parameters for r in site.tokens.requests if r.method == "POST"]
    assert forms == [
        {
            "grant_type": "refresh_token",
            "refresh_token": IDENTITY_TOKEN,
            "client_id": "shiftergw",
            "service": SERVICE,
            "scope": "repository:lib/app:pull",
        }
    ]
    assert {request.authorization for request in site.tokens.requests} == {None}
    assert site.files_with(IDENTITY_TOKEN) == []


@pytest.mark.slow
def test_an_identity_token_that_was_revoked(site: Site, tmp_path: Path) -> None:
    """The user reads the words of the token service, without the token."""
    user = site.user_with(tmp_path, "revoked-wörd")
    assert user.run("login", "--from-docker")[0] == 0
    code, out, errors = user.run("pull", "closed/lib/app:2")
    assert (code, out) == (1, b"")
    assert b"(the identity token *** was revoked)" in errors
    assert site.files_with("revoked-w") == []
