"""What the command line shows of its user: commands as processes, with real munge daemons.

The gateway behind the HTTP edge is a fake; who asks is found out by the real authenticator, which
refuses a credential that comes twice.
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
from twisted.internet import reactor as global_reactor
from twisted.internet.threads import deferToThread

from shiftergw.auth.munge import MungeAuthenticator
from shiftergw.auth.munge_client import decode_own
from shiftergw.auth.users import HostUsers
from shiftergw.cli.credentials import payload_of
from shiftergw.errors import NotAllowed
from shiftergw.model import ImageRecord, RegistryLogin, Session
from shiftergw.plumbing.threads import Threads
from shiftergw.service.gateway import Gateway
from shiftergw.states import State
from shiftergw.web.api import make_site
from tests.cli.command import shiftergw
from tests.cli.homes import at_home
from tests.munged import Munged, clock_off_by
from tests.web.fakes import IMAGE_ID, READY, FakeGateway, listening

reactor: Any = global_reactor
WORKING = ImageRecord(system="mycluster", status=State.PULLING)


@dataclass
class User:
    """A user of the machine: where he lives, and what his commands said last."""

    munged: Munged
    file: Path
    env: Mapping[str, str]
    said: str = ""
    printed: str = ""
    sessions: list[Session] = field(default_factory=list)

    def keep(self, *lines: str) -> None:
        """Have these lines in `.cred`, as `shifterimg` writes them."""
        self.file.parent.mkdir(mode=0o700, exist_ok=True)
        self.file.write_text("".join(f"{line}\n" for line in lines))
        self.file.chmod(0o600)

    async def run(self, *arguments: str, gateways: FakeGateway | list[FakeGateway]) -> int:
        """Run a command; return its exit code. `sessions` are those of the first gateway."""
        fakes = gateways if isinstance(gateways, list) else [gateways]
        async with _served(fakes, self.munged) as urls:
            options = [option for url in urls for option in ("--gateway", url)]
            done: Any = await deferToThread(shiftergw, *options, *arguments, env=self.env)
        self.printed, self.said = done.stdout, done.stderr
        self.sessions = [call[1] for call in fakes[0].calls]
        return int(done.returncode)


@asynccontextmanager
async def _served(fakes: list[FakeGateway], munged: Munged) -> AsyncIterator[list[str]]:
    threads = Threads(reactor, 4, "munge")
    threads.startService()
    authenticator = MungeAuthenticator(
        "mycluster", munged.socket, HostUsers(threads, reactor), (), reactor
    )
    sites = [
        make_site(cast("Gateway", fake), {"mycluster": authenticator}, reactor, threads.run)
        for fake in fakes
    ]
    try:
        async with listening(sites[0]) as first, listening(sites[-1]) as last:
            yield [f"http://127.0.0.1:{port}" for port in (first, last)[: len(fakes)]]
    finally:
        await threads.stopService()


@pytest.fixture
def user(tmp_path: Path, munged: Munged) -> User:
    """Give a user without logins."""
    env = {
        **at_home(tmp_path / "home"),
        "SHIFTERGW_SYSTEM": "mycluster",
        "SHIFTERGW_MUNGE_SOCKET": str(munged.socket),
    }
    return User(munged, tmp_path / "home" / ".udiRoot" / ".cred", env)


@pytest.fixture
def stranger() -> Iterator[Munged]:
    """Give a daemon with another key."""
    with Munged() as running:
        yield running


@pytest_twisted.ensureDeferred
async def test_who_asks_is_who_runs_the_command(user: User) -> None:
    """Without logins the credential carries nothing but its maker."""
    assert await user.run("images", gateways=FakeGateway()) == 0
    (session,) = user.sessions
    assert (session.uid, session.gid, session.logins) == (os.getuid(), os.getgid(), {})
    assert user.said == ""
    assert payload_of({}) == b""


@pytest_twisted.ensureDeferred
async def test_each_poll_has_a_credential_of_its_own(user: User) -> None:
    """The daemon refuses the second use of one, so a pull that ends has used none twice."""
    fake = FakeGateway(pulls=[WORKING, WORKING, WORKING, READY])
    assert await user.run("pull", "x:1", gateways=fake) == 0
    assert user.printed == f"{IMAGE_ID}\n"
    assert len(user.sessions) == 4


@pytest_twisted.ensureDeferred
async def test_each_gateway_gets_a_credential_of_its_own(user: User) -> None:
    """Gateways share a daemon: one that refuses must not use the other's credential up."""
    for _ in range(3):
        refusing, good = FakeGateway(raises=NotAllowed("Not here.")), FakeGateway()
        assert await user.run("images", gateways=[refusing, good]) == 0
        assert len(good.calls) == 1


@pytest_twisted.ensureDeferred
async def test_logins_go_along(user: User) -> None:
    """All logins for the system are in every request, as the other client has them; no others."""
    kept = {
        "mycluster:default": b"ann:one",
        "mycluster:reg.example:5000": b'bob:t:w"o\\\x07',
        "mycluster:old": "ann:grün".encode("latin-1"),
        "mycluster:twice": b"ann:last",
        "other:quay.io": b"ann:three",
    }
    user.keep(
        f"mycluster:twice={user.munged.munge(payload=b'ann:first')}",
        *(f"{key}={user.munged.munge(payload=login)}" for key, login in kept.items()),
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
        assert user.said == ""


def test_the_payload_is_that_of_the_other_client() -> None:
    """No blanks, and the one member."""
    assert payload_of({"a:1": 'u:p"'}) == b'{"authorized_locations":{"a:1":"u:p\\""}}'


@pytest_twisted.ensureDeferred
async def test_old_and_used_logins_count(user: User) -> None:
    """That is how they are kept: a credential made long ago, and opened many times."""
    used = user.munged.encode(b"ann:used")
    for _ in range(3):
        assert decode_own(used, user.munged.socket) == b"ann:used"
    with Munged(user.munged.key, clock_off_by("-30d")) as past:
        user.keep(f"mycluster:old={past.encode(b'ann:old')}", f"mycluster:used={used}")
    assert await user.run("images", gateways=FakeGateway()) == 0
    (session,) = user.sessions
    assert session.logins == {
        "old": RegistryLogin("ann", "old"),
        "used": RegistryLogin("ann", "used"),
    }


@pytest_twisted.ensureDeferred
async def test_logins_of_others_are_left_out(user: User, stranger: Munged) -> None:
    """Another user's, another key's and a damaged one cost a warning each, and nothing else."""
    user.keep(
        f"mycluster:theirs={user.munged.encode_as(12345, 12345, b'eve:hush')}",
        f"mycluster:strange={stranger.encode(b'ann:hush')}",
        "mycluster:broken=MUNGE:AwQDAAC1hush:",
        f"mycluster:good={user.munged.encode(b'ann:x')}",
    )
    assert await user.run("images", gateways=FakeGateway()) == 0
    (session,) = user.sessions
    assert session.logins == {"good": RegistryLogin("ann", "x")}
    warnings = user.said.splitlines()
    assert [line.split(":")[:2] for line in warnings] == [
        ["Warning", f" the login for {name} is left out"]
        for name in ("theirs", "strange", "broken")
    ]
    assert all("Log in again" in line for line in warnings)
    assert "hush" not in user.said


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_not_ours_is_left_out(user: User, tmp_path: Path) -> None:
    """A link is not followed; what needs no login works all the same, and says so once."""
    user.keep()
    user.file.unlink()
    bait = tmp_path / "bait"
    bait.write_text(f"mycluster:default={user.munged.encode(b'ann:x')}\n")
    user.file.symlink_to(bait)
    assert await user.run("pull", "x:1", gateways=FakeGateway(pulls=[WORKING, READY])) == 0
    assert [session.logins for session in user.sessions] == [{}, {}]
    assert user.said.count("Warning: ") == 1
    assert "no links. Your logins are left out." in user.said


@pytest_twisted.ensureDeferred
async def test_a_file_that_others_can_read(user: User) -> None:
    """Its logins go along; once in a command the user is told how to close it."""
    user.keep(f"mycluster:default={user.munged.encode(b'ann:x')}")
    user.file.chmod(0o644)
    assert await user.run("pull", "x:1", gateways=FakeGateway(pulls=[WORKING, READY])) == 0
    assert [session.logins for session in user.sessions] == [
        {"default": RegistryLogin("ann", "x")}
    ] * 2
    assert user.said.count("Warning: ") == 1
    assert f"chmod 600 {user.file}" in user.said


@pytest_twisted.ensureDeferred
async def test_munge_is_away(user: User) -> None:
    """Nobody is asked then, and the text says what to look at."""
    fake = FakeGateway()
    for arguments in (["images"], ["pull", "--nowait", "x:1"]):
        assert await user.run("--munge-socket", "/nonexistent", *arguments, gateways=fake) == 3
        assert "munge does not answer on this machine" in user.said
        assert "systemctl status munge" in user.said
        assert "Traceback" not in user.said
    assert fake.calls == []


@pytest_twisted.ensureDeferred
async def test_a_credential_that_is_given_wins(user: User) -> None:
    """For mock authentication munge is not asked; this gateway wants munge, and says so."""
    options = ["--munge-socket", "/nonexistent", "--credential", "good:ann"]
    assert await user.run(*options, "images", gateways=FakeGateway()) == 4
    assert "This is no munge credential" in user.said


@pytest_twisted.ensureDeferred
async def test_munge_may_restart_in_the_middle_of_a_pull(user: User) -> None:
    """A pull that has begun bears that its own machine's daemon is away for a moment."""

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
    assert user.printed == f"{IMAGE_ID}\n"
    assert user.said.count("munge does not answer") == 1
