"""The credentials of requests: commands as processes, with real munge daemons.

The gateway behind the HTTP interface is a fake; the real authenticator identifies the caller, and
refuses the second use of a credential.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from shiftergw.auth.munge import MungeAuthenticator
from shiftergw.auth.munge_client import decode_own
from shiftergw.auth.users import HostUsers
from shiftergw.cli.credentials import payload_of
from shiftergw.errors import NotAllowed
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import RegistryLogin, Session
from shiftergw.service.gateway import Gateway
from shiftergw.states import State
from shiftergw.web.api import make_site
from tests.cli.command import shiftergw
from tests.cli.homes import at_home
from tests.installed_reactor import reactor
from tests.munged import MungeDaemon, clock_off_by
from tests.thread_pools import running_threads
from tests.web.fakes import IMAGE_ID, READY, FakeGateway, listening

WORKING = ImageRecord(system="mycluster", status=State.PULLING)


@dataclass
class User:
    """A user of the machine: the home, and the output of the last command."""

    munged: MungeDaemon
    file: Path
    env: Mapping[str, str]
    errors: str = ""
    output: str = ""
    sessions: list[Session] = field(default_factory=list)

    def write_logins(self, *lines: str) -> None:
        """Write lines into `.cred`, as `shifterimg` does."""
        self.file.parent.mkdir(mode=0o700, exist_ok=True)
        self.file.write_text("".join(f"{line}\n" for line in lines))
        self.file.chmod(0o600)

    async def run(self, *arguments: str, gateways: FakeGateway | list[FakeGateway]) -> int:
        """Run a command; return its exit code. `sessions` are those of the first gateway."""
        fakes = gateways if isinstance(gateways, list) else [gateways]
        async with _serve(fakes, self.munged) as urls:
            options = [option for url in urls for option in ("--gateway", url)]
            done: Any = await deferToThread(shiftergw, *options, *arguments, env=self.env)
        self.output, self.errors = done.stdout, done.stderr
        self.sessions = [call[1] for call in fakes[0].calls]
        return int(done.returncode)


@asynccontextmanager
async def _serve(fakes: list[FakeGateway], munged: MungeDaemon) -> AsyncIterator[list[str]]:
    async with running_threads(4) as threads:
        authenticator = MungeAuthenticator(
            "mycluster", munged.socket, HostUsers(threads, reactor), (), reactor
        )
        sites = [
            make_site(cast("Gateway", fake), {"mycluster": authenticator}, reactor, threads.run)
            for fake in fakes
        ]
        async with listening(sites[0]) as first, listening(sites[-1]) as last:
            yield [f"http://127.0.0.1:{port}" for port in (first, last)[: len(fakes)]]


@pytest.fixture
def user(tmp_path: Path, munged: MungeDaemon) -> User:
    """Return a user without logins."""
    env = {
        **at_home(tmp_path / "home"),
        "SHIFTERGW_SYSTEM": "mycluster",
        "SHIFTERGW_MUNGE_SOCKET": str(munged.socket),
    }
    return User(munged, tmp_path / "home" / ".udiRoot" / ".cred", env)


@pytest.fixture
def stranger() -> Iterator[MungeDaemon]:
    """Run a daemon with another key."""
    with MungeDaemon() as running:
        yield running


@pytest_twisted.ensureDeferred
async def test_the_caller_is_the_user_of_the_command(user: User) -> None:
    """Without logins the credential has an empty payload."""
    assert await user.run("images", gateways=FakeGateway()) == 0
    (session,) = user.sessions
    assert (session.uid, session.gid, session.logins) == (os.getuid(), os.getgid(), {})
    assert user.errors == ""
    assert payload_of({}) == b""


@pytest_twisted.ensureDeferred
async def test_each_poll_has_a_credential_of_its_own(user: User) -> None:
    """The daemon refuses a second use, so a pull that succeeds has used each credential once."""
    fake = FakeGateway(pulls=[WORKING, WORKING, WORKING, READY])
    assert await user.run("pull", "x:1", gateways=fake) == 0
    assert user.output == f"{IMAGE_ID}\n"
    assert len(user.sessions) == 4


@pytest_twisted.ensureDeferred
async def test_each_gateway_gets_a_credential_of_its_own(user: User) -> None:
    """Gateways may share a daemon: a gateway that refuses must not use up the credential."""
    for _ in range(3):
        refusing, good = FakeGateway(raises=NotAllowed("Not here.")), FakeGateway()
        assert await user.run("images", gateways=[refusing, good]) == 0
        assert len(good.calls) == 1


@pytest_twisted.ensureDeferred
async def test_logins_are_sent(user: User) -> None:
    """Every request has all logins for its system, and only those."""
    logins_by_key = {
        "mycluster:default": b"ann:one",
        "mycluster:reg.example:5000": b'bob:t:w"o\\\x07',
        "mycluster:old": "ann:grün".encode("latin-1"),
        "mycluster:twice": b"ann:last",
        "other:quay.io": b"ann:three",
    }
    user.write_logins(
        f"mycluster:twice={user.munged.munge(payload=b'ann:first')}",
        *(f"{key}={user.munged.munge(payload=login)}" for key, login in logins_by_key.items()),
    )
    logins = {
        "default": RegistryLogin("ann", "one"),
        "reg.example:5000": RegistryLogin("bob", 't:w"o\\\x07'),
        "old": RegistryLogin("ann", "grün"),
        "twice": RegistryLogin("ann", "last"),
    }
    for command in (["images"], ["pull", "x:1"], ["expire", "x:1"], ["queue"]):
        assert await user.run(*command, gateways=FakeGateway()) == 0
        assert [session.logins for session in user.sessions] == [logins]
        assert user.errors in {"", "No pull waits, works or has failed on mycluster.\n"}


def test_the_payload_is_that_of_the_other_client() -> None:
    """The JSON has one member, and no blanks."""
    assert payload_of({"a:1": 'u:p"'}) == b'{"authorized_locations":{"a:1":"u:p\\""}}'


@pytest_twisted.ensureDeferred
async def test_expired_and_used_logins_are_sent(user: User) -> None:
    """Logins are stored in credentials that are old and decoded many times."""
    used = user.munged.encode(b"ann:used")
    for _ in range(3):
        assert decode_own(used, user.munged.socket) == b"ann:used"
    with MungeDaemon(user.munged.key, clock_off_by("-30d")) as past:
        user.write_logins(f"mycluster:old={past.encode(b'ann:old')}", f"mycluster:used={used}")
    assert await user.run("images", gateways=FakeGateway()) == 0
    (session,) = user.sessions
    assert session.logins == {
        "old": RegistryLogin("ann", "old"),
        "used": RegistryLogin("ann", "used"),
    }


@pytest_twisted.ensureDeferred
async def test_invalid_logins_are_left_out(user: User, stranger: MungeDaemon) -> None:
    """A login of another user or key, or a damaged one, causes a warning only."""
    user.write_logins(
        f"mycluster:theirs={user.munged.encode_as(12345, 12345, b'eve:hush')}",
        f"mycluster:strange={stranger.encode(b'ann:hush')}",
        "mycluster:broken=MUNGE:AwQDAAC1hush:",
        f"mycluster:good={user.munged.encode(b'ann:x')}",
    )
    assert await user.run("images", gateways=FakeGateway()) == 0
    (session,) = user.sessions
    assert session.logins == {"good": RegistryLogin("ann", "x")}
    warnings = user.errors.splitlines()
    assert [line.split(":")[:2] for line in warnings] == [
        ["Warning", f" the login for {name} is left out"]
        for name in ("theirs", "strange", "broken")
    ]
    assert all("Log in again" in line for line in warnings)
    assert "hush" not in user.errors


@pytest_twisted.ensureDeferred
async def test_a_link_is_not_followed(user: User, tmp_path: Path) -> None:
    """The logins behind a link are not sent, with one warning; the request is sent."""
    user.write_logins()
    user.file.unlink()
    bait = tmp_path / "bait"
    bait.write_text(f"mycluster:default={user.munged.encode(b'ann:x')}\n")
    user.file.symlink_to(bait)
    assert await user.run("pull", "x:1", gateways=FakeGateway(pulls=[WORKING, READY])) == 0
    assert [session.logins for session in user.sessions] == [{}, {}]
    assert user.errors.count("Warning: ") == 1
    assert "no links. Your logins are left out." in user.errors


@pytest_twisted.ensureDeferred
async def test_a_file_that_others_can_read(user: User) -> None:
    """The logins of an open file are sent; each command warns once how to close the file."""
    user.write_logins(f"mycluster:default={user.munged.encode(b'ann:x')}")
    user.file.chmod(0o644)
    assert await user.run("pull", "x:1", gateways=FakeGateway(pulls=[WORKING, READY])) == 0
    assert [session.logins for session in user.sessions] == [
        {"default": RegistryLogin("ann", "x")}
    ] * 2
    assert user.errors.count("Warning: ") == 1
    assert f"chmod 600 {user.file}" in user.errors


@pytest_twisted.ensureDeferred
async def test_munge_is_away(user: User) -> None:
    """No request is sent, and the message says what to check."""
    fake = FakeGateway()
    for arguments in (["images"], ["pull", "--nowait", "x:1"]):
        assert await user.run("--munge-socket", "/nonexistent", *arguments, gateways=fake) == 3
        assert "munge does not answer on this machine" in user.errors
        assert "systemctl status munge" in user.errors
        assert "Traceback" not in user.errors
    assert fake.calls == []


@pytest_twisted.ensureDeferred
async def test_a_credential_on_the_command_line(user: User) -> None:
    """Munge is not used; this gateway, which needs a munge credential, refuses the request."""
    options = ["--munge-socket", "/nonexistent", "--credential", "good:ann"]
    assert await user.run(*options, "images", gateways=FakeGateway()) == 4
    assert "This is no munge credential" in user.errors


@pytest_twisted.ensureDeferred
async def test_munge_may_restart_during_a_pull(user: User) -> None:
    """A pull that has begun goes on after the client's daemon was away for a moment."""

    @dataclass
    class Restarting(FakeGateway):
        async def pull(self, *arguments: Any) -> ImageRecord:
            image = await super().pull(*arguments)
            if len(self.calls) == 1:
                user.munged.stop()
                reactor.callLater(1.5, user.munged.start)
            return image

    fake = Restarting(pulls=[WORKING, READY])
    assert await user.run("pull", "x:1", gateways=fake) == 0
    assert user.output == f"{IMAGE_ID}\n"
    assert user.errors.count("munge does not answer") == 1
