"""Munge identifies the caller: real daemons of two systems, each with its own key."""

from __future__ import annotations

import json
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.auth import munge as munge_module
from shiftergw.auth.batched import BATCH_SIZE
from shiftergw.auth.libmunge import LARGEST, DecodeAnswer, Library, Munge, Programs
from shiftergw.auth.munge import MungeAuthenticator
from shiftergw.auth.users import HostUsers
from shiftergw.errors import BadRequest, GatewayError, NotAuthenticated, Unavailable
from shiftergw.model.requests import RegistryLogin, Session, UserAccount
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import Authenticator
from tests.installed_reactor import reactor
from tests.munged import MungeDaemon, clock_off_by
from tests.parts import need
from tests.patience import patient
from tests.thread_pools import running_threads

UNKNOWN = 54321, 54322
"""Ids that no machine of the tests knows."""


class SystemUsers:
    """A system whose `root` has another uid, and whose `operator` has the uid of the tests."""

    async def account(self, uid: int, gid: int) -> UserAccount:
        """Return an account with the digits of the ids."""
        return UserAccount(str(uid), str(gid), frozenset({gid}))

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:
        """Return the primary group only."""
        return frozenset({gid})

    async def uid_of(self, user: str) -> int | None:
        """Return the uid of `root` or `operator`."""
        return {"root": 7, "operator": os.getuid()}.get(user)


class ObservedLibrary(Library):
    """The library, with an event that is set when the daemon is asked."""

    def __init__(self) -> None:
        """Load the library."""
        super().__init__()
        self.is_asked = Event()

    def decode(self, credential: bytes, socket: Path | None) -> DecodeAnswer:
        """Set `is_asked`, and decode."""
        self.is_asked.set()
        return super().decode(credential, socket)


@pytest.fixture(scope="module")
def munged() -> Iterator[MungeDaemon]:
    """Run the daemon of the system `perlmutter`."""
    with MungeDaemon() as running:
        yield running


@pytest.fixture(scope="module")
def other_system() -> Iterator[MungeDaemon]:
    """Run the daemon of another system."""
    with MungeDaemon() as running:
        yield running


def programs() -> Munge:
    """Return the programs instead of the library."""
    need("unmunge")
    return Programs()


@pytest.fixture(params=[Library, programs])
def munge(request: pytest.FixtureRequest) -> Munge:
    """Return the library, then the programs."""
    way: Munge = request.param()
    return way


def authenticator(
    munged: MungeDaemon, threads: Threads, munge: Munge | None = None, *admins: str | int
) -> Authenticator:
    """Return the authenticator of `perlmutter`."""
    users = HostUsers(threads, reactor)
    return MungeAuthenticator("perlmutter", munged.socket, users, admins, reactor, munge)


async def refusal(auth: Authenticator, credential: str) -> GatewayError:
    """Return the error for a refused credential; its text is one printable line."""
    with pytest.raises(GatewayError) as caught:
        await auth.authenticate(credential, "perlmutter")
    assert str(caught.value).isprintable()
    return caught.value


@pytest_twisted.ensureDeferred
async def test_a_user_of_this_host(munged: MungeDaemon, threads: Threads, munge: Munge) -> None:
    """Uid and gid come from the credential, names and groups from the host."""
    auth = authenticator(munged, threads, munge)
    session = await auth.authenticate(munged.encode_as(0, 0), "perlmutter")
    groups = frozenset({0, *os.getgrouplist("root", 0)})
    assert session == Session("perlmutter", "root", 0, "root", 0, groups)


@pytest_twisted.ensureDeferred
async def test_users_that_are_unknown_to_the_host(
    munged: MungeDaemon, threads: Threads, munge: Munge
) -> None:
    """The names of unknown users are the digits of their ids, so no two are the same."""
    auth = authenticator(munged, threads, munge)
    uid, gid = UNKNOWN
    first = await auth.authenticate(munged.encode_as(uid, gid), "perlmutter")
    second = await auth.authenticate(munged.encode_as(uid + 1, gid), "perlmutter")
    assert (first.user, first.group) == (str(uid), str(gid))
    assert (first.uid, first.gid, first.groups) == (uid, gid, frozenset({gid}))
    assert (second.user, second.uid) == (str(uid + 1), uid + 1)


@pytest_twisted.ensureDeferred
async def test_a_credential_is_accepted_once(
    munged: MungeDaemon, threads: Threads, munge: Munge
) -> None:
    """The second use is refused."""
    auth = authenticator(munged, threads, munge)
    credential = munged.encode()
    await auth.authenticate(credential, "perlmutter")
    error = await refusal(auth, credential)
    assert (error.http_status, error.what) == (401, "The credential has been used before.")


@pytest_twisted.ensureDeferred
async def test_concurrent_uses_of_a_credential(munged: MungeDaemon, threads: Threads) -> None:
    """Of several concurrent requests with one credential, one succeeds."""
    auth = authenticator(munged, threads)
    credential = munged.encode()
    sessions = []

    async def ask() -> None:
        with suppress(NotAuthenticated):
            sessions.append(await auth.authenticate(credential, "perlmutter"))

    await gather_or_cancel(ask() for _ in range(10))
    assert len(sessions) == 1


@pytest_twisted.ensureDeferred
async def test_another_systems_credential(
    munged: MungeDaemon, other_system: MungeDaemon, threads: Threads, munge: Munge
) -> None:
    """A credential of another system is refused, and is still accepted by its own system."""
    auth = authenticator(munged, threads, munge)
    credential = other_system.encode()
    error = await refusal(auth, credential)
    assert error.http_status == 401
    assert "not valid for perlmutter" in str(error)
    assert await authenticator(other_system, threads, munge).authenticate(credential, "perlmutter")
    with pytest.raises(NotAuthenticated):
        await auth.authenticate(munged.encode(), "another")


@pytest.mark.parametrize(("shift", "words"), [("-1h", "has expired"), ("+1h", "not valid yet")])
@pytest_twisted.ensureDeferred
async def test_a_credential_of_another_time(
    munged: MungeDaemon, threads: Threads, munge: Munge, shift: str, words: str
) -> None:
    """A credential of an hour ago has expired, and one of the future is not valid yet."""
    with MungeDaemon(munged.key, clock_off_by(shift)) as other_clock:
        error = await refusal(authenticator(munged, threads, munge), other_clock.encode())
    assert error.http_status == 401
    assert words in str(error)
    assert re.search(r"it was made 3,[56]\d\d s (ago|from now)", str(error))
    assert "clocks" in error.remedy


@pytest.mark.parametrize("option", ["--restrict-uid=54321", "--restrict-gid=54321"])
@pytest_twisted.ensureDeferred
async def test_a_credential_with_a_restriction(
    munged: MungeDaemon, threads: Threads, munge: Munge, option: str
) -> None:
    """A credential that only another user or group may decode is refused."""
    error = await refusal(authenticator(munged, threads, munge), munged.munge(option))
    assert error.http_status == 401
    assert "another user or group" in str(error)


@pytest.mark.parametrize(
    ("credential", "words"),
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
async def test_invalid_credentials(
    munged: MungeDaemon, threads: Threads, munge: Munge, credential: str, words: str
) -> None:
    """A text that is not a credential is refused with a reason, and not quoted."""
    error = await refusal(authenticator(munged, threads, munge), credential)
    assert (type(error), error.http_status) == (NotAuthenticated, 401)
    assert words in str(error)


@settings(max_examples=100)
@given(text=st.one_of(st.text(), st.from_regex(r"\AMUNGE:[A-Za-z0-9+/]{0,300}=?:\Z")))
@pytest_twisted.ensureDeferred
async def test_any_text(munged: MungeDaemon, text: str) -> None:
    """Every text without a valid credential is refused."""
    async with running_threads(1) as pool:
        error = await refusal(authenticator(munged, pool), text)
        assert type(error) is NotAuthenticated


@pytest_twisted.ensureDeferred
async def test_logins(munged: MungeDaemon, threads: Threads, munge: Munge) -> None:
    """The session has the logins of the credential, and its repr does not show passwords."""
    payload = {"authorized_locations": {"default": "alice:s3cret", "reg.example.com:5000": "a:b:c"}}
    credential = munged.encode(json.dumps(payload).encode())
    session = await authenticator(munged, threads, munge).authenticate(credential, "perlmutter")
    assert session.logins == {
        "default": RegistryLogin("alice", "s3cret"),
        "reg.example.com:5000": RegistryLogin("a", "b:c"),
    }
    assert "s3cret" not in repr(session)


@pytest_twisted.ensureDeferred
async def test_an_invalid_payload(munged: MungeDaemon, threads: Threads, munge: Munge) -> None:
    """An invalid payload is the client's fault; the error does not quote it."""
    credential = munged.encode(b'{"authorized_locations": "s3cret"')
    error = await refusal(authenticator(munged, threads, munge), credential)
    assert type(error) is BadRequest
    assert "s3cret" not in "".join(traceback.format_exception(error))


@pytest_twisted.ensureDeferred
async def test_munged_is_away(threads: Threads, munge: Munge) -> None:
    """Without its daemon a system answers 503; once the daemon is back, it works again."""
    with MungeDaemon() as munged:
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
    munged: MungeDaemon, threads: Threads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without library and programs a system answers 503, and the detail says why."""
    credential = munged.encode()
    monkeypatch.setenv("PATH", str(tmp_path))
    error = await refusal(authenticator(munged, threads, Programs()), credential)
    assert type(error) is Unavailable
    assert "unmunge" in error.detail


@pytest_twisted.ensureDeferred
async def test_munged_hangs(
    monkeypatch: pytest.MonkeyPatch, munged: MungeDaemon, threads: Threads
) -> None:
    """Callers wait up to the limit, the next ones fail at once, and later ones succeed again."""
    monkeypatch.setattr(munge_module, "DECODING_LIMIT", 0.5)
    auth = authenticator(munged, threads)
    credentials = [munged.encode() for _ in range(3 * BATCH_SIZE)]
    start = reactor.seconds()
    with munged.suspension():
        errors = await gather_or_cancel(refusal(auth, credential) for credential in credentials)
        assert {type(error) for error in errors} == {Unavailable}
        assert reactor.seconds() - start < patient(2)
        for _ in range(100):
            assert type(await refusal(auth, credentials[0])) is Unavailable
        assert reactor.seconds() - start < patient(3)
        # Other work of the pool of threads is not delayed.
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
async def test_a_cancelled_caller(munged: MungeDaemon, threads: Threads) -> None:
    """A caller that is cancelled stops waiting at once, and later callers are served."""
    library = ObservedLibrary()
    auth = authenticator(munged, threads, library)
    credential = munged.encode()
    with munged.suspension():
        request = Deferred.fromCoroutine(auth.authenticate(credential, "perlmutter"))
        assert await threads.run(library.is_asked.wait, 10)
        request.cancel()
        with pytest.raises(CancelledError):
            await request
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
    munged: MungeDaemon, threads: Threads, admins: tuple[str | int, ...], expected: bool
) -> None:
    """The name of an admin has the uid of the system's directory; an unknown name has none."""
    auth = MungeAuthenticator("perlmutter", munged.socket, SystemUsers(), admins, reactor)
    session = await auth.authenticate(munged.encode(), "perlmutter")
    assert session.admin is expected
