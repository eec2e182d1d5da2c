"""`login --from-docker` as a process, against a gateway and a munge daemon."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.cli.command import gateway_for
from tests.cli.docker_files import entry, helper_of, write_config, write_helper
from tests.cli.homes import Home
from tests.munged import MungeDaemon
from tests.web.fakes import FakeGateway

HOSTS = {
    "registry-1.docker.io": "registry-1.docker.io",
    "closed": "reg.example:5000",
    "ghcr.io": "mirror.example",
    "quay.io": "quay.io",
}
"""The gateway's registries: one has a short name, and one is a mirror."""


class DockerUser:
    """A user with logins in the files of Docker and podman."""

    def __init__(self, path: Path, munged: MungeDaemon) -> None:
        """Start without files."""
        self._path = path
        self._munged = munged
        self.docker = path / "user" / ".docker" / "config.json"
        self.podman = path / "run" / "containers" / "auth.json"
        self.programs = path / "programs"
        self.file = path / "home" / ".udiRoot" / ".cred"

    async def login(
        self, fake: FakeGateway, *arguments: str, env: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Run `login --from-docker`; return exit code and standard error."""
        async with gateway_for(fake) as gateway:
            home = self.home({**gateway, **(env or {})})
            code, out, errors = await deferToThread(home.run, "login", "--from-docker", *arguments)
        assert out == b""
        return code, errors.decode()

    def home(self, env: Mapping[str, str]) -> Home:
        """Return the user's home."""
        (self._path / "user").mkdir(exist_ok=True)
        return Home(
            self._path,
            self._munged,
            {
                "HOME": str(self._path / "user"),
                "XDG_RUNTIME_DIR": str(self._path / "run"),
                "PATH": f"{self.programs}:{os.environ['PATH']}",
                **env,
            },
        )

    def logins(self) -> dict[str, bytes]:
        """Return the stored logins by location."""
        pairs = self.home({}).logins().items()
        return {key.removeprefix("mycluster:"): login for key, login in pairs}


@pytest.fixture
def user(tmp_path: Path, munged: MungeDaemon) -> DockerUser:
    """Return a user without logins."""
    return DockerUser(tmp_path, munged)


@pytest_twisted.ensureDeferred
async def test_the_logins_for_the_gateway_s_registries(user: DockerUser) -> None:
    """Each login is stored under the gateway's name for its host; other hosts are left out."""
    write_helper(
        user.programs, "ring", helper_of({"https://index.docker.io/v1/": ("hub", "secret1")})
    )
    auths: dict[str, Any] = {
        "https://index.docker.io/v1/": {},
        "reg.example:5000": entry("ann", "secret2"),
        "ghcr.io": entry("ann", "secret3"),
        "elsewhere.example": entry("ann", "secret4"),
    }
    write_config(user.docker, {"auths": auths, "credsStore": "ring"})
    write_config(user.podman, {"auths": {"quay.io": entry("pod", "secret5")}})
    code, errors = await user.login(FakeGateway(hosts=HOSTS))
    assert code == 0
    assert user.logins() == {
        "registry-1.docker.io": b"hub:secret1",
        "closed": b"ann:secret2",
        "quay.io": b"pod:secret5",
    }
    assert stat.S_IMODE(user.file.stat().st_mode) == 0o600
    lines = errors.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("The login for registry-1.docker.io on mycluster is kept in ")
    assert lines[0].endswith(": hub, from docker-credential-ring.")
    assert lines[1].endswith(f": ann, from {user.docker}.")
    assert lines[2].endswith(f": pod, from {user.podman}.")
    assert "secret" not in errors


@pytest_twisted.ensureDeferred
async def test_a_gateway_for_any_registry(user: DockerUser) -> None:
    """With the location `*` every login of the files is one for the gateway."""
    write_config(user.docker, {"auths": {"Elsewhere.example:443": entry("ann", "1")}})
    assert (await user.login(FakeGateway(hosts={"*": "", **HOSTS})))[0] == 0
    assert user.logins() == {"elsewhere.example": b"ann:1"}


@pytest_twisted.ensureDeferred
async def test_one_location(user: DockerUser) -> None:
    """A location on the command line counts by its name, and the gateway is not asked."""
    write_config(user.docker, {"auths": {"ghcr.io": entry("a", "1"), "quay.io": entry("b", "2")}})
    fake = FakeGateway()
    assert (await user.login(fake, "https://ghcr.io/"))[0] == 0
    assert user.logins() == {"ghcr.io": b"a:1"}
    assert fake.calls == []
    code, errors = await user.login(fake, "none.example")
    assert code == 4
    assert f"There is no login for none.example in {user.docker}" in errors


@pytest_twisted.ensureDeferred
async def test_a_part_of_the_logins(user: DockerUser) -> None:
    """An unusable login is reported, the others are stored, and the exit code says so."""
    auths = {"quay.io": {"auth": "secret!"}, "reg.example:5000": entry("ann", "1")}
    write_config(user.docker, {"auths": auths})
    code, errors = await user.login(FakeGateway(hosts=HOSTS))
    assert code == 4
    assert user.logins() == {"closed": b"ann:1"}
    assert errors.startswith("The login for quay.io is left out: The entry 'quay.io' in ")
    assert "secret" not in errors


@pytest_twisted.ensureDeferred
async def test_an_identity_token(user: DockerUser) -> None:
    """An identity token is stored under the name that Docker's helpers use for it."""
    auths = {"quay.io": {"auth": "MDAwMDo=", "identitytoken": "secret"}}
    write_config(user.docker, {"auths": auths})
    code, errors = await user.login(FakeGateway(hosts=HOSTS))
    assert code == 0
    assert user.logins() == {"quay.io": b"<token>:secret"}
    assert errors.endswith(f": an identity token, from {user.docker}.\n")
    assert "secret" not in errors


@pytest_twisted.ensureDeferred
async def test_no_logins(user: DockerUser) -> None:
    """Without files, or without a login for the gateway, nothing is stored."""
    code, errors = await user.login(FakeGateway(hosts=HOSTS))
    assert code == 4
    assert "There is no file with logins" in errors
    write_config(user.docker, {"auths": {"elsewhere.example": entry("ann", "secret")}})
    code, errors = await user.login(FakeGateway(hosts=HOSTS))
    assert code == 4
    assert "There is no login for a registry of the gateway of mycluster" in errors
    assert not user.file.exists()


@pytest_twisted.ensureDeferred
async def test_misuse(user: DockerUser) -> None:
    """A file that others can write is refused, and so is a second source of the login."""
    write_config(user.docker, {"auths": {"quay.io": entry("ann", "1")}}, 0o666)
    fake = FakeGateway(hosts=HOSTS)
    code, errors = await user.login(fake)
    assert code == 2
    assert "can be written by others" in errors
    assert (await user.login(fake, "--username", "ann"))[0] == 2
    write_config(user.docker, {"auths": {"quay.io": entry("an\nn", "x\ny")}})
    assert (await user.login(fake))[0] == 4
    assert not user.file.exists()
    dead_gateway = {"SHIFTERGW_GATEWAY": "http://127.0.0.1:1"}
    assert (await user.login(fake, env=dead_gateway))[0] == 3
