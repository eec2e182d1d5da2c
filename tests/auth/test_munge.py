"""Who sent a credential, by real munge daemons: two systems, each with its own key."""

from __future__ import annotations

import json
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.auth import munge as munge_module
from shiftergw.auth.batched import BATCH_SIZE
from shiftergw.auth.libmunge import LARGEST, DecodeAnswer, Library, Munge, Programs
from shiftergw.auth.munge import MungeAuthenticator
from shiftergw.auth.users import HostUsers
from shiftergw.errors import BadRequest, GatewayError, NotAuthenticated, Unavailable
from shiftergw.model import RegistryLogin, Session, UserAccount
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Authenticator
from tests.munged import Munged, clock_off_by
from tests.parts import need
from tests.patience import patient

reactor: Any = global_reactor

UNKNOWN = 54321, 54322
"""Ids that no machine of the tests knows."""


class SystemUsers:
    """A system whose `root` is not ours, and whose `operator` has our uid."""

    async def account(self, uid: int, gid: int) -> UserAccount:
        """Call everybody by his digits."""
        return UserAccount(str(uid), str(gid), frozenset({gid}))

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:
        """Know of no others."""
        return frozenset({gid})

    async def uid_of(self, user: str) -> int | None:
        """Know two."""
        return {"root": 7, "operator": os.getuid()}.get(user)


class Observed(Library):
    """The library, which says when it asks the daemon about a credential."""

    def __init__(self) -> None:
        """Ask nothing yet."""
        super().__init__()
        self.asks = Event()

    def decode(self, credential: bytes, socket: Path | None) -> DecodeAnswer:
        """Set `asks`, and ask."""
        self.asks.set()
        return super().decode(credential, socket)


@pytest.fixture(scope="module")
def munged() -> Iterator[Munged]:
    """Give the daemon of the system `perlmutter`."""
    with Munged() as running:
        yield running


@pytest.fixture(scope="module")
def other() -> Iterator[Munged]:
    """Give the daemon of another system."""
    with Munged() as running:
        yield running


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Give a pool of threads that runs while the test does."""
    pool = Threads(reactor, 8, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


def programs() -> Munge:
    """Return the programs instead of the library."""
    need("unmunge")
    return Programs()


@pytest.fixture(params=[Library, programs])
def munge(request: pytest.FixtureRequest) -> Munge:
    """Give both ways to a daemon, one after the other."""
    way: Munge = request.param()
    return way


def authenticator(
    munged: Munged, threads: Threads, munge: Munge | None = None, *admins: str | int
) -> Authenticator:
    """Return what knows the users of `perlmutter`."""
    users = HostUsers(threads, reactor)
    return MungeAuthenticator("perlmutter", munged.socket, users, admins, reactor, munge)


async def refusal(auth: Authenticator, credential: str) -> GatewayError:
    """Return why a credential is refused; it is one line that can be printed."""
    with pytest.raises(GatewayError) as caught:
        await auth.authenticate(credential, "perlmutter")
    assert str(caught.value).isprintable()
    return caught.value


@pytest_twisted.ensureDeferred
async def test_a_user_of_this_host(munged: Munged, threads: Threads, munge: Munge) -> None:
    """Numbers are the credential's own; names and groups are the host's."""
    auth = authenticator(munged, threads, munge)
    session = await auth.authenticate(munged.encode_as(0, 0), "perlmutter")
    groups = frozenset({0, *os.getgrouplist("root", 0)})
    assert session == Session("perlmutter", "root", 0, "root", 0, groups)


@pytest_twisted.ensureDeferred
async def test_users_whom_the_host_does_not_know(
    munged: Munged, threads: Threads, munge: Munge
) -> None:
    """They are called by their digits, so that no two of them are the same."""
    auth = authenticator(munged, threads, munge)
    uid, gid = UNKNOWN
    first = await auth.authenticate(munged.encode_as(uid, gid), "perlmutter")
    second = await auth.authenticate(munged.encode_as(uid + 1, gid), "perlmutter")
    assert (first.user, first.group) == (str(uid), str(gid))
    assert (first.uid, first.gid, first.groups) == (uid, gid, frozenset({gid}))
    assert (second.user, second.uid) == (str(uid + 1), uid + 1)


@pytest_twisted.ensureDeferred
async def test_a_credential_counts_once(munged: Munged, threads: Threads, munge: Munge) -> None:
    """The second time it is refused, whoever sends it."""
    auth = authenticator(munged, threads, munge)
    credential = munged.encode()
    await auth.authenticate(credential, "perlmutter")
    error = await refusal(auth, credential)
    assert (error.http_status, error.what) == (401, "The credential has been used before.")


@pytest_twisted.ensureDeferred
async def test_sent_twice_at_once(munged: Munged, threads: Threads) -> None:
    """Of two requests with one credential at the same time, one is answered."""
    auth = authenticator(munged, threads)
    credential = munged.encode()
    answered = []

    async def ask() -> None:
        with suppress(NotAuthenticated):
            answered.append(await auth.authenticate(credential, "perlmutter"))

    await gather_or_cancel(ask() for _ in range(10))
    assert len(answered) == 1


@pytest_twisted.ensureDeferred
async def test_another_systems_credential(
    munged: Munged, other: Munged, threads: Threads, munge: Munge
) -> None:
    """One system's credential is worth nothing on another, and still counts on its own."""
    auth = authenticator(munged, threads, munge)
    credential = other.encode()
    error = await refusal(auth, credential)
    assert error.http_status == 401
    assert "not valid for perlmutter" in str(error)
    assert await authenticator(other, threads, munge).authenticate(credential, "perlmutter")
    with pytest.raises(NotAuthenticated):
        await auth.authenticate(munged.encode(), "another")


@pytest.mark.parametrize(("shift", "said"), [("-1h", "has expired"), ("+1h", "not valid yet")])
@pytest_twisted.ensureDeferred
async def test_made_at_another_time(
    munged: Munged, threads: Threads, munge: Munge, shift: str, said: str
) -> None:
    """A credential of an hour ago has expired, and one of the future is not valid yet."""
    with Munged(munged.key, clock_off_by(shift)) as elsewhere:
        error = await refusal(authenticator(munged, threads, munge), elsewhere.encode())
    assert error.http_status == 401
    assert said in str(error)
    assert re.search(r"it was made 3,[56]\d\d s (ago|from now)", str(error))
    assert "clocks" in error.remedy


@pytest.mark.parametrize("option", ["--restrict-uid=54321", "--restrict-gid=54321"])
@pytest_twisted.ensureDeferred
async def test_for_somebody_else(
    munged: Munged, threads: Threads, munge: Munge, option: str
) -> None:
    """A credential that only another user or group may read is not for us."""
    error = await refusal(authenticator(munged, threads, munge), munged.munge(option))
    assert error.http_status == 401
    assert "another user or group" in str(error)


@pytest.mark.parametrize(
    ("credential", "said"),
    [
        ("(null)", "munge was away where it ran"),
        ("", "no munge credential"),
        ("good:alice:users", "no munge credential"),
        ("MUNGE:AAAA:", "no munge credential"),
        ("MUNGE:AA\0AA:", "no munge credential"),
        ("MUNGE:AAAA:x", "no munge credential"),
        ("MUNGE:Aé:", "no munge credential"),
        (f"MUNGE:{'A' * LARGEST}:", "too long"),
    ],
    ids=lambda text: repr(text[:20]),
)
@pytest_twisted.ensureDeferred
async def test_no_credential(
    munged: Munged, threads: Threads, munge: Munge, credential: str, said: str
) -> None:
    """What is no credential is refused in words, and never repeated."""
    error = await refusal(authenticator(munged, threads, munge), credential)
    assert (type(error), error.http_status) == (NotAuthenticated, 401)
    assert said in str(error)


@settings(max_examples=100)
@given(text=st.one_of(st.text(), st.from_regex(r"\AMUNGE:[A-Za-z0-9+/]{0,300}=?:\Z")))
@pytest_twisted.ensureDeferred
async def test_garbage(munged: Munged, text: str) -> None:
    """Whatever text comes, it is refused as no credential or not a valid one."""
    pool = Threads(reactor, 1, "garbage")
    pool.startService()
    try:
        error = await refusal(authenticator(munged, pool), text)
    finally:
        await pool.stopService()
    assert type(error) is NotAuthenticated


@pytest_twisted.ensureDeferred
async def test_logins(munged: Munged, threads: Threads, munge: Munge) -> None:
    """The logins in a credential are the session's, and no repr shows them."""
    payload = {"authorized_locations": {"default": "alice:s3cret", "reg.example.com:5000": "a:b:c"}}
    credential = munged.encode(json.dumps(payload).encode())
    session = await authenticator(munged, threads, munge).authenticate(credential, "perlmutter")
    assert session.logins == {
        "default": RegistryLogin("alice", "s3cret"),
        "reg.example.com:5000": RegistryLogin("a", "b:c"),
    }
    assert "s3cret" not in repr(session)


@pytest_twisted.ensureDeferred
async def test_other_payloads(munged: Munged, threads: Threads, munge: Munge) -> None:
    """A payload of another shape is the client's fault; no text of the error repeats it."""
    credential = munged.encode(b'{"authorized_locations": "s3cret"')
    error = await refusal(authenticator(munged, threads, munge), credential)
    assert type(error) is BadRequest
    assert "s3cret" not in "".join(traceback.format_exception(error))


@pytest_twisted.ensureDeferred
async def test_munged_is_away(threads: Threads, munge: Munge) -> None:
    """Without its daemon a system cannot be used: 503, and again once the daemon is back."""
    with Munged() as munged:
        auth = authenticator(munged, threads, munge)
        credential = munged.encode()
        munged.stop()
        error = await refusal(auth, credential)
        assert (type(error), error.http_status) == (Unavailable, 503)
        assert str(munged.socket) in error.detail
        assert str(munged.socket) not in str(error)
        munged.start()
        assert await auth.authenticate(munged.encode(), "perlmutter")


@pytest_twisted.ensureDeferred
async def test_no_program(
    munged: Munged, threads: Threads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without library and program: 503, and the log is told why."""
    credential = munged.encode()
    monkeypatch.setenv("PATH", str(tmp_path))
    error = await refusal(authenticator(munged, threads, Programs()), credential)
    assert type(error) is Unavailable
    assert "unmunge" in error.detail


@pytest_twisted.ensureDeferred
async def test_munged_hangs(
    monkeypatch: pytest.MonkeyPatch, munged: Munged, threads: Threads
) -> None:
    """Nobody waits longer than the limit, the next ones hear it at once, and then all is well."""
    monkeypatch.setattr(munge_module, "DECODING_LIMIT", 0.5)
    auth = authenticator(munged, threads)
    credentials = [munged.encode() for _ in range(3 * BATCH_SIZE)]
    start = reactor.seconds()
    with munged.suspended():
        errors = await gather_or_cancel(refusal(auth, one) for one in credentials)
        assert {type(error) for error in errors} == {Unavailable}
        assert reactor.seconds() - start < patient(2)
        for _ in range(100):
            assert type(await refusal(auth, credentials[0])) is Unavailable
        assert reactor.seconds() - start < patient(3)
        # Others in the pool of threads are not held up.
        assert await threads.run(lambda: 7) == 7
    while True:
        try:
            await auth.authenticate(munged.encode(), "perlmutter")
        except Unavailable:
            await pause(0.02, reactor)
        else:
            break
    assert reactor.seconds() - start < patient(15)


@pytest_twisted.ensureDeferred
async def test_a_caller_who_goes_away(munged: Munged, threads: Threads) -> None:
    """One who hangs up while the daemon thinks is let go at once, and leaves no trace."""
    library = Observed()
    auth = authenticator(munged, threads, library)
    credential = munged.encode()
    with munged.suspended():
        asking = Deferred.fromCoroutine(auth.authenticate(credential, "perlmutter"))
        assert await threads.run(library.asks.wait, 10)
        asking.cancel()
        with pytest.raises(CancelledError):
            await asking
    assert await auth.authenticate(munged.encode(), "perlmutter")


@pytest.mark.parametrize(
    ("admins", "expected"),
    [
        ((), False),
        (("root",), False),
        (("operator",), True),
        (("nobody-knows", "operator"), True),
        ((os.getuid(),), True),
        ((7,), False),
        (("nobody-knows",), False),
        ((str(os.getuid()),), False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_admins(
    munged: Munged, threads: Threads, admins: tuple[str | int, ...], expected: bool
) -> None:
    """A name means the uid that the system gives it, not the host; an unknown one nobody."""
    auth = MungeAuthenticator("perlmutter", munged.socket, SystemUsers(), admins, reactor)
    session = await auth.authenticate(munged.encode(), "perlmutter")
    assert session.admin is expected
